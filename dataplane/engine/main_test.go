package engine

import (
	"testing"

	"go.uber.org/goleak"
)

// TestMain proves that whoever starts an engine's goroutines also ends them: none is left when all
// tests are through.
func TestMain(m *testing.M) {
	redoMax, redoBulk = 7, 2 // recovery lets blocks into the index in many small parts
	goleak.VerifyTestMain(m)
}
