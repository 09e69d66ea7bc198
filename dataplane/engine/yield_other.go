//go:build !linux

package engine

import "runtime"

// yield lets other goroutines go.
func yield() { runtime.Gosched() }
