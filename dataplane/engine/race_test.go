//go:build race

package engine

// The race detector makes everything five to ten times slower: fewer of the same.
const (
	raceOn        = true
	defaultImages = 1_500
)
