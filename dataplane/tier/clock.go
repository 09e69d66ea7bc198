package tier

import "time"

// Clock is the time a journal's shell goes by.
type Clock struct {
	Now   func() time.Duration // since any instant; never falls
	Sleep func(time.Duration)
}

// System is the machine's own clock.
func System() Clock {
	began := time.Now()
	return Clock{Now: func() time.Duration { return time.Since(began) }, Sleep: time.Sleep}
}
