package compress

// A sample is sampleRuns runs of sampleRun bytes, evenly spread over a block.
const (
	sampleRuns = 16
	sampleRun  = 16
	samples    = sampleRuns * sampleRun
	// denseMost is the most pairs of equal bytes among the samples of what counts as incompressible:
	// random bytes have 127 on average with a deviation of 11, bytes of 7 bits of entropy 255.
	denseMost = 180
)

// Dense tells, by a sample, whether a block is most likely not worth a try: its bytes are spread
// like random ones. What repeats itself far apart is not seen to.
func Dense(block []byte) bool {
	var count [256]uint8
	pairs := 0
	for run := range sampleRuns {
		at := run * (Block / sampleRuns)
		for _, b := range block[at : at+sampleRun] {
			pairs += int(count[b])
			if count[b]++; pairs > denseMost {
				return false
			}
		}
	}
	return true
}

// Limits of a Backoff.
const (
	backoffAfter = 8   // blocks in a row that did not become smaller
	backoffMax   = 128 // blocks that are passed by at the most
)

// Backoff says which blocks of a stream are worth a try. After some that were not, it passes by
// one, then two, then four, up to backoffMax between two tries; one that becomes smaller ends that.
// The zero value is ready. It belongs to one goroutine.
type Backoff struct {
	misses, skip uint8
}

// Try tells whether to try the next block.
func (b *Backoff) Try() bool {
	if b.skip > 0 {
		b.skip--
		return false
	}
	return true
}

// Tell notes what became of a block that was tried.
func (b *Backoff) Tell(smaller bool) {
	switch {
	case smaller:
		*b = Backoff{}
	case b.misses < backoffAfter:
		b.misses++
	default:
		b.skip = uint8(min(1<<(b.misses-backoffAfter), backoffMax))
		if b.skip < backoffMax {
			b.misses++
		}
	}
}
