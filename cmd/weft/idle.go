package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

const (
	// idleEvery is how often a node looks whether it holds memory that it does not use.
	idleEvery = 30 * time.Second
	// idleAllocs is how many bytes a node that has nothing to do allocates in that time at most.
	idleAllocs = 32 << 20
	// idleSpare is how much unused memory is worth a collection.
	idleSpare = 16 << 20
)

// heap is what the runtime says of its memory, in bytes.
type heap struct {
	allocated uint64 // ever
	live      uint64 // what the last collection left
	held      uint64 // mapped for the heap and not given back
}

func readHeap() heap {
	s := []metrics.Sample{
		{Name: "/gc/heap/allocs:bytes"},
		{Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/unused:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
	}
	metrics.Read(s)
	return heap{
		allocated: s[0].Value.Uint64(), live: s[1].Value.Uint64(),
		held: s[2].Value.Uint64() + s[3].Value.Uint64() + s[4].Value.Uint64(),
	}
}

// idle tells whether a node that was looked at before has nothing to do and holds memory for
// nothing: after a load the collector keeps up to as much free as is live, for allocations that do
// not come.
func idle(before, now heap) bool {
	return now.allocated-before.allocated < idleAllocs && now.held > now.live+idleSpare
}

// startReturning gives the memory of a node that has become idle back to the system, until it is
// stopped. A node at work is left to the collector.
func startReturning() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		before := readHeap()
		for {
			pause(ctx, idleEvery)
			if ctx.Err() != nil {
				return
			}
			now := readHeap()
			if idle(before, now) {
				debug.FreeOSMemory()
				now = readHeap()
			}
			before = now
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}
}
