package agent

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weft/backends"
	"weft/backends/mem"
	"weft/dataplane/compress"
	"weft/dataplane/engine"
	"weft/dataplane/qos"
	"weft/dataplane/vdisk"
	"weft/domain"
	"weft/domain/command"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tokens is a token store that can fail, and that remembers over agents.
type tokens struct {
	value uint64
	err   error
}

func (t *tokens) Load() (uint64, error) { return t.value, nil }

func (t *tokens) Save(v uint64) error {
	if t.err == nil {
		t.value = v
	}
	return t.err
}

// front notes what is served.
type front struct {
	list  []Served
	err   error
	hosts int
}

func (f *front) Serve(list []Served) error {
	if f.err == nil {
		f.list = list
	}
	return f.err
}

func (f *front) Hosts(command.Export) int { return f.hosts }

type fixture struct {
	agent  *Agent
	tokens *tokens
	front  *front
	engine *engine.Engine
	pool   *vdisk.Pool
}

var (
	device = domain.DeviceID{UUID: domain.UUID{2}}
	vol    = domain.VolumeID{UUID: domain.UUID{3}}
)

func build(t *testing.T) *fixture {
	t.Helper()
	dev, err := mem.New(mem.Config{Size: 64 << 20, Durability: backends.NeedsFlush})
	if err != nil {
		t.Fatal(err)
	}
	err = engine.Format(t.Context(), dev, engine.FormatOptions{Device: device, SegmentSize: 256 << 10})
	if err != nil {
		t.Fatal(err)
	}
	e, err := engine.Open(t.Context(), engine.Config{Device: dev, ClusterKey: make([]byte, 32)})
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{tokens: &tokens{}, front: &front{}, engine: e, pool: vdisk.NewPool(2)}
	t.Cleanup(func() {
		f.pool.Close()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	f.restart(t)
	return f
}

// restart gives a new agent over the same device and token, as a new process would.
func (f *fixture) restart(t *testing.T) {
	t.Helper()
	a, err := New(Config{
		Engines: []*engine.Engine{f.engine}, Pool: f.pool, Tokens: f.tokens, Front: f.front,
		Now: time.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	f.agent = a
}

func order(n byte, token uint64, k command.Kind) command.Order {
	return command.Order{
		ID: domain.CommandID{UUID: domain.UUID{n}}, Token: token, Kind: k, Volume: vol, Device: device,
		Size: 8 * domain.MiB, Export: command.Export{NBD: "x", Name: "x"},
	}
}

func (f *fixture) obey(o command.Order) error { return f.agent.Obey(context.Background(), o).Err }

// exported builds an agent that serves a volume.
func exported(t *testing.T) *fixture {
	t.Helper()
	f := build(t)
	for i, k := range []command.Kind{command.CreateVolume, command.ExportVolume} {
		if err := f.obey(order(byte(i+1), 1, k)); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// TestObeyTwice proves that every order may be repeated, with the same id and with another (A1).
func TestObeyTwice(t *testing.T) {
	f := build(t)
	for i, k := range []command.Kind{
		command.CreateVolume, command.ResizeVolume, command.ExportVolume, command.UnexportVolume,
		command.DeleteVolume,
	} {
		for _, n := range []byte{byte(2*i + 1), byte(2*i + 1), byte(2*i + 2)} {
			if err := f.obey(order(n, 1, k)); err != nil {
				t.Fatalf("%s: %v", k, err)
			}
		}
		served := k == command.ExportVolume
		if got := len(f.front.list) == 1; got != served && k > command.ResizeVolume {
			t.Errorf("after %s: served %v", k, got)
		}
	}
	if len(f.engine.Volumes()) != 0 {
		t.Error("the volume is still there")
	}
}

// TestCompression proves that a volume is compressed as its export says, also when that changes,
// while the same disk serves on; that another export of it has another digest, but one without it
// that of old; and that another word is refused.
func TestCompression(t *testing.T) {
	f := exported(t)
	disk, none := f.front.list[0].Disk, string((command.Export{Name: "db"}).Digest())
	seen := map[string]bool{none: true}
	for i, mode := range []string{"auto", "s2", "zstd", ""} {
		o := order(byte(20+i), 1, command.ExportVolume)
		o.Export.Compression = mode
		if err := f.obey(o); err != nil || f.front.list[0].Disk != disk {
			t.Fatalf("%v, the same disk: %t", err, f.front.list[0].Disk == disk)
		}
		want, err := compress.ParseMode(mode)
		if err != nil {
			t.Fatal(err)
		}
		if v, _ := f.engine.Volume(vol); v.Compression() != want {
			t.Errorf("%q: compressed by %d", mode, v.Compression())
		}
		d := string((command.Export{Name: "db", Compression: mode}).Digest())
		if seen[d] != (mode == "") {
			t.Errorf("%q: its digest was seen: %t", mode, seen[d])
		}
		seen[d] = true
	}
	o := order(30, 1, command.ExportVolume)
	o.Export.Compression = "lzma"
	if err := f.obey(o); !domain.IsKind(err, domain.Invalid) {
		t.Errorf("another word: %v", err)
	}
}

// TestEncrypted proves that a volume is encrypted where its order says so, twice as once, and its
// clone as it is, whatever the clone's order says.
func TestEncrypted(t *testing.T) {
	f := build(t)
	o := order(1, 1, command.CreateVolume)
	o.Encrypted = true
	for range 2 {
		o.ID.UUID[1]++
		if err := f.obey(o); err != nil {
			t.Fatal(err)
		}
	}
	if v, _ := f.engine.Volume(vol); !v.Encrypted() {
		t.Error("not encrypted")
	}
	if err := f.engine.Snapshot(t.Context(), engine.Cut{Volume: vol, Snapshot: snap1}); err != nil {
		t.Fatal(err)
	}
	c := order(9, 1, command.CloneVolume)
	c.Volume, c.Snapshot = vol2, snap1
	if out := f.agent.Obey(t.Context(), c); out.Err != nil || !out.Encrypted {
		t.Errorf("%+v", out)
	}
	plain := order(10, 1, command.CreateVolume)
	plain.Volume.UUID[5] = 1
	if err := f.obey(plain); err != nil {
		t.Fatal(err)
	}
	if v, _ := f.engine.Volume(plain.Volume); v.Encrypted() {
		t.Error("encrypted unasked")
	}
}

// TestShrink proves that a volume becomes smaller only while no host can reach it, so that an order
// that comes late takes nothing from one that is served again.
func TestShrink(t *testing.T) {
	f := build(t)
	for i, k := range []command.Kind{
		command.CreateVolume, command.ExportVolume, command.ResizeVolume, command.UnexportVolume,
		command.ResizeVolume, command.ResizeVolume,
	} {
		o, want := order(byte(i+1), 1, k), domain.Internal
		if k == command.ResizeVolume {
			o.Size = 4 * domain.MiB
		}
		if i == 2 {
			want = domain.Conflict
		}
		if err := f.obey(o); (err != nil) != (i == 2) || err != nil && domain.KindOf(err) != want {
			t.Fatalf("order %d, %s: %v", i, k, err)
		}
	}
	if v, ok := f.engine.Volume(vol); !ok || v.Size() != 4*domain.MiB {
		t.Errorf("%v", ok)
	}
}

// TestStaleToken proves that an older token is refused, also after a restart, and that an order is
// not obeyed when its token could not be made durable (A2).
func TestStaleToken(t *testing.T) {
	f := build(t)
	if err := f.obey(order(1, 5, command.CreateVolume)); err != nil {
		t.Fatal(err)
	}
	f.restart(t)
	if err := f.obey(order(2, 4, command.DeleteVolume)); !domain.IsKind(err, domain.Stale) {
		t.Fatalf("an old token got %v", err)
	}
	f.tokens.err = errors.New("disk full")
	if err := f.obey(order(3, 6, command.DeleteVolume)); err == nil {
		t.Fatal("obeyed with a token that is not durable")
	}
	if len(f.engine.Volumes()) != 1 {
		t.Fatal("the volume went")
	}
	f.tokens.err = nil
	if err := f.obey(order(3, 6, command.DeleteVolume)); err != nil {
		t.Fatal(err)
	}
}

// TestRestartServesNothing proves that a new agent exports only what it is told (A3).
func TestRestartServesNothing(t *testing.T) {
	f := exported(t)
	f.restart(t)
	if n := len(f.agent.Served()); n != 0 {
		t.Errorf("%d exports survived", n)
	}
	// The same order, sent again after the restart, must export again: it was obeyed by another.
	if err := f.obey(order(2, 1, command.ExportVolume)); err != nil {
		t.Fatal(err)
	}
	if len(f.front.list) != 1 {
		t.Error("not exported again")
	}
}

// TestRefusals proves the kinds of what cannot be obeyed, and that a front that refuses changes
// nothing.
func TestRefusals(t *testing.T) {
	f := build(t)
	elsewhere := order(1, 1, command.CreateVolume)
	elsewhere.Device = domain.DeviceID{UUID: domain.UUID{99}}
	for _, c := range []struct {
		o    command.Order
		kind domain.Kind
	}{
		{elsewhere, domain.NotFound},
		{order(2, 1, command.ExportVolume), domain.NotFound},
		{order(3, 1, command.CloneVolume), domain.NotFound},
		{order(8, 1, command.RollbackVolume), domain.NotFound},
		{order(4, 1, command.Kind(99)), domain.Unsupported},
		{order(5, 1, command.ResizeVolume), domain.NotFound},
	} {
		if err := f.obey(c.o); !domain.IsKind(err, c.kind) {
			t.Errorf("%s: %v, want %s", c.o.Kind, err, c.kind)
		}
	}
	if err := f.obey(order(6, 1, command.CreateVolume)); err != nil {
		t.Fatal(err)
	}
	f.front.err = domain.Errorf(domain.NotFound, "no such secret")
	if err := f.obey(order(7, 1, command.ExportVolume)); !domain.IsKind(err, domain.NotFound) {
		t.Errorf("a refusing front gave %v", err)
	}
	if len(f.agent.Served()) != 0 {
		t.Error("served although the front refused")
	}
	f.front.err = nil
	if err := f.obey(order(7, 1, command.ExportVolume)); err != nil {
		t.Errorf("tried again: %v", err)
	}
}

// TestLimits proves that an export's limits hold on its disk, that new ones take effect without a
// new disk, that limits alone make another export, and that they are lifted before the volume goes:
// what a limit holds back would hold up the front's end.
func TestLimits(t *testing.T) {
	f := exported(t)
	disk := f.front.list[0].Disk
	o := order(9, 1, command.ExportVolume)
	o.Export.IOPSMax, o.Export.BPSMax = 1, 4096
	for _, x := range []command.Export{{IOPSMax: 1}, {BPSMax: 1}} {
		if bytes.Equal(x.Digest(), (command.Export{}).Digest()) {
			t.Errorf("%+v has the digest of an export without limits", x)
		}
	}
	if err := f.obey(o); err != nil || f.front.list[0].Disk != disk {
		t.Fatalf("%v, the same disk: %t", err, f.front.list[0].Disk == disk)
	}
	const writes = 20
	done := make(completions, writes)
	for range writes {
		disk.Submit(&domain.IO{Op: domain.OpWrite, Len: 4096, Buf: make([]byte, 4096), To: done})
	}
	if n := disk.Delayed(); n < writes/2 {
		t.Errorf("%d of %d were held back", n, writes)
	}
	if err := f.agent.Stop(); err != nil {
		t.Fatal(err)
	}
	if l := disk.Limits(); l.IOPS != 0 || l.Bytes != 0 {
		t.Errorf("stopped, and %+v holds", l)
	}
	for range writes {
		if io := <-done; io.Err != nil {
			t.Error(io.Err)
		}
	}
}

// TestShare proves that what an export reserves, its weight and its burst reach its disk and change
// there without a new disk, and that each of them makes another export.
func TestShare(t *testing.T) {
	f := exported(t)
	disk := f.front.list[0].Disk
	o := order(9, 1, command.ExportVolume)
	seen := map[string]bool{string((command.Export{}).Digest()): true}
	for _, x := range []command.Export{
		{IOPSMin: 7},
		{BPSMin: 7},
		{Weight: 7},
		{BurstS: 7},
		{IOPSMin: 8},
		{BPSMin: 8},
		{Weight: 8},
		{BurstS: 8},
	} {
		if seen[string(x.Digest())] {
			t.Errorf("%+v has the digest of another export", x)
		}
		seen[string(x.Digest())] = true
	}
	o.Export.IOPSMax, o.Export.BurstS = 10, 3
	o.Export.IOPSMin, o.Export.BPSMin, o.Export.Weight = 5, 4096, 90
	if err := f.obey(o); err != nil || f.front.list[0].Disk != disk {
		t.Fatalf("%v, the same disk: %t", err, f.front.list[0].Disk == disk)
	}
	if x, want := disk.Share(), (qos.Share{IOPS: 5, Bytes: 4096, Weight: 90}); x != want {
		t.Errorf("%+v, want %+v", x, want)
	}
	if l, want := disk.Limits(), (qos.Limits{IOPS: 10, Burst: 3 * time.Second}); l != want {
		t.Errorf("%+v, want %+v", l, want)
	}
	// It waits for its turn on the device that others keep busy.
	others, held := f.engine.Scheduler().Flow(nil), &domain.IO{Op: domain.OpRead, Len: 4096}
	for range f.engine.Scheduler().Reading().Window {
		others.Admit(held)
	}
	done := make(completions, 1)
	disk.Submit(&domain.IO{Op: domain.OpWrite, Len: 4096, Buf: make([]byte, 4096), To: done})
	if n := disk.Queued(); n != 1 {
		t.Errorf("%d requests wait for a busy device", n)
	}
	others.Done(held)
	if io := <-done; io.Err != nil {
		t.Error(io.Err)
	}
	if err := f.obey(order(10, 1, command.ExportVolume)); err != nil || disk.Share() != (qos.Share{}) {
		t.Errorf("%v: %+v", err, disk.Share())
	}
}

type completions chan *domain.IO

func (c completions) Complete(io *domain.IO) { c <- io }

// TestReexportKeepsDisk proves that a new way to a volume leaves its disk, and with it the
// connections of the other protocols, in place.
func TestReexportKeepsDisk(t *testing.T) {
	f := exported(t)
	before := f.front.list[0].Disk
	o := order(9, 1, command.ExportVolume)
	o.Export.Target = "iqn.x"
	if err := f.obey(o); err != nil {
		t.Fatal(err)
	}
	if f.front.list[0].Disk != before || f.front.list[0].Export.Target != "iqn.x" {
		t.Errorf("%+v", f.front.list[0].Export)
	}
	if err := f.agent.Stop(); err != nil || len(f.front.list) != 0 {
		t.Errorf("after Stop %d served, %v", len(f.front.list), err)
	}
}

// TestDetach proves that orders reach a device that was attached, that one is not given up while a
// volume or a snapshot stands on it, and that no order reaches it afterwards.
func TestDetach(t *testing.T) {
	f := build(t)
	e2 := f.twoDevices(t)
	f.must(t, cutOrder(9, command.Cut{Volume: vol2, Device: device2, Snapshot: snap2}))
	gone := func(n byte, k command.Kind) {
		t.Helper()
		if err := f.agent.Detach(device2); domain.KindOf(err) != domain.Conflict {
			t.Fatalf("detached with something on it: %v", err)
		}
		o := order(n, 1, k)
		o.Volume, o.Device, o.Snapshot = vol2, device2, snap2
		f.must(t, o)
	}
	gone(20, command.DeleteVolume)
	gone(21, command.DeleteSnapshot)
	if err := f.agent.Detach(device2); err != nil {
		t.Fatal(err)
	}
	o := order(22, 1, command.CreateVolume)
	o.Volume, o.Device = vol2, device2
	if out := f.agent.Obey(t.Context(), o); domain.KindOf(out.Err) != domain.NotFound {
		t.Errorf("an order for a device that left: %v", out.Err)
	}
	if err := f.agent.Detach(device2); domain.KindOf(err) != domain.NotFound {
		t.Errorf("detached twice: %v", err)
	}
	f.agent.Attach(e2)
	o.ID = order(23, 1, command.CreateVolume).ID
	f.must(t, o)
}
