package tier

import "time"

// The bounds of a gap, in bytes.
const (
	GapMin = 32 << 10  // on a device for which one more read costs next to nothing
	GapMax = 512 << 10 // on one that turns, or that counts its operations
)

// perByte is what a byte more of a read is taken to cost: a gigabyte a second.
const perByte = time.Nanosecond

// ReadCost learns, from bursts of reads, what each costs a device beside its bytes. A flash device
// that does 100,000 reads a second costs nothing beside them; a disk that turns costs 8 ms, and a
// virtual one that is allowed 4,500 a second costs a fifth of one, as much as 200 KiB.
type ReadCost struct{ each time.Duration }

// Read gives what is known after a burst of so many reads, all under way at once, that took so
// long.
func (c ReadCost) Read(reads int, bytes int64, took time.Duration) ReadCost {
	const part = 8 // of what is known that one burst replaces
	if reads < 1 {
		return c
	}
	each := max(0, took-time.Duration(bytes)*perByte) / time.Duration(reads)
	return ReadCost{c.each + (each-c.each)/part}
}

// Gap gives up to how many bytes between two wanted ones are better read along than passed by with
// a read more.
func (c ReadCost) Gap() int { return int(min(max(c.each/perByte, GapMin), GapMax)) }
