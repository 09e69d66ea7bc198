package engine

import "testing"

// TestSeize proves that who waits awake for a lane's mutex gets it, and lets the next one wait so.
func TestSeize(t *testing.T) {
	e := open(t, newMem(t, smallSize, 64<<10, 1), quiet)
	defer e.Abandon()
	l := e.lanes[0]
	const each, hosts = 2000, 4
	var n int
	done := make(chan struct{})
	for range hosts {
		go func() {
			for range each {
				l.seize()
				n++
				l.mu.Unlock()
			}
			done <- struct{}{}
		}()
	}
	for range hosts {
		<-done
	}
	if n != hosts*each || l.spins.Load() {
		t.Errorf("%d of %d, somebody waits: %v", n, hosts*each, l.spins.Load())
	}
}
