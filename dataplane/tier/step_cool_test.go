package tier

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestCool proves what goes to the disk at which fill: nothing up to FlashCool, as much as comes in
// at FlashFull, more beyond, never less at a higher fill, and nothing for nothing.
func TestCool(t *testing.T) {
	const came = 100 << 20
	last := int64(0)
	for fill := 0; fill <= 2*FillWhole; fill++ {
		n := Cool(fill, came)
		if n < last || fill <= FlashCool && n != 0 || fill > FlashCool && n == 0 || Cool(fill, 0) != 0 {
			t.Fatalf("at %d: %d, before %d", fill, n, last)
		}
		last = n
	}
	if n := Cool(FlashFull, came); n != came {
		t.Errorf("at FlashFull: %d of %d", n, came)
	}
	if n := Cool(FillWhole, came); n != coolFactor*came {
		t.Errorf("full: %d of %d", n, came)
	}
	if Slow(FlashFull) != FillSlow || Slow(FillWhole) != FillWhole {
		t.Errorf("slowed at %d and %d", Slow(FlashFull), Slow(FillWhole))
	}
}

// TestFlashSettles proves the controller on a model of a pair: whatever the writers' rate and that
// of the disk, the flash never fills. Where the disk keeps up, nobody waits and the fill stays at
// or below FlashFull; where it does not, writers get about its rate and none waits longer than
// DelayMax.
func TestFlashSettles(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 16 {
		const step, record, flash = time.Millisecond, 256 << 10, 2 << 30
		disk, writer := float64(50<<20)*(1+3*rnd.Float64()), float64(20<<20)*(1+30*rnd.Float64())
		s, fill, debt, at, longest := State{}, 0.0, 0.0, time.Duration(0), time.Duration(0)
		high, passed, delayed := 0.0, 0.0, 0
		for now := time.Duration(0); now < 240*time.Second; now += step {
			parts := int(fill / flash * FillWhole)
			came := 0.0
			for at <= now {
				var wait time.Duration
				if parts > FlashFull {
					s, wait = s.Admit(now, record, Slow(parts))
				}
				longest = max(longest, wait)
				if wait > 0 {
					delayed++
				}
				at += wait + time.Duration(record/writer*float64(time.Second))
				came += record
			}
			fill += came
			debt += float64(Cool(parts, int64(came)))
			n := min(debt, disk*step.Seconds())
			fill, debt = fill-n, debt-n
			if n > 0 {
				s = s.Destaged(int64(disk), time.Second)
			}
			high = max(high, fill/flash)
			if now >= 120*time.Second {
				passed += came
			}
		}
		rate := passed / 120
		t.Logf("disk %4.0f, writer %4.0f: %4.0f MiB/s, fill up to %.2f, longest %v", disk/(1<<20),
			writer/(1<<20), rate/(1<<20), high, longest)
		switch {
		case high >= 1 || longest > DelayMax:
			t.Errorf("fill up to %.2f, somebody waited %v", high, longest)
		case writer < 0.95*disk && (delayed > 0 || high > 0.81):
			t.Errorf("slowed %d times without need, fill up to %.2f", delayed, high)
		case writer > 1.2*disk && (rate < 0.85*disk || rate > 1.15*disk):
			t.Errorf("writers get %.0f of %.0f", rate, disk)
		}
	}
}
