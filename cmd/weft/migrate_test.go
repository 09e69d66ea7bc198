package main

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"weft/backends"
	"weft/backends/direct"
	"weft/backends/faulty"
	"weft/dataplane/engine"
	"weft/domain"
)

// TestDeviceLeaves proves, with a real verifying load over NBD, that a device leaves with a volume,
// its snapshot and its clone while hosts write to both: no request fails, no byte is wrong, the log
// has where they went, and the device that stays has them after a restart of neither.
func TestDeviceLeaves(t *testing.T) {
	if _, err := exec.LookPath("fio"); err != nil {
		t.Skip("fio is not installed: a device that leaves is NOT tested with a real load")
	}
	c, n, disks := twoDisks(t)
	leaves, stays := disks["v1"], disks["v2"]
	if ok, out := fio(t, leaves.uri); !ok {
		t.Fatal(out)
	}
	c.must("POST", "/v1/apps/shop/snapshots", `{"name":"before","volumes":["v1"]}`)
	var stop atomic.Bool
	type result struct {
		ok  bool
		out string
	}
	loads := make(chan result, 2)
	first := make(chan struct{})
	go func() {
		for i := 0; ; i++ {
			ok, out := fio(t, leaves.uri)
			if i == 0 {
				close(first)
			}
			if !ok || stop.Load() {
				loads <- result{ok, out}
				return
			}
		}
	}()
	<-first
	c.must("DELETE", "/v1/nodes/"+n.dir.id.Name+"/devices/"+leaves.id, "")
	gone := func(a answer) bool {
		for _, d := range items(a) {
			if d["id"] == leaves.id {
				return false
			}
		}
		return true
	}
	c.until("/v1/devices", gone)
	stop.Store(true)
	if r := <-loads; !r.ok || wrongBytes(r.out) {
		t.Fatal(r.out)
	}
	for _, v := range items(c.must("GET", "/v1/volumes", "")) {
		if v["device"] != stays.id {
			t.Errorf("%v is on %v", v["name"], v["device"])
		}
	}
	if ok, out := fio(t, leaves.uri, "--verify_only"); !ok || strings.Contains(out, "verify:") {
		t.Error(out)
	}
	moved := c.must("GET", "/v1/events?types=VolumeMoved,SnapshotMoved,DeviceRetired", "")
	if len(items(moved)) != 3 {
		t.Errorf("%v", moved)
	}
}

// TestDeviceLeavesDying proves that a device with a block that it cannot read leaves all the same;
// that the block reads as an error where the volume is then, and what stands beside it does not;
// and that both the device and weft why say so.
func TestDeviceLeavesDying(t *testing.T) {
	c, n, disks := twoDisks(t)
	leaves, stays := disks["v1"], disks["v2"]
	var v map[string]any
	for _, x := range items(c.must("GET", "/v1/volumes", "")) {
		if x["name"] == "v1" {
			v = x
		}
	}
	text, _ := v["id"].(string)
	id, err := domain.ParseUUID(text)
	if err != nil {
		t.Fatal(err)
	}
	s, ok := n.backend.agent.Find(domain.VolumeID{UUID: id})
	if !ok {
		t.Fatal("the volume is not served")
	}
	block := func(op domain.Op, i byte) ([]byte, error) {
		buf := bytes.Repeat([]byte{0xa0 + i, 0x5c, i, 0xe3}, 1024)
		if op == domain.OpRead {
			buf = make([]byte, 4096)
		}
		return buf, s.Disk.Do(&domain.IO{Op: op, Off: int64(i) * 4096, Len: 4096, Buf: buf})
	}
	for i := range byte(8) {
		if _, err := block(domain.OpWrite, i); err != nil {
			t.Fatal(err)
		}
	}
	bad := int64(-1)
	b, want := backends.AlignedBuffer(4096), bytes.Repeat([]byte{0xa5, 0x5c, 5, 0xe3}, 1024)
	for off := int64(0); off < leaves.Geometry().Size; off += 4096 {
		if err := leaves.Inner().ReadAt(b, off); err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(b, want) {
			bad = off
		}
	}
	if bad < 0 {
		t.Fatal("the block is nowhere on the device")
	}
	leaves.Add(faulty.Rule{On: faulty.Read, Off: bad, Len: 4096, Err: backends.ErrMedia})
	c.must("DELETE", "/v1/nodes/"+n.dir.id.Name+"/devices/"+leaves.id, "")
	c.until("/v1/devices", func(a answer) bool {
		d := device(a, stays.id)
		return device(a, leaves.id) == nil && d["damaged"] == 1.0
	})
	for i := range byte(8) {
		got, err := block(domain.OpRead, i)
		if i == 5 != (err != nil) || i != 5 && (got[0] != 0xa0+i || got[4094] != i) {
			t.Errorf("block %d: % x, %v", i, got[:4], err)
		}
	}
	why := c.must("GET", "/v1/volumes/"+text+"/decision", "")
	list, _ := why.body["damages"].([]any)
	if len(list) != 1 {
		t.Fatalf("%v", why)
	}
	if d, _ := list[0].(map[string]any); d["block"] != 5.0 || d["part"] != "block" ||
		!strings.Contains(d["detail"].(string), "could not be read") {
		t.Errorf("%v", d)
	}
}

// slowNode is a node with two devices that is stopped and started again.
type slowNode struct {
	dir   string
	paths []string
	log   io.Writer // nil: nobody reads it
	throw bool      // copies away that wait for a device
	token string
	c     *tester
	n     *Node
	down  func()
}

// start brings it up; rate bounds how fast volumes leave a device, 0 does not.
func (s *slowNode) start(t *testing.T, rate int64) {
	t.Helper()
	if s.log == nil {
		s.log = io.Discard
	}
	var err error
	s.n, s.down, err = Start(t.Context(), Options{
		DataDir: filepath.Join(s.dir, "data"), Devices: s.paths, API: "127.0.0.1:0",
		NBD: "127.0.0.1:0", ISCSI: "off", Peer: "127.0.0.1:0", VoterGrace: time.Minute,
		MigrateRate: rate, DiscardCopies: s.throw, Logger: slog.New(slog.NewTextHandler(s.log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	s.c = &tester{t, "http://" + s.n.api.addr, s.token, &http.Client{Transport: &http.Transport{}}}
	if s.token == "" {
		s.token = s.n.dir.fresh
		s.c.token = s.token
	}
}

// newSlowNode makes the devices of one.
func newSlowNode(t *testing.T) *slowNode {
	t.Helper()
	s := &slowNode{dir: t.TempDir()}
	for _, name := range []string{"a.img", "b.img"} {
		s.paths = append(s.paths, filepath.Join(s.dir, name))
		dev, err := direct.Create(s.paths[len(s.paths)-1], 128<<20, direct.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := dev.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// volume makes a volume and waits for it.
func (s *slowNode) volume() map[string]any {
	s.c.must("POST", "/v1/templates", `{"name":"gold","intent":{"availability":{"replicas":1}}}`)
	s.c.must("POST", "/v1/apps", `{"name":"shop","template":"gold","volumes":[`+
		`{"name":"v1","size":33554432}]}`)
	s.c.waitOnline("/v1/volumes")
	return items(s.c.must("GET", "/v1/volumes", ""))[0]
}

func (s *slowNode) stop() {
	s.c.http.CloseIdleConnections()
	s.down()
}

// poll asks until an answer fits: for what is no event, and so wakes nobody.
func (c *tester) poll(path string, ok func(answer) bool) {
	for !ok(c.do("GET", path, "")) {
		runtime.Gosched()
	}
}

// device gives what the API says of a device.
func device(a answer, id any) map[string]any {
	for _, d := range items(a) {
		if d["id"] == id {
			return d
		}
	}
	return nil
}

// halfCopy copies what stands on one of two devices to the other and leaves it as a crash does: in
// parts, or whole, before the switch to it was made. It gives the paths of the two.
func halfCopy(t *testing.T, id domain.ClusterID, paths []string, whole bool) (from, to string) {
	t.Helper()
	var list []*engine.Engine
	var devs []*faulty.Device
	for _, path := range paths {
		inner, err := direct.Open(path, direct.Options{})
		if err != nil {
			t.Fatal(err)
		}
		dev := faulty.New(inner, nil)
		devs = append(devs, dev)
		e, err := engine.Open(t.Context(), engine.Config{Device: dev, Cluster: id, Node: 1})
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, e)
		defer func() {
			e.Abandon()
			if err := dev.Close(); err != nil {
				t.Error(err)
			}
		}()
	}
	paths = slices.Clone(paths)
	if len(list[0].Families()) == 0 {
		slices.Reverse(list)
		slices.Reverse(devs)
		slices.Reverse(paths)
	}
	m, err := list[0].Migrate(list[0].Families()[0].ID, list[1], nil)
	if err == nil {
		err = m.Copy(t.Context())
	}
	if err != nil || list[1].Hidden() != 1 {
		t.Fatalf("%v, %d hidden", err, list[1].Hidden())
	}
	if whole { // the line that says so is never written
		devs[0].Add(faulty.Rule{On: faulty.Write, Err: backends.ErrMedia})
		if err := m.Finish(t.Context()); err == nil || m.Left() {
			t.Fatalf("the switch was made: %v", err)
		}
	}
	return paths[0], paths[1]
}

// TestDiscardCopies proves that a copy which waits for the device it comes from is kept, and named,
// at each start without that; that --discard-copies throws it away; and that the volume is there
// with its bytes when the device is back.
func TestDiscardCopies(t *testing.T) {
	s := newSlowNode(t)
	s.start(t, 0)
	text, _ := s.volume()["id"].(string)
	id, err := domain.ParseUUID(text)
	if err != nil {
		t.Fatal(err)
	}
	do := func(op domain.Op, b byte) byte {
		t.Helper()
		d, ok := s.n.backend.agent.Find(domain.VolumeID{UUID: id})
		buf := bytes.Repeat([]byte{b}, 4096)
		if !ok {
			t.Fatal("the volume is not served")
		}
		if err := d.Disk.Do(&domain.IO{Op: op, Off: 8192, Len: 4096, Buf: buf}); err != nil {
			t.Fatal(err)
		}
		return buf[9]
	}
	do(domain.OpWrite, 0x77)
	cluster := s.n.dir.id.Cluster
	s.stop()
	from, _ := halfCopy(t, cluster, s.paths, true)
	if err := os.Rename(from, from+".away"); err != nil {
		t.Fatal(err)
	}
	waits := regexp.MustCompile("shown to nobody.*" + text + ".*not known to be the newest")
	for _, throw := range []bool{false, false, true} {
		var log strings.Builder
		s.log, s.throw = &log, throw
		s.start(t, 0)
		hidden := 0
		for _, e := range s.n.backend.devices.engines() {
			hidden += e.Hidden()
		}
		s.stop()
		said := log.String()
		if hidden == 0 != throw || strings.Contains(said, "are thrown away") != throw ||
			waits.MatchString(said) == throw {
			t.Errorf("thrown away: %t, %d hidden: %s", throw, hidden, said)
		}
	}
	if err := os.Rename(from+".away", from); err != nil {
		t.Fatal(err)
	}
	s.throw = false
	s.start(t, 0)
	defer s.stop()
	s.c.waitOnline("/v1/volumes")
	if got := do(domain.OpRead, 0); got != 0x77 {
		t.Errorf("the volume holds %x", got)
	}
}

// TestDeviceLeavesSlowly proves that how far a device is is shown; that the copy goes when the wish
// is taken back, and the volume stays; and that a migration which a restart cut short is begun
// again, ends, and costs no byte.
func TestDeviceLeavesSlowly(t *testing.T) {
	if _, err := exec.LookPath("fio"); err != nil {
		t.Skip("fio is not installed: migrations that are cut short are NOT tested on real data")
	}
	s := newSlowNode(t)
	s.start(t, 1) // a piece takes days
	c, v := s.c, s.volume()
	uri, _ := v["nbd"].(string)
	if ok, out := fio(t, uri); !ok {
		t.Fatal(out)
	}
	id, _ := v["device"].(string)
	path := "/v1/nodes/" + s.n.dir.id.Name + "/devices/" + id
	underway := func(a answer) bool {
		d := device(a, id)
		n, _ := d["moved"].(float64)
		return d["state"] == "leaving" && d["moving_to"] != nil && n > 0 && d["left"] != nil
	}
	hidden := func() (n int) {
		for _, e := range s.n.backend.devices.engines() {
			n += e.Hidden()
		}
		return n
	}
	c.must("DELETE", path, "")
	c.poll("/v1/devices", underway)
	if hidden() != 1 {
		t.Errorf("%d copies are under way", hidden())
	}
	c.must("POST", path+"/keep", "")
	c.poll("/v1/devices", func(a answer) bool {
		return device(a, id)["state"] == "ok" && hidden() == 0
	})
	if now := items(c.must("GET", "/v1/volumes", ""))[0]; now["device"] != id {
		t.Errorf("the volume went to %v", now["device"])
	}
	c.must("DELETE", path, "")
	c.poll("/v1/devices", underway)
	cluster := s.n.dir.id.Cluster
	s.stop()
	halfCopy(t, cluster, s.paths, false)

	s.start(t, 0)
	defer s.stop()
	s.c.until("/v1/devices", func(a answer) bool { return device(a, id) == nil })
	s.c.waitOnline("/v1/volumes")
	now := items(s.c.must("GET", "/v1/volumes", ""))[0]
	uri, _ = now["nbd"].(string)
	if ok, out := fio(t, uri, "--verify_only"); !ok || now["device"] == id || hidden() > 0 {
		t.Errorf("on %v, %d hidden: %s", now["device"], hidden(), out)
	}
}

// TestChoosePlace proves where a family goes: to the same medium first, there to the most room,
// then to a faster one, never to a slower one, to what leaves, to what has no keys where it needs
// them, or from where writes are safe to where they are not; and that the error says what is
// missing.
func TestChoosePlace(t *testing.T) {
	gib := domain.MiB << 10
	fits := place{spec: "x", class: "flash", room: 4 * gib, keys: true}
	with := func(change func(p *place)) place {
		p := fits
		change(&p)
		return p
	}
	leaving := with(func(p *place) { p.unfit = true })
	keyless := with(func(p *place) { p.keys = false })
	volatile := with(func(p *place) { p.volatile = true })
	hdd := with(func(p *place) { p.class, p.room = "hdd", 9*gib })
	pair := with(func(p *place) { p.class, p.keys = "hybrid", false })
	small := with(func(p *place) { p.room = gib })
	large := with(func(p *place) { p.room = 8 * gib })
	fam := engine.Family{Bytes: 2 * gib, Packed: 2 * gib}
	secret := engine.Family{Bytes: 2 * gib, Packed: 2 * gib, Encrypted: true}
	small2 := engine.Family{Bytes: 2 * gib, Packed: gib / 2}
	squeezes := with(func(p *place) { p.room, p.journal = gib, 64*domain.MiB })
	for n, c := range []struct {
		from place
		list []place
		f    engine.Family
		want int
		says string
	}{
		{fits, []place{small, fits, large, leaving}, fam, 2, ""},
		{hdd, []place{large, pair, hdd}, fam, 2, ""},
		{hdd, []place{large, pair, leaving}, fam, 1, ""},
		{hdd, []place{pair, fits}, secret, 1, ""},
		{fits, []place{hdd, pair}, fam, -1, "no other device of the node takes its volumes"},
		{fits, []place{leaving}, fam, -1, "no other device"},
		{fits, []place{keyless}, secret, -1, "takes its encrypted volumes"},
		{fits, []place{keyless}, fam, 0, ""},
		{fits, []place{volatile}, fam, -1, "no other device"},
		{volatile, []place{volatile}, fam, 0, ""},
		{fits, []place{small, leaving}, fam, -1, "x has the most, 1GiB, and 1089MiB are missing"},
		{fits, nil, fam, -1, "no other device"},
		{fits, []place{squeezes}, small2, 0, ""},
		{fits, []place{small}, small2, -1, "x has the most, 1GiB, and 1089MiB are missing"},
		{fits, []place{squeezes}, fam, -1, "and 1089MiB are missing"},
		{fits, []place{with(func(p *place) { p.room, p.journal = gib, gib })}, small2, -1, "missing"},
	} {
		i, err := choosePlace(c.from, c.list, c.f)
		if i != c.want || (err == nil) != (c.says == "") ||
			err != nil && (!strings.Contains(err.Error(), c.says) || !domain.IsKind(err, domain.NoSpace)) {
			t.Errorf("case %d: %d, %v", n, i, err)
		}
	}
}
