package engine

import (
	"testing"

	"go.uber.org/goleak"
)

// TestMain proves that whoever starts an engine's goroutines also ends them: none is left when all
// tests are through.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
