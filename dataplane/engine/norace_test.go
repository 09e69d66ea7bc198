//go:build !race

package engine

const (
	raceOn        = false
	defaultImages = 12_500
)
