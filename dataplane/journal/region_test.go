package journal

import (
	"slices"
	"testing"

	"weft/backends"
	"weft/backends/mem"
	"weft/dataplane/segment"
	"weft/domain"
)

func deviceID(n byte) domain.DeviceID { return domain.DeviceID{UUID: domain.UUID{n, 9}} }

// TestRegion proves that devices keep their shares over starts, that shares never overlap, that a
// device which comes later gets what is free, or nothing where that is too little, and that a share
// is free again when it is released.
func TestRegion(t *testing.T) {
	m, err := mem.NewMemory(headerMax+100*page, backends.PowerSafe)
	if err != nil {
		t.Fatal(err)
	}
	cluster, node := testHeader.Cluster, testHeader.Node
	again := func() *Region {
		t.Helper()
		r, err := OpenRegion(m, cluster, node)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	size := func(r *Region, d byte) int64 {
		s, ok := r.Share(deviceID(d))
		if !ok {
			return 0
		}
		return int64(len(s.Bytes()))
	}
	r := again()
	r.Allot([]domain.DeviceID{deviceID(1), deviceID(2), deviceID(3)}, page)
	r = again()
	for d := byte(1); d <= 3; d++ {
		if size(r, d) != 33*page {
			t.Errorf("device %d has %d bytes", d, size(r, d))
		}
		s, _ := r.Share(deviceID(d))
		for i := range s.Bytes() {
			s.Bytes()[i] = d
		}
		s.Persist(0, 33*page)
		if g := s.Geometry(); g.Size != 33*page || g.Durability != backends.PowerSafe {
			t.Errorf("geometry %+v", g)
		}
	}
	for d := byte(1); d <= 3; d++ {
		s, _ := r.Share(deviceID(d))
		for i, b := range s.Bytes() {
			if b != d {
				t.Fatalf("byte %d of device %d is %d", i, d, b)
			}
		}
	}
	r.Allot([]domain.DeviceID{deviceID(4)}, 2*page)
	if size(r, 4) != 0 {
		t.Error("a share of what is not there")
	}
	r.Release(deviceID(2))
	r.Release(deviceID(2))
	r = again()
	r.Allot([]domain.DeviceID{deviceID(1), deviceID(4), deviceID(5)}, page)
	r = again()
	if size(r, 1) != 33*page || size(r, 2) != 0 || size(r, 4) != 16*page || size(r, 5) != 16*page ||
		len(r.Devices()) != 4 {
		t.Errorf("after a release: %v", r.head.shares)
	}
	_, err = OpenRegion(m, cluster, domain.NodeID{UUID: domain.UUID{7}})
	if !domain.IsKind(err, domain.Denied) {
		t.Errorf("of another node: %v", err)
	}
	c := m.Clone()
	c.Bytes()[50] ^= 1
	if _, err := OpenRegion(c, cluster, node); err != nil {
		t.Errorf("one copy of two: %v", err)
	}
	c.Bytes()[page+50] ^= 1
	if _, err := OpenRegion(c, cluster, node); !domain.IsKind(err, domain.Corrupt) {
		t.Errorf("no copy: %v", err)
	}
	clear(c.Bytes()[:headerMax])
	c.Bytes()[100] = 1
	if _, err := OpenRegion(c, cluster, node); !domain.IsKind(err, domain.Exists) {
		t.Errorf("something else: %v", err)
	}
}

// TestRegionTorn cuts the power while the table is written: it is the old or the new one.
func TestRegionTorn(t *testing.T) {
	m, _ := mem.NewMemory(headerMax+10*page, backends.PowerSafe)
	r, err := OpenRegion(m, testHeader.Cluster, testHeader.Node)
	if err != nil {
		t.Fatal(err)
	}
	m.StartHistory(func() int { return 0 })
	r.Allot([]domain.DeviceID{deviceID(1)}, page)
	r.Release(deviceID(1))
	r.Allot([]domain.DeviceID{deviceID(2)}, page)
	m.Stop()
	for at := range m.Mark() {
		for seed := range uint64(20) {
			got, err := OpenRegion(m.CrashImage(at, 0.5, seed), testHeader.Cluster, testHeader.Node)
			if err != nil || len(got.Devices()) > 1 {
				t.Fatalf("cut %d: %v", at, err)
			}
		}
	}
}

// TestInspect proves that what stands in a region is told whoever it belongs to, damage by its
// place, and that nothing is changed by looking.
func TestInspect(t *testing.T) {
	m, err := mem.NewMemory(int64(headerMax+3*(headerMax+4*slotBytes(payload))), backends.PowerSafe)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Inspect(m); domain.KindOf(err) != domain.NotFound {
		t.Errorf("blank memory: %v", err)
	}
	r, err := OpenRegion(m, testHeader.Cluster, testHeader.Node)
	if err != nil {
		t.Fatal(err)
	}
	r.Allot([]domain.DeviceID{deviceID(1), deviceID(2)}, page)
	p, _ := r.Share(deviceID(1))
	s, err := Format(p, testHeader)
	if err != nil {
		t.Fatal(err)
	}
	var first, second Slot
	s.Open(&first, 0, 1, 7, segment.Salt{})
	s.Open(&second, 2, 0, 8, segment.Salt{})
	records := put(s, &first, 0)
	for _, n := range []int{2, 10, 9} {
		en, further, data := record(n)
		kept := outcome(n, en)
		s.Put(&second, en, &kept, further, data, nil)
	}
	s.Seal(&first)
	before := slices.Clone(m.Bytes())
	look := func() Contents {
		t.Helper()
		c, err := Inspect(m)
		if err != nil || len(c.Shares) != 2 || c.Cluster != testHeader.Cluster {
			t.Fatalf("%+v, %v", c, err)
		}
		return c
	}
	c := look()
	got, other := c.Shares[0], c.Shares[1]
	if got.Device != deviceID(1) || got.ID != testHeader.ID || len(got.Used) != 2 ||
		other.Problem == "" || len(other.Used) != 0 {
		t.Fatalf("%+v", c)
	}
	if x := got.Used[0]; x.No != 0 || x.Lane != 1 || x.Sequence != 7 || !x.Sealed ||
		x.Records != records ||
		x.Blocks == 0 || x.Blocks > payload/4096 || x.Outdone != 0 || len(x.Damaged) != 0 {
		t.Errorf("%+v", x)
	}
	if x := got.Used[1]; x.No != 2 || x.Sealed || x.Records != 3 || x.Blocks != 2 || x.Outdone != 1 {
		t.Errorf("%+v", x)
	}
	if !slices.Equal(before, m.Bytes()) {
		t.Error("looking changed it")
	}
	p.Bytes()[s.slot(0)+page+3] ^= 1 // in the first record
	if x := look().Shares[0].Used[0]; x.Records != records-1 || len(x.Damaged) != 1 {
		t.Errorf("%+v", x)
	}
	p.Bytes()[int64(s.place(2, 0))*page] ^= 1 // in the data of another
	if x := look().Shares[0].Used[1]; x.Records != 3 || len(x.Damaged) != 1 {
		t.Errorf("%+v", x)
	}
}
