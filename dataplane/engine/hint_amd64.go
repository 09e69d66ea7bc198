package engine

import "unsafe"

// prefetch asks the processor to have the line of memory at p in its cache soon. p may be nil.
//
//go:noescape
func prefetch(p unsafe.Pointer)

// pause tells the processor that the program waits for another one: for about 100 ns.
//
//go:noescape
func pause()
