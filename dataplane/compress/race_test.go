//go:build race

package compress

// raceOn says that the race detector is on, which drops what pools hold.
const raceOn = true
