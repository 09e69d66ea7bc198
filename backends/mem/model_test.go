package mem

import (
	"math/rand/v2"
	"testing"

	"weft/backends"
)

// sectorModel is a second, naive idea of a power cut: per block the value that is surely there, and
// those that may have come over it since.
type sectorModel struct {
	sure map[int]byte
	may  map[int][]byte
}

// modelAt folds the first at operations of a history, and the one in flight.
func modelAt(ops []Op, at int, dur backends.Durability) sectorModel {
	m := sectorModel{sure: map[int]byte{}, may: map[int][]byte{}}
	for i, op := range ops[:min(at+1, len(ops))] {
		flying := i == at
		if op.Kind == OpFlush {
			if flying || dur == backends.Volatile {
				continue
			}
			for b, values := range m.may {
				m.sure[b] = values[len(values)-1]
			}
			clear(m.may)
			continue
		}
		value := byte(discarded)
		for s := range int(op.Len) / block {
			b := int(op.Off)/block + s
			if op.Kind == OpWrite {
				value = op.Data[s*block]
			}
			if !flying && (dur == backends.PowerSafe || dur == backends.NeedsFlush && op.FUA) {
				m.sure[b] = value
				delete(m.may, b)
				continue
			}
			m.may[b] = append(m.may[b], value)
		}
	}
	return m
}

// TestImagesAgainstModel makes random histories and proves for every cut and several choices that
// each block holds a value which the model allows, by the enumerator and by CrashImage alike; and
// that over many choices both the oldest and the newest allowed value occur.
func TestImagesAgainstModel(t *testing.T) {
	const blocks = 24
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 3))
		dur := backends.Durability(seed % 3)
		d := recorded(t, dur)
		for i := range 40 {
			at := r.IntN(blocks - 4)
			n := 1 + r.IntN(4)
			switch r.IntN(8) {
			case 0:
				if err := d.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
			case 1:
				if err := d.Discard(t.Context(), int64(at*block), int64(n*block)); err != nil {
					t.Fatal(err)
				}
			default:
				write(t, d, at, n, byte(i+1), r.IntN(4) == 0)
			}
		}
		oldest, newest, open := 0, 0, 0
		for e := d.Enumerate(); e.Next(); {
			m := modelAt(d.History(), e.At(), dur)
			for choice := range uint64(4) {
				image := e.Image(Random(choice))
				if !image.Equal(d.CrashImage(e.At(), Random(choice))) {
					t.Fatalf("seed %d at %d: two images of one cut differ", seed, e.At())
				}
				o, n, all := judge(t, image, m, blocks)
				oldest, newest, open = oldest+o, newest+n, open+all
			}
		}
		if oldest < open/10 || newest < open/10 {
			t.Errorf("seed %d: of %d open blocks %d old, %d new", seed, open, oldest, newest)
		}
	}
}

func judge(t *testing.T, image *Device, m sectorModel, blocks int) (oldest, newest, open int) {
	t.Helper()
	p := backends.AlignedBuffer(block)
	for b := range blocks {
		if err := image.ReadAt(p, int64(b*block)); err != nil {
			t.Fatal(err)
		}
		values := append([]byte{m.sure[b]}, m.may[b]...)
		ok := false
		for _, v := range values {
			ok = ok || p[0] == v
		}
		if !ok || p[0] != p[block-1] {
			t.Fatalf("block %d holds %d..%d, allowed %v", b, p[0], p[block-1], values)
		}
		if len(values) < 2 {
			continue
		}
		open++
		if p[0] == values[0] {
			oldest++
		}
		if p[0] == values[len(values)-1] {
			newest++
		}
	}
	return oldest, newest, open
}
