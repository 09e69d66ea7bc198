package tier

import (
	"testing"
	"time"
)

// TestGap proves that pieces are read apart where reads cost little, along with what lies between
// where they cost much, and that one slow burst does not decide.
func TestGap(t *testing.T) {
	after := func(c ReadCost, bursts, reads int, took time.Duration) ReadCost {
		for range bursts {
			c = c.Read(reads, 1<<20, took)
		}
		return c
	}
	flash := after(ReadCost{}, 100, 30, 700*time.Microsecond)
	if got := flash.Gap(); got != GapMin {
		t.Errorf("flash: %d", got)
	}
	if got := after(flash, 1, 30, 40*time.Millisecond).Gap(); got > 200<<10 {
		t.Errorf("flash after one slow burst: %d", got)
	}
	if got := after(flash, 100, 30, 7*time.Millisecond).Gap(); got < 150<<10 || got > 250<<10 {
		t.Errorf("4,500 reads a second: %d", got)
	}
	disk := after(ReadCost{}, 100, 30, 240*time.Millisecond)
	if got := disk.Gap(); got != GapMax {
		t.Errorf("a disk that turns: %d", got)
	}
	if got := after(disk, 100, 30, 700*time.Microsecond).Gap(); got != GapMin {
		t.Errorf("flash in its place: %d", got)
	}
	if got := (ReadCost{}).Read(0, 0, time.Hour).Gap(); got != GapMin {
		t.Errorf("no reads: %d", got)
	}
}
