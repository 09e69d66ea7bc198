package engine

// stintMax is how many blocks the cleaner sees to before it lets other threads go: that is 30 to
// 100 us.
const stintMax = 64

// giveWay lets other threads go before the device's own work goes on, unless that is in a hurry. No
// lock is held. A thread that was woken for a host, because its write is on the device, may else
// have to wait for as long as the kernel lets the one before it run, 1 to 3 ms, also where another
// processor is idle.
func (e *Engine) giveWay() {
	if !e.hurried() {
		yield()
	}
}
