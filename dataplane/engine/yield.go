package engine

// stintMax is how many blocks a goroutine of the device's own work sees to before it lets other
// threads go: that is 30 to 100 us.
const stintMax = 64

// stint counts what such a goroutine has done since. A thread that was woken for a host, because
// its write is on the device, may have to wait for as long as the kernel lets the one before it
// run, 1 to 3 ms, also where another processor is idle.
type stint struct{ blocks int }

// did notes blocks that were seen to. No lock is held.
func (s *stint) did(blocks int) {
	if s.blocks += blocks; s.blocks >= stintMax {
		s.blocks = 0
		yield()
	}
}
