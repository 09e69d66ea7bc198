package main

import (
	"testing"

	"weft/domain"
)

// TestSplitNVRAM proves that a size is taken from a flag's end only where one stands.
func TestSplitNVRAM(t *testing.T) {
	for s, want := range map[string]struct {
		path string
		size domain.Bytes
	}{
		"/mnt/pmem/weft":        {"/mnt/pmem/weft", 0},
		"/mnt/pmem/weft:8GiB":   {"/mnt/pmem/weft", 8 * domain.GiB},
		"/mnt/a:b/weft":         {"/mnt/a:b/weft", 0},
		"/mnt/a:b/weft:1048576": {"/mnt/a:b/weft", domain.MiB},
		":8GiB":                 {":8GiB", 0},
	} {
		if path, size := splitNVRAM(s); path != want.path || size != want.size {
			t.Errorf("%s: %s and %s", s, path, size)
		}
	}
}
