package engine

import (
	"context"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"weft/backends"
	"weft/backends/faulty"
	"weft/backends/mem"
	"weft/dataplane/segment"
	"weft/domain"
)

// TestOpenRefusals proves that a device is only opened by its own cluster and only when it is
// whole: none, another cluster, shrunk, no anchor, a device that fails.
func TestOpenRefusals(t *testing.T) {
	raw, err := mem.New(mem.Config{Size: smallSize, Durability: backends.NeedsFlush})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Device: raw, Cluster: testCluster, Node: 1}
	_, err = Open(background, cfg)
	kindOf(t, err, domain.NotFound)
	_, _, err = Probe(raw)
	kindOf(t, err, domain.NotFound)
	dev := newMem(t, smallSize, 64<<10, 1)
	cfg.Device, cfg.Cluster = dev, domain.ClusterID{UUID: domain.UUID{99}}
	_, err = Open(background, cfg)
	kindOf(t, err, domain.Denied)
	if d, c, err := Probe(dev); d != testDevice || c != testCluster || err != nil {
		t.Errorf("%v %v %v", d, c, err)
	}
	cfg.Cluster = testCluster
	bad := harmed(t, dev, "read 69632+4096 eio")
	cfg.Device = bad
	_, err = Open(background, cfg)
	kindOf(t, err, domain.Unavailable)
	clearAt(t, dev, segment.AnchorOff, segment.AnchorSlots*segment.Sector)
	cfg.Device = dev
	_, err = Open(background, cfg)
	kindOf(t, err, domain.Corrupt)
	if err := Format(background, dev, FormatOptions{
		Cluster: testCluster, Device: testDevice, SegmentSize: 64 << 10, Force: true,
	}); err != nil {
		t.Fatal(err)
	}
	small, err := mem.New(mem.Config{Size: smallSize - 1<<20, Durability: backends.NeedsFlush})
	if err != nil {
		t.Fatal(err)
	}
	first := backends.AlignedBuffer(segment.DataOff)
	if err := dev.ReadAt(first, 0); err != nil {
		t.Fatal(err)
	}
	if err := small.WriteAt(first, 0, true); err != nil {
		t.Fatal(err)
	}
	cfg.Device = small
	_, err = Open(background, cfg)
	kindOf(t, err, domain.Corrupt)
}

// TestFormatRefusals proves that Format neither destroys what is there nor makes what Open would
// not take: too small, no id, too many lanes, odd segments, formatted already, and a device that
// cannot be read, which may hold somebody's data.
func TestFormatRefusals(t *testing.T) {
	raw, err := mem.New(mem.Config{Size: smallSize, Durability: backends.NeedsFlush})
	if err != nil {
		t.Fatal(err)
	}
	good := FormatOptions{Cluster: testCluster, Device: testDevice, SegmentSize: 64 << 10}
	for name, spoil := range map[string]func(o *FormatOptions){
		"too small":     func(o *FormatOptions) { o.SegmentSize = 1 << 20 },
		"default size":  func(o *FormatOptions) { o.SegmentSize = 0 },
		"no id":         func(o *FormatOptions) { o.Device = domain.DeviceID{} },
		"lanes":         func(o *FormatOptions) { o.Lanes = 17 },
		"many lanes":    func(o *FormatOptions) { o.Lanes = 8 },
		"odd segments":  func(o *FormatOptions) { o.SegmentSize = 64<<10 + 512 },
		"tiny segments": func(o *FormatOptions) { o.SegmentSize = 4096 },
		"negative":      func(o *FormatOptions) { o.SegmentSize = -4096 },
	} {
		o := good
		spoil(&o)
		if err := Format(background, raw, o); !domain.IsKind(err, domain.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if raw.Stats().Writes != 0 {
		t.Errorf("%d writes by refused formats", raw.Stats().Writes)
	}
	if err := Format(background, raw, good); err != nil {
		t.Fatal(err)
	}
	e := open(t, raw)
	v := create(t, e, 4*domain.MiB)
	if err := put(v, data(0, 1, 5)); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	kindOf(t, Format(background, raw, good), domain.Exists)
	blind := faulty.New(raw, nil, faulty.Rule{On: faulty.Read, Err: backends.ErrMedia})
	kindOf(t, Format(background, blind, good), domain.Unavailable)
	e = open(t, raw)
	check(t, mustVolume(t, e), 0, 5)
	e.Abandon()
}

// TestFormatAnew formats a used device again under its old id, with a log full of chunks on it that
// verify: nothing of them comes back, in this life or the next, and the whole device is free.
func TestFormatAnew(t *testing.T) {
	dev := newMem(t, smallSize, 64<<10, 1)
	e := open(t, dev)
	v := create(t, e, 16*domain.MiB)
	for i := range uint64(600) {
		if err := put(v, data(i%100, 1, i+1)); err != nil {
			t.Fatal(err)
		}
	}
	e.Abandon()
	if err := Format(background, dev, FormatOptions{
		Cluster: testCluster, Device: testDevice, SegmentSize: 64 << 10, Force: true,
	}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		e = open(t, dev)
		if n := len(e.Volumes()); n != 0 {
			t.Fatalf("%d volumes", n)
		}
		if st := e.Stats(); st.LiveBytes != 0 || st.FreeSegments < st.Segments-6 {
			t.Errorf("%+v", st)
		}
		e.Abandon()
	}
}

// TestAnchorIsTwice proves that a rotten sector in the ring of anchors never brings back an older
// checkpoint, and that losing both copies of the newest is noticed as soon as a segment was opened
// behind it: the older anchor's segments may be in other use.
func TestAnchorIsTwice(t *testing.T) {
	dev := recorded(t, smallSize, 64<<10, 1)
	e := open(t, dev)
	v := create(t, e, 16*domain.MiB)
	for i := range uint64(50) {
		if err := put(v, data(i%5, 1, i+1)); err != nil {
			t.Fatal(err)
		}
		if i%10 == 0 {
			if err := e.Checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
	}
	newest := segment.AnchorPlace(e.maint.anchorSeq)
	e.Abandon()
	for copy := range int64(segment.AnchorCopies) {
		img := copyOf(dev)
		clearAt(t, img, newest+copy*segment.Sector, segment.Sector)
		e := open(t, img, func(c *Config) { c.Report = func(f Fact) { t.Errorf("%+v", f) } })
		check(t, mustVolume(t, e), 4, 50)
		e.Abandon()
	}
	img := copyOf(dev)
	clearAt(t, img, newest, segment.AnchorCopies*segment.Sector)
	_, err := Open(background, Config{Device: img, Cluster: testCluster, Node: 1})
	kindOf(t, err, domain.Corrupt)
}

// TestCutStaysCut is R13 and R14: a log ends in chunks that a crash left behind an absent one, so
// recovery cuts them. The next life writes on, with flush marks far above them, and crashes before
// any checkpoint of its own: neither it nor the one after takes the cut chunks for its log.
func TestCutStaysCut(t *testing.T) {
	dev := newMem(t, 12<<20, 256<<10, 1)
	e := open(t, dev, quiet)
	v := create(t, e, 16*domain.MiB)
	for i := range uint64(6) {
		if err := put(v, data(i, 1, i+1)); err != nil {
			t.Fatal(err)
		}
	}
	chunks := logged(t, e, 0)
	gap := len(chunks) - 3
	e.Abandon()
	// Blocks 3, 4 and 5 were in flight together: 3 is lost, and the others say so.
	clearAt(t, dev, chunks[gap].off, int64(chunks[gap].h.Bytes()))
	for _, p := range chunks[gap+1:] {
		restamp(t, dev, p, func(c *segment.Chunk) { c.FlushMark = chunks[gap-1].h.LSN })
	}
	for life := range uint64(4) {
		e = open(t, dev, quiet, func(c *Config) {
			c.Report = func(f Fact) { t.Errorf("life %d: reported %+v", life, f) }
		})
		v = mustVolume(t, e)
		check(t, v, 2, 3)
		for b := uint64(3); b < 6; b++ {
			check(t, v, b, 0)
		}
		for i := range 20 * life {
			if err := put(v, data(100+i, 1, 100*life+i)); err != nil {
				t.Fatal(err)
			}
		}
		e.Abandon()
	}
}

// TestFooterProves proves that the footer of a sealed segment stands for every chunk in it: a chunk
// damaged since, with nothing else that proves it, is corruption, reported, and not the end of the
// log; while without a footer the same damage is a torn tail.
func TestFooterProves(t *testing.T) {
	for _, footer := range []bool{true, false} {
		dev := newMem(t, smallSize, 64<<10, 1)
		e := open(t, dev, quiet)
		v := create(t, e, 16*domain.MiB)
		i := uint64(0)
		for e.space.served.Load() < 2 {
			if err := put(v, data(i, 1, i+1)); err != nil {
				t.Fatal(err)
			}
			i++
		}
		chunks := logged(t, e, 0)
		for full := e.space.at(chunks[0].off); !e.space.sealed(full); {
			runtime.Gosched() // the footer may come behind the outcome of the last record
		}
		e.Abandon()
		first := chunks[0].h.Sequence
		for k, p := range chunks {
			if p.h.Sequence != first {
				clearAt(t, dev, p.off, int64(p.h.Bytes())) // what followed the sealed segment is gone
				chunks = chunks[:k]
				break
			}
		}
		last := chunks[len(chunks)-1]
		id := (last.off - e.space.first) / e.space.size
		if err := dev.FlipBit(last.off+int64(last.h.HeaderBytes())+5, 1); err != nil {
			t.Fatal(err)
		}
		if !footer {
			clearAt(t, dev, e.space.off(uint32(id+1))-segment.Sector, segment.Sector)
		}
		e = open(t, dev)
		v = mustVolume(t, e)
		got, err := holds(v, uint64(len(chunks)-2))
		if footer {
			kindOf(t, err, domain.Corrupt)
		} else if err != nil || got != 0 {
			t.Errorf("without a footer: %d, %v", got, err)
		}
		check(t, v, uint64(len(chunks)-3), uint64(len(chunks)-2))
		e.Abandon()
	}
}

// TestRecoveryIsBounded proves that checkpoints bound the log (E8): what a recovery reads does not
// grow with what was ever written, only with the log since the last checkpoint and the index.
func TestRecoveryIsBounded(t *testing.T) {
	const limit = 2 << 20
	dev := newMem(t, 96<<20, 1<<20, 1)
	most := int64(0)
	for round := range 4 {
		e := open(t, dev, func(c *Config) { c.CheckpointBytes = limit })
		v := create(t, e, 16*domain.MiB)
		for i := range uint64(1500) {
			if err := put(v, data(i*7%2000, 1, i+1)); err != nil {
				t.Fatal(err)
			}
		}
		if err := e.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		for i := range uint64(100) {
			if err := put(v, data(i*7%2000, 1, i+1)); err != nil {
				t.Fatal(err)
			}
		}
		since := e.Stats().SinceCheckpoint
		index := e.space.index.Load()
		segments := e.Stats().Segments
		e.Abandon()
		before := dev.Stats().ReadBytes
		e = open(t, dev, quiet)
		read := dev.Stats().ReadBytes - before
		fixed := segments*2*segment.Sector + segment.AnchorSlots*segment.Sector + 16*segment.Sector
		bound := fixed + 2*index + since + 2*e.space.size
		if read > bound {
			t.Errorf("round %d: %d bytes read, bound %d, %d of log", round, read, bound, since)
		}
		if round > 0 && read > most*5/4 {
			t.Errorf("round %d: %d bytes read, before %d", round, read, most)
		}
		most = max(most, read)
		before = dev.Stats().ReadBytes
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		e = open(t, dev, quiet)
		if clean := dev.Stats().ReadBytes - before; clean > fixed+2*index {
			t.Errorf("round %d: %d bytes read after a clean stop", round, clean)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestIdleWritesNothing is E15: once all has its outcome, an engine left alone for a day of fake
// time touches the device no more, and neither does one that only reads.
func TestIdleWritesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dev := newMem(t, smallSize, 64<<10, 2)
		e := open(t, dev, often)
		defer e.Abandon()
		v := create(t, e, 16*domain.MiB)
		for i := range uint64(300) {
			if err := put(v, data(i%150, 1, i+1)); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		was := dev.Stats()
		check(t, v, 1, 152)
		day := context.Background()
		day, cancel := context.WithTimeout(day, 24*time.Hour)
		defer cancel()
		<-day.Done()
		synctest.Wait()
		if now := dev.Stats(); now.Writes != was.Writes || now.Flushes != was.Flushes {
			t.Errorf("%+v, then %+v", was, now)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
