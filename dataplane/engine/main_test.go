package engine

import (
	"flag"
	"runtime"
	"runtime/debug"
	"testing"

	"go.uber.org/goleak"
)

// TestMain proves that whoever starts an engine's goroutines also ends them: none is left when all
// tests are through.
func TestMain(m *testing.M) {
	redoMax, redoBulk = 7, 2 // recovery lets blocks into the index in many small parts
	flag.Parse()
	goleak.VerifyTestMain(longMain{m})
}

// longMain is a testing.M that says at its end what a long run of the crash tests did.
type longMain struct{ *testing.M }

// Run runs all tests.
func (m longMain) Run() int {
	if *crashImages == 0 {
		return m.M.Run()
	}
	// All crash tests are to be under way at once; the run itself lets so many work as there are
	// processors.
	if err := flag.Set("test.parallel", "64"); err != nil {
		panic(err)
	}
	debug.SetGCPercent(400)
	long.start(*crashImages, runtime.GOMAXPROCS(0))
	code := m.M.Run()
	long.end()
	return code
}
