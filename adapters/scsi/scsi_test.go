package scsi

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"

	"go.uber.org/goleak"

	"weft/domain"
	"weft/testing/iscsicu/ramdisk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// call is a Call that a test hands in.
type call struct {
	cdb        [16]byte
	out        []byte
	offered    int
	buf        []byte
	generation uint64
	done       chan struct{}

	status byte
	n      int
	sense  []byte
}

func (c *call) CDB() []byte        { return c.cdb[:] }
func (c *call) Out() []byte        { return c.out }
func (c *call) Offered() int       { return c.offered }
func (c *call) More() bool         { return false }
func (c *call) Generation() uint64 { return c.generation }

func (c *call) In(n int) []byte {
	if cap(c.buf) < n {
		c.buf = make([]byte, n)
	}
	return c.buf[:n]
}

func (c *call) Done(status byte, n int, sense []byte) {
	c.status, c.n = status, n
	c.sense = append(c.sense[:0], sense...)
	c.done <- struct{}{}
}

var _ Call = (*call)(nil)

func newCall(n Nexus, out []byte, cdb ...byte) *call {
	c := &call{done: make(chan struct{}, 1), offered: len(out)}
	copy(c.cdb[:], cdb)
	want, _, generation := n.Expect(c.cdb[:])
	c.generation = generation
	c.out = out[:min(want, len(out))]
	return c
}

// begin submits a command and does not wait.
func begin(n Nexus, out []byte, cdb ...byte) *call {
	c := newCall(n, out, cdb...)
	n.Submit(c)
	return c
}

// run submits a command and waits for its end.
func run(n Nexus, out []byte, cdb ...byte) *call {
	c := begin(n, out, cdb...)
	<-c.done
	return c
}

func (c *call) data() []byte { return c.buf[:c.n] }

// String gives status and sense as the tables of the tests write them: "02 05/24/00".
func (c *call) String() string {
	if len(c.sense) == 0 {
		return fmt.Sprintf("%02x", c.status)
	}
	return fmt.Sprintf("%02x %02x/%02x/%02x", c.status, c.sense[2], c.sense[12], c.sense[13])
}

func newUnit(t testing.TB, info domain.DiskInfo) (*Unit, *ramdisk.Disk) {
	t.Helper()
	if info.Size == 0 {
		info.Size = 8 * domain.MiB
	}
	info.ID = domain.VolumeID{UUID: domain.DeriveUUID(domain.UUID{}, "unit")}
	d := ramdisk.New(info)
	u, err := New(Config{Disk: d})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.Close)
	return u, d
}

// attach begins a nexus and takes its power-on attention.
func attach(t testing.TB, u *Unit, name string, port uint16) Nexus {
	t.Helper()
	n := u.Attach(name, "iqn.target,t,0x0001", port)
	t.Cleanup(n.Close)
	if c := run(n, nil, 0); c.String() != "02 06/29/00" {
		t.Fatalf("first command: %s", c)
	}
	return n
}

func cdb16(op byte, lba uint64, blocks uint32) []byte {
	b := make([]byte, 16)
	b[0] = op
	binary.BigEndian.PutUint64(b[2:], lba)
	binary.BigEndian.PutUint32(b[10:], blocks)
	return b
}

func expect(t *testing.T, what string, c *call, want string) {
	t.Helper()
	if c.String() != want {
		t.Errorf("%s: %s, want %s", what, c, want)
	}
}

// TestEveryKind feeds every kind of error through a read and a write. A transient kind never
// becomes a MEDIUM ERROR: hosts would mark the file system bad.
func TestEveryKind(t *testing.T) {
	both := func(s string) [2]string { return [2]string{s, s} }
	want := map[domain.Kind][2]string{
		domain.Internal:    both("02 04/44/00"),
		domain.Invalid:     both("02 05/24/00"),
		domain.Unsupported: both("02 05/20/00"),
		domain.OutOfRange:  both("02 05/21/00"),
		domain.NotFound:    both("02 05/25/00"),
		domain.Exists:      both("02 05/24/00"),
		domain.Conflict:    both("08"),
		domain.Denied:      both("02 07/27/00"),
		domain.ReadOnly:    both("02 07/27/00"),
		domain.NoSpace:     both("02 07/27/07"),
		domain.Busy:        both("08"),
		domain.Stale:       both("08"),
		domain.Suspended:   both("08"),
		domain.Unavailable: both("02 02/04/0c"),
		domain.Corrupt:     {"02 03/11/00", "02 03/0c/00"},
		domain.Aborted:     both("40"),
		domain.Miscompare:  both("02 0e/1d/00"),
		domain.Reserved:    both("18"),
		domain.Locked:      both("08"),
		domain.Mismatch:    both("02 05/24/00"),
		domain.Expired:     both("08"),
		domain.TooLarge:    both("02 05/24/00"),
	}
	u, d := newUnit(t, domain.DiskInfo{})
	n := attach(t, u, "a", 1)
	for _, k := range domain.Kinds() {
		w, ok := want[k]
		if !ok {
			t.Errorf("%v is not in the table", k)
			continue
		}
		d.Hook(func(*domain.IO) (bool, error) { return false, domain.Errorf(k, "made up") })
		expect(t, "read "+k.String(), run(n, nil, cdb16(0x88, 4, 1)...), w[0])
		expect(t, "write "+k.String(), run(n, make([]byte, 512), cdb16(0x8a, 4, 1)...), w[1])
		expect(t, "verify "+k.String(), run(n, nil, cdb16(0x8f, 4, 1)...), w[0])
	}
	d.Hook(func(*domain.IO) (bool, error) { return false, errors.New("foreign") })
	expect(t, "foreign", run(n, nil, cdb16(0x88, 4, 1)...), "02 04/44/00")
	d.Hook(func(*domain.IO) (bool, error) { return false, domain.Errorf(domain.Corrupt, "x") })
	c := run(n, nil, cdb16(0x88, 4, 1)...)
	if c.sense[0] != 0xf0 || c.sense[6] != 4 {
		t.Errorf("INFORMATION is not the LBA: % x", c.sense)
	}
}

// TestBusyBehindOthers proves that a full queue is TASK SET FULL while the nexus has other commands
// running, whose end will tell it to go on.
func TestBusyBehindOthers(t *testing.T) {
	u, d := newUnit(t, domain.DiskInfo{})
	n := attach(t, u, "a", 1)
	held := make(chan *domain.IO, 1)
	d.Hook(func(io *domain.IO) (bool, error) {
		if io.Op == domain.OpRead {
			held <- io
			return true, nil
		}
		return false, domain.Errorf(domain.Busy, "full")
	})
	c := begin(n, nil, cdb16(0x88, 0, 1)...)
	expect(t, "write", run(n, make([]byte, 512), cdb16(0x8a, 0, 1)...), "28")
	d.Run(<-held)
	<-c.done
}

// TestOrderOfChecks runs every ranged command at the edges of the disk and of its limits.
func TestOrderOfChecks(t *testing.T) {
	u, _ := newUnit(t, domain.DiskInfo{})
	n := attach(t, u, "a", 1)
	end := uint64(8<<20) / 512
	block := make([]byte, 512)
	for _, c := range []struct {
		name string
		out  []byte
		cdb  []byte
		want string
	}{
		{"read at the end", nil, cdb16(0x88, end, 0), "00"},
		{"read none beyond", nil, cdb16(0x88, end+1, 0), "02 05/21/00"},
		{"read over the end", nil, cdb16(0x88, end-1, 2), "02 05/21/00"},
		{"read wrapping", nil, cdb16(0x88, 1<<64-1, 2), "02 05/21/00"},
		{"read protected", nil, append([]byte{0x88, 0x20}, make([]byte, 14)...), "02 05/24/00"},
		{"write wrapping", block, cdb16(0x8a, 1<<64-1, 1), "02 05/21/00"},
		{"write short", block[:200], cdb16(0x8a, 0, 1), "02 05/0e/03"},
		{"write 6 with 256 blocks", nil, []byte{0x0a, 0, 0, 0, 0, 0}, "00"},
		{"verify reserved", nil, []byte{0x8f, 0x04}, "02 05/24/00"},
		{"write same anchor", block, []byte{0x93, 0x10}, "02 05/24/00"},
		{"write same to the end", block, cdb16(0x93, 0, 0), "00"},
		{"write same no data", nil, cdb16(0x93, 0, 1), "02 05/0e/03"},
		{"caw of two", make([]byte, 2048), []byte{0x89, 13: 2}, "02 05/24/00"},
		{"caw short", block, []byte{0x89, 13: 1}, "02 05/24/00"},
		{"caw", make([]byte, 1024), []byte{0x89, 13: 1}, "00"},
		{"atomic none", nil, []byte{0x9c, 15: 0}, "00"},
		{"atomic across", make([]byte, 1024), atomicCDB(4<<20/512-1, 2), "02 05/24/00"},
		{"atomic boundary", block, []byte{0x9c, 11: 8, 13: 1}, "02 05/24/00"},
		{"unmap none", nil, []byte{0x42}, "00"},
		{"unmap short", make([]byte, 4), []byte{0x42, 8: 4}, "02 05/1a/00"},
		{"lba status beyond", nil, []byte{0x9e, 0x12, 2: 0xff, 13: 64}, "02 05/21/00"},
		{"unknown code", nil, []byte{0xc0}, "02 05/20/00"},
		{"unknown action", nil, []byte{0x9e, 0x1e}, "02 05/24/00"},
		{"stop", nil, []byte{0x1b}, "02 05/24/00"},
		{"prefetch", nil, cdb16(0x90, 0, 8), "04"},
		{"saved pages", nil, []byte{0x1a, 0, 0xff, 0, 255}, "02 05/39/00"},
		{"hints page", nil, []byte{0x1a, 0, 0x0a, 0x05, 255}, "02 05/24/00"},
	} {
		expect(t, c.name, run(n, c.out, c.cdb...), c.want)
	}
}

func atomicCDB(lba uint64, blocks uint16) []byte {
	b := cdb16(0x9c, lba, 0)
	binary.BigEndian.PutUint16(b[12:], blocks)
	return b
}

// TestReadOnly proves that a read-only disk and SWP refuse every writing command.
func TestReadOnly(t *testing.T) {
	u, _ := newUnit(t, domain.DiskInfo{})
	n, other := attach(t, u, "a", 1), attach(t, u, "b", 1)
	swp := []byte{0, 0, 0, 0, 0x0a, 0x0a, 0x02, 0x10, 0x08, 0x40, 0, 0, 0, 0, 0, 0}
	expect(t, "mode select", run(n, swp, 0x15, 0x10, 0, 0, byte(len(swp))), "00")
	expect(t, "attention", run(other, nil, 0), "02 06/2a/01")
	block := make([]byte, 1024)
	for _, cdb := range [][]byte{
		cdb16(0x8a, 0, 1), cdb16(0x93, 0, 1), cdb16(0x8b, 0, 1), cdb16(0x8e, 0, 1), atomicCDB(0, 1),
		{0x89, 13: 1},
		{0x42},
		{0x48, 0x02},
		{0x0a, 4: 1},
	} {
		out := block[:512]
		switch cdb[0] {
		case 0x89:
			out = block
		case 0x42, 0x48:
			out = nil
		}
		expect(t, fmt.Sprintf("%02x", cdb[0]), run(n, out, cdb...), "02 07/27/00")
	}
	bad := slices.Clone(swp)
	bad[5+4] = 0x00 // TAS is not changeable
	expect(t, "unchangeable", run(n, bad, 0x15, 0x10, 0, 0, byte(len(bad))), "02 05/26/00")
}

// TestIdentity proves that the designators of the logical unit are the same on every port and node,
// and differ between volumes.
func TestIdentity(t *testing.T) {
	page := func(u *Unit, port uint16) []byte {
		n := attach(t, u, "a", port)
		return run(n, nil, 0x12, 0x01, 0x83, 0x10, 0).data()
	}
	one, _ := newUnit(t, domain.DiskInfo{})
	two, _ := newUnit(t, domain.DiskInfo{}) // another node, the same volume
	a, b := page(one, 1), page(two, 2)
	units := func(p []byte) (all []byte) {
		for p = p[4:]; len(p) >= 4; p = p[4+int(p[3]):] {
			if p[1]&0x30 == 0 {
				all = append(all, p[:4+int(p[3])]...)
			}
		}
		return all
	}
	if !bytes.Equal(units(a), units(b)) || len(units(a)) == 0 {
		t.Errorf("% x\n% x", units(a), units(b))
	}
	if bytes.Equal(a, b) {
		t.Error("the ports are not told apart")
	}
	x, y := NAA(domain.VolumeID{UUID: domain.UUID{1}}), NAA(domain.VolumeID{UUID: domain.UUID{2}})
	if x == y || x[0]>>4 != 6 {
		t.Errorf("% x, % x", x, y)
	}
}

// TestReservationsFence proves that PREEMPT AND ABORT answers after the write of the preempted
// nexus has ended, that the write reports TASK ABORTED, and that its successor conflicts.
func TestReservationsFence(t *testing.T) {
	u, d := newUnit(t, domain.DiskInfo{})
	one, two := attach(t, u, "one", 1), attach(t, u, "two", 1)
	key := func(own, other uint64) []byte {
		return append(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, own), other),
			make([]byte, 8)...)
	}
	pr := func(n Nexus, action, kind byte, own, other uint64) *call {
		return run(n, key(own, other), 0x5f, action, kind, 0, 0, 0, 0, 0, 24)
	}
	expect(t, "register", pr(one, 0, 0, 0, 1), "00")
	expect(t, "register", pr(two, 0, 0, 0, 2), "00")
	expect(t, "wrong key", pr(two, 1, 5, 9, 0), "18")
	expect(t, "reserve", pr(two, 1, 5, 2, 0), "00")
	held := make(chan *domain.IO, 1)
	d.Hook(func(io *domain.IO) (bool, error) {
		held <- io
		return true, nil
	})
	write := begin(two, make([]byte, 512), cdb16(0x8a, 0, 1)...)
	io := <-held
	preempt := begin(one, key(1, 2), 0x5f, 5, 5, 0, 0, 0, 0, 0, 24)
	select {
	case <-preempt.done:
		t.Fatal("answered while the write was in flight")
	case <-write.done:
		t.Fatal("the write ended by itself")
	default:
	}
	for two.(*nexus).generation.Load() == 0 { // until the write is marked
		runtime.Gosched()
	}
	d.Hook(nil)
	d.Run(io)
	<-write.done
	<-preempt.done
	expect(t, "write", write, "40")
	expect(t, "preempt", preempt, "00")
	expect(t, "attention", run(two, nil, 0), "02 06/2a/05")
	expect(t, "late write", run(two, make([]byte, 512), cdb16(0x8a, 0, 1)...), "18")
	expect(t, "read under write exclusive", run(two, nil, cdb16(0x88, 0, 1)...), "00")
}

// TestReleaseNotices proves who hears of a reservation that ends: other registrants, for the types
// that registrants share, and never the one that ended it.
func TestReleaseNotices(t *testing.T) {
	for kind, told := range map[byte]bool{1: false, 3: false, 5: true, 6: true, 7: true, 8: true} {
		base := &Reservations{Registrations: []Registration{{"a", 1, 1}, {"b", 1, 2}}}
		base, _, o := base.step(request{
			action: actReserve, kind: kind, key: 1,
			from: Registration{Initiator: "a", Port: 1},
		})
		if o != good {
			t.Fatal(o)
		}
		next, e, o := base.step(request{
			action: actRelease, kind: kind, key: 1,
			from: Registration{Initiator: "a", Port: 1},
		})
		if o != good || next.Type != 0 || base.Type != kind {
			t.Errorf("type %d: %v, %+v", kind, o, next)
		}
		if (len(e.notices) == 1) != told || told && e.notices[0].to.Initiator != "b" {
			t.Errorf("type %d: %+v", kind, e.notices)
		}
	}
}

// TestRegistrationsLimit proves the answer at the limit of registrations.
func TestRegistrationsLimit(t *testing.T) {
	r := &Reservations{}
	for i := range registrationMax + 1 {
		next, _, o := r.step(request{
			action: actRegister, newKey: 1,
			from: Registration{Initiator: fmt.Sprint(i), Port: 1},
		})
		want := good
		if i == registrationMax {
			want = noResources
		}
		if o != want {
			t.Fatalf("%d: %v", i, o)
		}
		if o == good {
			r = next
		}
	}
}

// TestResetFences proves S3: a call that arrived before a reset does not reach the disk after it.
func TestResetFences(t *testing.T) {
	u, d := newUnit(t, domain.DiskInfo{})
	n := attach(t, u, "a", 1)
	late := newCall(n, bytes.Repeat([]byte{1}, 512), cdb16(0x8a, 0, 1)...)
	ended := make(chan struct{})
	n.Reset(ResetUnit, func() { close(ended) })
	<-ended
	n.Submit(late)
	<-late.done
	expect(t, "late", late, "40")
	if d.Pages() != 0 {
		t.Error("it was written")
	}
	expect(t, "attention", run(n, nil, 0), "02 06/29/03")
}

// TestGrowth proves that a larger disk is told to every nexus.
func TestGrowth(t *testing.T) {
	u, d := newUnit(t, domain.DiskInfo{})
	n := attach(t, u, "a", 1)
	d.Grow(16 * domain.MiB)
	expect(t, "attention", run(n, nil, 0), "02 06/2a/09")
	c := run(n, nil, []byte{0x9e, 0x10, 13: 32}...)
	if last := binary.BigEndian.Uint64(c.data()); last != 16<<20/512-1 {
		t.Errorf("last block %d", last)
	}
}

// TestAttentionsBounded proves the limit of the queue, and that nothing is queued twice.
func TestAttentionsBounded(t *testing.T) {
	u, _ := newUnit(t, domain.DiskInfo{})
	n := attach(t, u, "a", 1)
	for i := range 100 {
		n.Attention(0x3f, byte(i%50))
		n.Attention(0x3f, 0x0e)
	}
	got := 0
	for run(n, nil, 0).status == statusCheck {
		got++
	}
	if got != attentionMax {
		t.Errorf("%d attentions, want %d", got, attentionMax)
	}
}

// TestThin proves UNMAP and GET LBA STATUS against the allocation of the disk.
func TestThin(t *testing.T) {
	u, d := newUnit(t, domain.DiskInfo{})
	n := attach(t, u, "a", 1)
	expect(t, "write", run(n, bytes.Repeat([]byte{7}, 16384), cdb16(0x8a, 8, 32)...), "00")
	list := []byte{0, 22, 0, 16, 0, 0, 0, 0}
	list = binary.BigEndian.AppendUint64(list, 16)
	list = binary.BigEndian.AppendUint32(list, 8)
	list = append(list, 0, 0, 0, 0)
	expect(t, "unmap", run(n, list, 0x42, 0, 0, 0, 0, 0, 0, 0, byte(len(list))), "00")
	if d.Pages() != 3 {
		t.Errorf("%d pages", d.Pages())
	}
	c := run(n, nil, 0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0, 0, 56)
	var got []uint64
	for p := c.data()[8:]; len(p) >= 16; p = p[16:] {
		got = append(got, binary.BigEndian.Uint64(p), uint64(binary.BigEndian.Uint32(p[8:])),
			uint64(p[12]))
	}
	if want := []uint64{12, 4, 0, 16, 8, 1, 24, 16, 0}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestCopy proves EXTENDED COPY within the unit, and that only what Find knows is reachable.
func TestCopy(t *testing.T) {
	u, _ := newUnit(t, domain.DiskInfo{})
	n := attach(t, u, "a", 1)
	data := bytes.Repeat([]byte("copied. "), 512)
	expect(t, "write", run(n, data, cdb16(0x8a, 0, 8)...), "00")
	build := func(id [16]byte) []byte {
		p := []byte{1, 0, 0, 32, 0, 0, 0, 0, 0, 0, 0, 28, 0, 0, 0, 0}
		p = append(p, 0xe4, 0, 0, 0, 1, 3, 0, 16)
		p = append(p, id[:]...)
		p = append(p, 0, 0, 0, 0, 0, 0, 2, 0)
		p = append(p, 2, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0, 8)
		p = binary.BigEndian.AppendUint64(p, 0)
		return binary.BigEndian.AppendUint64(p, 1000)
	}
	p := build(NAA(u.id))
	expect(t, "copy", run(n, p, []byte{0x83, 13: byte(len(p))}...), "00")
	if got := run(n, nil, cdb16(0x88, 1000, 8)...).data(); !bytes.Equal(got, data) {
		t.Error("the copy differs")
	}
	expect(t, "status", run(n, nil, []byte{0x84, 0, 1, 13: 12}...), "00")
	p = build([16]byte{0x60})
	expect(t, "stranger", run(n, p, []byte{0x83, 13: byte(len(p))}...), "02 0a/0d/02")
}

// TestNoAllocations proves that READ and WRITE allocate nothing in steady state.
func TestNoAllocations(t *testing.T) {
	u, _ := newUnit(t, domain.DiskInfo{})
	n := attach(t, u, "a", 1)
	w := newCall(n, make([]byte, 4096), cdb16(0x8a, 0, 8)...)
	r := newCall(n, nil, cdb16(0x88, 0, 8)...)
	round := func() {
		n.Submit(w)
		<-w.done
		n.Submit(r)
		<-r.done
	}
	round()
	if got := testing.AllocsPerRun(200, round); got != 0 {
		t.Errorf("%v allocations", got)
	}
}

// FuzzCommand runs any CDB with any data: no panic, one end, no more data than any limit allows.
func FuzzCommand(f *testing.F) {
	for _, c := range newTable().rows {
		cdb := make([]byte, 16)
		cdb[0] = c.op
		if c.sa >= 0 {
			cdb[1] = byte(c.sa)
		}
		cdb[4], cdb[8], cdb[9], cdb[13] = 24, 1, 24, 1
		f.Add(cdb, make([]byte, 600))
	}
	f.Fuzz(func(t *testing.T, cdb, out []byte) {
		if len(cdb) > 16 || len(out) > parameterMax {
			return
		}
		u, _ := newUnit(t, domain.DiskInfo{Size: 4 * domain.MiB})
		n := u.Attach("a", "t", 1)
		defer n.Close()
		run(n, nil, 0)
		c := run(n, out, cdb...)
		if c.n > max(answerMax, int(transferLimit)) {
			t.Fatalf("% x: %d bytes", cdb, c.n)
		}
		u.wg.Wait()
	})
}

// FuzzParameters feeds the parsers of parameter lists: no panic, nothing over its limit.
func FuzzParameters(f *testing.F) {
	f.Add(make([]byte, 24), []byte{0x5f, 0, 5})
	f.Add(append(make([]byte, 20), 8, 0, 0, 0, 0, 0, 0, 0), []byte{0x5f, 0, 5})
	f.Add([]byte{1, 0, 0, 32, 0, 0, 0, 0, 0, 0, 0, 28, 0, 0, 0, 0, 0xe4}, []byte{0x83, 0, 0})
	f.Add(transportID("iqn.x,i,0x00023d000001"), []byte{0x5f, 7, 5})
	f.Fuzz(func(t *testing.T, p, cdb []byte) {
		full := make([]byte, 16)
		copy(full, cdb)
		if c, o := parseCopy(p); o == good &&
			(len(c.targets) > copyTargetsMax || len(c.segments) > copySegmentsMax) {
			t.Fatal("too much to copy")
		}
		if s, o := unmapList(p); o == good && len(s) > unmapEntriesMax {
			t.Fatal("too many ranges")
		}
		if q, o := parseReserveOut(full, p); o == good && len(q.others) > registrationMax {
			t.Fatal("too many initiators")
		}
		if id, rest, ok := parseTransportID(p); ok && (id == "" || len(rest) >= len(p)) {
			t.Fatal("a TransportID of nothing")
		}
		_, _ = selected(p, len(cdb)%2 == 0)
		if len(p) >= 5 {
			_, _ = overwritten(p, 512)
		}
	})
}

// TestSanitizeGoesOn proves that an erasure outlives the command that began it: the command can be
// aborted at once, all others meet NOT READY until the erasure itself ends.
func TestSanitizeGoesOn(t *testing.T) {
	u, d := newUnit(t, domain.DiskInfo{})
	n := attach(t, u, "a", 1)
	held := make(chan *domain.IO, 1)
	d.Hook(func(io *domain.IO) (bool, error) {
		held <- io
		return true, nil
	})
	erase := begin(n, nil, 0x48, 0x02)
	io := <-held
	expect(t, "ready", run(n, nil, 0), "02 02/04/1b")
	expect(t, "another", run(n, nil, 0x48, 0x03), "02 02/04/1b")
	expect(t, "inquiry", run(n, nil, 0x12, 0, 0, 0, 36), "00")
	n.Abort(erase)
	<-erase.done
	expect(t, "aborted", erase, "40")
	expect(t, "still going", run(n, nil, 0), "02 02/04/1b")
	d.Hook(nil)
	d.Run(io)
	u.wg.Wait()
	expect(t, "over", run(n, nil, 0), "00")
	d.Hook(func(*domain.IO) (bool, error) { return false, domain.Errorf(domain.Corrupt, "x") })
	expect(t, "failing", run(n, nil, 0x48, 0x02), "02 03/0c/00")
	expect(t, "after a failure", run(n, nil, 0), "02 03/31/03")
	expect(t, "leave", run(n, nil, 0x48, 0x1f), "00")
	expect(t, "left", run(n, nil, 0), "00")
}
