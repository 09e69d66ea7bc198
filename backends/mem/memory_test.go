package mem

import (
	"encoding/binary"
	"errors"
	"testing"

	"weft/backends"
)

func word(m *Memory, off int64) uint64 { return binary.LittleEndian.Uint64(m.Bytes()[off:]) }

func put(m *Memory, off int64, v uint64) { binary.LittleEndian.PutUint64(m.Bytes()[off:], v) }

// TestMemoryCuts proves what a power cut leaves (B1, B2): what was persisted before, always; what
// was stored and not persisted, word by word, as far as it is asked for; nothing that was stored
// later, and nothing else.
func TestMemoryCuts(t *testing.T) {
	m, err := NewMemory(8192, backends.PowerSafe)
	if err != nil {
		t.Fatal(err)
	}
	put(m, 0, 1) // before the history: durable
	taken := 7
	m.StartHistory(func() int { return taken })
	put(m, 8, 2)
	put(m, 4096, 3)
	m.Persist(8, 1) // its whole word
	taken = 9
	put(m, 0, 4)
	put(m, 16, 5)
	m.Persist(4096, 8)
	m.Stop()
	m.Stop()
	if m.Mark() != 3 || m.Clock(0) != 7 || m.Clock(1) != 9 {
		t.Fatalf("%d points, at %d and %d", m.Mark(), m.Clock(0), m.Clock(1))
	}
	cases := []struct {
		at   int
		keep float64
		want [4]uint64 // at 0, 8, 16, 4096
	}{
		{0, 0, [4]uint64{1, 0, 0, 0}},
		{0, 1, [4]uint64{1, 2, 0, 3}},
		{1, 0, [4]uint64{1, 2, 0, 0}},
		{1, 1, [4]uint64{4, 2, 5, 3}},
		{2, 0, [4]uint64{1, 2, 0, 3}},
		{2, 1, [4]uint64{4, 2, 5, 3}},
		{3, 1, [4]uint64{1, 2, 0, 3}},
		{0, 0, [4]uint64{1, 0, 0, 0}}, // back to the past
	}
	for _, c := range cases {
		img := m.CrashImage(c.at, c.keep, 1)
		got := [4]uint64{word(img, 0), word(img, 8), word(img, 16), word(img, 4096)}
		if got != c.want {
			t.Errorf("cut at %d, keeping %v: %v, not %v", c.at, c.keep, got, c.want)
		}
	}
	kept := map[[2]bool]bool{}
	for seed := range uint64(64) {
		img := m.CrashImage(0, 0.5, seed)
		kept[[2]bool{word(img, 8) != 0, word(img, 4096) != 0}] = true
	}
	if len(kept) != 4 {
		t.Errorf("two words were torn in %d ways, not 4", len(kept))
	}
	if c := m.Clone(); word(c, 16) != 5 || c.Geometry().Durability != backends.PowerSafe {
		t.Error("the clone is another")
	}
	if _, err := NewMemory(100, backends.PowerSafe); !errors.Is(err, backends.ErrAlign) {
		t.Errorf("100 bytes: %v", err)
	}
}
