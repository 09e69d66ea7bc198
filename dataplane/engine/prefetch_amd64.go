package engine

import "unsafe"

// prefetch asks the processor to have the line of memory at p in its cache soon. p may be nil.
//
//go:noescape
func prefetch(p unsafe.Pointer)
