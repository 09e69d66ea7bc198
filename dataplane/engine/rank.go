package engine

import (
	"math/bits"
	"slices"
)

// rank is the place of a record, or of a move, in the order of the index. It is apart from them,
// which are too large to be swapped about while sorting.
type rank struct {
	line  uint64 // lane; whole records first; then branch
	block uint64
	at    int32 // in the list of records, or of moves
}

func lineOf(l *lane, branch uint32) uint64 { return uint64(l.no)<<33 | 1<<32 | uint64(branch) }

// lane gives the number of the lane.
func (r *rank) lane() uint8 { return uint8(r.line >> 33) }

func compareRanks(x, y rank) int {
	switch {
	case x.line < y.line, x.line == y.line && x.block < y.block:
		return -1
	case x.line == y.line && x.block == y.block:
		return 0
	}
	return 1
}

// What is sorted by counting: a batch of many records.
const (
	rankDigit = 11  // bits that a pass sorts by
	rankLeast = 512 // records from which passes over them cost less than comparing them
)

// sortRanks sorts a list, with the help of another that has its room, and gives both, which may
// have changed places. Equal ones come in any order. It counts, the lowest digit first (Knuth, The
// Art of Computer Programming 3, 5.2.5), and passes over digits that all have in common.
func sortRanks(list, room []rank) (sorted, spare []rank) {
	if len(list) < rankLeast {
		slices.SortFunc(list, compareRanks)
		return list, room
	}
	var blocks, lines uint64 // bits that are not the same in all
	for i := range list {
		blocks |= list[i].block ^ list[0].block
		lines |= list[i].line ^ list[0].line
	}
	room = slices.Grow(room[:0], len(list))[:len(list)]
	list, room = sortDigits(list, room, blocks, false)
	return sortDigits(list, room, lines, true)
}

// number gives the line, or the block.
func (r *rank) number(line bool) uint64 {
	if line {
		return r.line
	}
	return r.block
}

// sortDigits sorts by line or by block, whose bits differ where told, and leaves equal ones in
// their order. Both lists have the same length.
func sortDigits(list, room []rank, differ uint64, line bool) (sorted, spare []rank) {
	for low := bits.TrailingZeros64(differ); differ>>low != 0; low += rankDigit {
		if differ>>low%(1<<rankDigit) == 0 {
			continue
		}
		var next [1 << rankDigit]int32 // of each digit: how many, then where the next one goes
		for i := range list {
			next[list[i].number(line)>>low%(1<<rankDigit)]++
		}
		var sum int32
		for d, n := range next {
			next[d], sum = sum, sum+n
		}
		for i := range list {
			d := list[i].number(line) >> low % (1 << rankDigit)
			room[next[d]] = list[i]
			next[d]++
		}
		list, room = room, list
	}
	return list, room
}
