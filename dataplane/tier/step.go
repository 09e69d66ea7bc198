package tier

import "time"

// The fills, in parts of FillWhole, between which the journal is held.
const (
	FillWhole  = 1000
	FillStart  = 500 // destage begins
	FillSlow   = 700 // writers begin to wait
	fillLevel  = 780 // writers get the rate of the destage
	fillFactor = 4   // at FillWhole they get this part of it
)

// Limits of the controller.
const (
	// BatchMax is the most that is destaged at once, in bytes: enough to sort, little enough that the
	// room comes back smoothly. All of it is in memory twice, in the journal and in chunks.
	BatchMax = 16 << 20
	// batchPart is the part of a small journal that is destaged at once.
	batchPart = 16
	// DelayMax is the longest that one writer waits for its turn; who then finds no room waits for
	// the room itself.
	DelayMax = 20 * time.Millisecond
	// DelayMin is the shortest worth going to sleep for.
	DelayMin = 200 * time.Microsecond
	// rateFirst is the time per MiB that is assumed before anything was measured.
	rateFirst = 2 * time.Millisecond
	// rateWeight is the share of the newest measurement in the mean: one in so many.
	rateWeight = 4
)

// State is what the controller knows. The zero value is that of a journal never destaged.
type State struct {
	perMiB time.Duration // time that destaging a MiB takes, smoothed
	turn   time.Duration // of the clock: when the next writer may go on
}

// Batch gives how many bytes to destage now: none below FillStart, else a part of the journal,
// whose size is in bytes too. The fill moves up and down by as much.
func Batch(fill int, size int64) int64 {
	if fill < FillStart {
		return 0
	}
	return min(BatchMax, max(size/batchPart, 1))
}

// Destaged takes in that so many bytes were destaged in so long, those that were dropped included:
// what counts for writers is how fast room comes back.
func (s State) Destaged(bytes int64, took time.Duration) State {
	if bytes <= 0 || took < 0 {
		return s
	}
	now := time.Duration(float64(took) * (1 << 20) / float64(bytes))
	if s.perMiB == 0 {
		s.perMiB = now
		return s
	}
	s.perMiB += (now - s.perMiB) / rateWeight
	return s
}

// Admit gives how long a writer of so many bytes has to wait at a fill. Writers take turns on one
// clock, so together they keep the rate, however many they are. now is any rising clock.
func (s State) Admit(now time.Duration, bytes int64, fill int) (State, time.Duration) {
	if fill <= FillSlow {
		s.turn = now
		return s, 0
	}
	perMiB := s.perMiB
	if perMiB == 0 {
		perMiB = rateFirst
	}
	s.turn = max(s.turn, now) + time.Duration(float64(perMiB)*share(fill)*float64(bytes)/(1<<20))
	wait := s.turn - now
	switch {
	case wait < DelayMin:
		return s, 0 // it adds up
	case wait > DelayMax:
		s.turn = now + DelayMax // the clock of the turns must not run away while the fill falls
		wait = DelayMax
	}
	return s, wait
}

// share gives what a byte costs its writer, in times of destaging one: 0 at FillSlow, 1 at
// fillLevel, fillFactor when the journal is full.
func share(fill int) float64 {
	if fill <= fillLevel {
		return float64(fill-FillSlow) / (fillLevel - FillSlow)
	}
	return 1 + (fillFactor-1)*float64(fill-fillLevel)/(FillWhole-fillLevel)
}
