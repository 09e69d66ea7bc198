package main

import (
	"math/bits"
	"time"
)

// stepBits is how fine a histogram is: 2^stepBits steps for each doubling, 1.6 % of a value.
const stepBits = 6

// histogram counts durations in steps that grow with them. Its owner is one goroutine.
type histogram struct {
	counts [(64 - stepBits + 1) << stepBits]int64
	total  int64
}

func (h *histogram) add(d time.Duration) {
	h.counts[step(uint64(max(d, 0)))]++
	h.total++
}

// merge adds what another one holds.
func (h *histogram) merge(o *histogram) {
	for i, n := range o.counts {
		h.counts[i] += n
	}
	h.total += o.total
}

// step gives the place of a value: itself when small, else its leading bits and their place.
func step(v uint64) int {
	shift := max(bits.Len64(v)-stepBits-1, 0)
	return shift<<stepBits + int(v>>shift)
}

// least gives the smallest value of a step.
func least(i int) uint64 {
	shift := max(i>>stepBits-1, 0)
	return uint64(i-shift<<stepBits) << shift
}

// quantile gives the duration below which a part q of all lie, within one step.
func (h *histogram) quantile(q float64) time.Duration {
	want := int64(q * float64(h.total))
	for i, n := range h.counts {
		if want -= n; n > 0 && want <= 0 {
			return time.Duration((least(i) + least(i+1)) / 2)
		}
	}
	return 0
}
