package nvram

import "unsafe"

// hasCLWB is set once, before any region is open. CLWB keeps the line in the cache; without it
// CLFLUSH, which every amd64 has, evicts it.
var hasCLWB = cpuid7()>>24&1 == 1

// persist writes the cache lines of n bytes at p back to memory and waits until they are on their
// way in order.
func persist(p unsafe.Pointer, n uintptr) {
	if hasCLWB {
		clwb(p, n)
		return
	}
	clflush(p, n)
}

// cpuid7 gives EBX of CPUID leaf 7, zero where the processor has no such leaf.
func cpuid7() uint32

//go:noescape
func clwb(p unsafe.Pointer, n uintptr)

//go:noescape
func clflush(p unsafe.Pointer, n uintptr)
