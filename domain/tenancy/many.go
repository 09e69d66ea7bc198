package tenancy

import (
	"iter"
	"slices"
)

// blockLen is how many elements a block of a list has. An addition copies half as many.
const blockLen = 64

// many is a list as a value: who holds one keeps seeing what it held, whatever follows from it. A
// tenant holds ten thousands of objects, and copying all of them at each event made the first
// command behind a start wait for seconds.
//
//	full: [64][64][..]  never changed, shared by all lists that follow; fewer where some were removed
//	last: [...]         fewer than 64, copied at each addition
type many[T any] struct {
	full [][]T
	last []T
	n    int
}

// Len counts the elements.
func (m many[T]) Len() int { return m.n }

// newest gives the youngest element of a list that has one.
func (m many[T]) newest() T {
	if len(m.last) > 0 {
		return m.last[len(m.last)-1]
	}
	block := m.full[len(m.full)-1]
	return block[len(block)-1]
}

// All gives the elements, the eldest first.
func (m many[T]) All() iter.Seq[T] {
	return func(yield func(T) bool) {
		for _, block := range m.full {
			for _, x := range block {
				if !yield(x) {
					return
				}
			}
		}
		for _, x := range m.last {
			if !yield(x) {
				return
			}
		}
	}
}

// with gives the list with one more element.
func (m many[T]) with(x T) many[T] {
	m.n++
	m.last = append(slices.Clip(m.last), x)
	if len(m.last) == blockLen {
		m.full, m.last = append(slices.Clip(m.full), m.last), nil
	}
	return m
}

// without gives the list without some elements. Each is judged once, the youngest first; blocks of
// which all stay are shared.
func (m many[T]) without(gone func(x T) bool) many[T] {
	out := many[T]{last: keep(m.last, gone), full: make([][]T, 0, len(m.full))}
	out.n = len(out.last)
	for _, block := range slices.Backward(m.full) {
		if block = keep(block, gone); len(block) > 0 {
			out.full = append(out.full, block)
			out.n += len(block)
		}
	}
	slices.Reverse(out.full)
	return out
}

// keep gives the elements of a block that stay: the block itself when all do.
func keep[T any](block []T, gone func(x T) bool) []T {
	var at []int
	for i, x := range slices.Backward(block) {
		if gone(x) {
			at = append(at, i)
		}
	}
	if len(at) == 0 {
		return block
	}
	out := slices.Clone(block)
	for _, i := range at { // from the end on
		out = slices.Delete(out, i, i+1)
	}
	return out
}
