//go:build !linux

package backends

// huge does nothing where the system offers no such advice.
func huge([]byte) {}
