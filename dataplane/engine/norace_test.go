//go:build !race

package engine

const (
	raceOn        = false
	defaultImages = 14_000
)
