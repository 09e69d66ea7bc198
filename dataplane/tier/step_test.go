package tier

import (
	"math/rand/v2"
	"testing"
	"time"
)

const size = 256 << 20

// TestBatch proves when destaging starts and how much it takes at once: nothing below half, always
// something from half on, a sixteenth of a small journal and never more than the limit.
func TestBatch(t *testing.T) {
	for fill := range FillStart {
		if n := Batch(fill, size); n != 0 {
			t.Fatalf("at %d: %d", fill, n)
		}
	}
	for fill := FillStart; fill <= FillWhole; fill++ {
		if a, b, c := Batch(fill, 5), Batch(fill, size), Batch(fill, 1<<40); a != 1 ||
			b != size/batchPart || c != BatchMax {
			t.Fatalf("at %d: %d, %d, %d", fill, a, b, c)
		}
	}
}

// TestNobodyWaitsBelow proves that no writer waits up to FillSlow.
func TestNobodyWaitsBelow(t *testing.T) {
	s := State{}.Destaged(1<<20, time.Second)
	for i := range 1000 {
		var wait time.Duration
		if s, wait = s.Admit(time.Duration(i), 1<<20, FillSlow); wait != 0 {
			t.Fatalf("waits %v", wait)
		}
	}
}

// plant is a journal with a device below it that destages at a rate, and writers that write as fast
// as they are let, each its next record when the last one's wait is over.
type plant struct {
	s       State
	now     time.Duration
	fill    float64 // bytes
	device  float64 // bytes per second
	writers []time.Duration
	record  int64
	pause   time.Duration // of a writer between two records
	written float64
	longest time.Duration
	low, hi float64
}

func (p *plant) parts() int { return int(p.fill / size * FillWhole) }

// run lets time pass in steps; of what a batch holds the fill falls when it is done.
func (p *plant) run(d time.Duration, settled bool) {
	const step = 20 * time.Microsecond
	var batch, left float64
	var began time.Duration
	for end := p.now + d; p.now < end; p.now += step {
		for i, at := range p.writers {
			if at > p.now || p.fill+float64(p.record) > size {
				continue
			}
			var wait time.Duration
			p.s, wait = p.s.Admit(p.now, p.record, p.parts())
			p.longest = max(p.longest, wait)
			p.writers[i] = p.now + wait + p.pause
			p.fill += float64(p.record)
			p.written += float64(p.record)
		}
		if batch == 0 {
			if n := Batch(p.parts(), size); n > 0 {
				batch, left, began = float64(n), float64(n), p.now
			}
		}
		if left -= p.device * step.Seconds(); batch > 0 && left <= 0 {
			p.fill -= batch
			p.s = p.s.Destaged(int64(batch), p.now-began)
			batch = 0
		}
		if settled {
			p.low, p.hi = min(p.low, p.fill/size), max(p.hi, p.fill/size)
		}
	}
}

// TestHoldsTheFill proves the controller on a model of a device, for many rates of writers and of
// the device, one of them far slower than the other: writers that are slower than the device are
// never slowed and the fill stays in the band; faster ones get the device's rate, the journal never
// fills, and nobody waits longer than the limit.
func TestHoldsTheFill(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 16 {
		p := &plant{
			device:  float64(100<<20) * (1 + 14*rnd.Float64()),
			writers: make([]time.Duration, 1+rnd.IntN(64)),
			record:  int64(4096 << rnd.IntN(6)),
			pause:   time.Duration(20+rnd.IntN(3000)) * time.Microsecond,
			low:     1,
		}
		p.run(4*time.Second, false)
		before := p.written
		p.run(2*time.Second, true)
		rate, asked := (p.written-before)/2, float64(len(p.writers))*float64(p.record)/p.pause.Seconds()
		t.Logf("device %4.0f MiB/s, %2d writers of %3d KiB: %4.0f of %5.0f MiB/s, fill %.2f to %.2f, "+
			"longest %v", p.device/(1<<20), len(p.writers), p.record>>10, rate/(1<<20), asked/(1<<20),
			p.low, p.hi, p.longest)
		if p.longest > DelayMax {
			t.Errorf("somebody waited %v", p.longest)
		}
		if asked < 0.9*p.device {
			if p.hi > 0.6 || rate < 0.95*asked {
				t.Errorf("slowed without need: %v of %v, fill up to %v", rate, asked, p.hi)
			}
			continue
		}
		if rate < 0.9*p.device || rate > 1.1*p.device {
			t.Errorf("writers get %v of %v", rate, p.device)
		}
		if p.low < 0.7 || p.hi > 0.88 {
			t.Errorf("fill from %v to %v", p.low, p.hi)
		}
	}
}

// TestDestagedIsSmooth proves that one slow batch does not stop writers, and that nonsense changes
// nothing.
func TestDestagedIsSmooth(t *testing.T) {
	s := State{}.Destaged(1<<20, time.Millisecond)
	one := s.Destaged(1<<20, 5*time.Millisecond)
	if one.perMiB != 2*time.Millisecond {
		t.Errorf("after one slow batch: %v", one.perMiB)
	}
	if s.Destaged(0, time.Second) != s || s.Destaged(1, -1) != s {
		t.Error("nonsense counted")
	}
}

// TestDelayHasAnEnd proves that a device that all but stands still holds a writer back no longer
// than DelayMax at a time, and that the turns of those before do not add up for who comes when it
// is well again.
func TestDelayHasAnEnd(t *testing.T) {
	s := State{}.Destaged(1<<20, 10*time.Second)
	var wait time.Duration
	for range 100 {
		if s, wait = s.Admit(0, 1<<20, FillWhole); wait != DelayMax {
			t.Fatalf("waits %v", wait)
		}
	}
	if s.turn != DelayMax {
		t.Errorf("the next turn is at %v", s.turn)
	}
	if _, wait = s.Admit(DelayMax, 1<<20, FillSlow); wait != 0 {
		t.Errorf("waits %v where nobody has to", wait)
	}
}
