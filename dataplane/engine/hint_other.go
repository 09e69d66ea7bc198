//go:build !amd64

package engine

import "unsafe"

// prefetch does nothing on this processor.
func prefetch(unsafe.Pointer) {}

// pause would tell the processor that the program waits for another one.
func pause() {}
