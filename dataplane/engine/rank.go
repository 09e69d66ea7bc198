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

func compareRanks(x, y rank) int {
	switch {
	case x.line < y.line, x.line == y.line && x.block < y.block:
		return -1
	case x.line == y.line && x.block == y.block:
		return 0
	}
	return 1
}

// What is sorted by counting: a batch of many records, of few lines.
const (
	rankRadix = 11  // bits that a pass sorts by
	rankLeast = 512 // records from which passes over them cost less than comparing them
	rankLines = 8
)

// sortRanks sorts a list, with the help of another that has its room, and gives both, which may
// have changed places. Comparing costs a full batch four times what counting does, lowest digit
// first (Knuth, The Art of Computer Programming 3, 5.2.5); equal ones come in any order.
func sortRanks(list, room []rank) (sorted, spare []rank) {
	lines, differ := linesOf(list)
	if len(list) < rankLeast || len(lines) == 0 {
		slices.SortFunc(list, compareRanks)
		return list, room
	}
	room = slices.Grow(room[:0], len(list))[:len(list)]
	for low := 0; low < bits.Len64(differ); low += rankRadix {
		var ends [1 << rankRadix]int32
		for i := range list {
			ends[list[i].block>>low%(1<<rankRadix)]++
		}
		starts(ends[:])
		for i := range list {
			d := list[i].block >> low % (1 << rankRadix)
			room[ends[d]] = list[i]
			ends[d]++
		}
		list, room = room, list
	}
	if len(lines) > 1 {
		var ends [rankLines]int32
		for i := range list {
			ends[slices.Index(lines, list[i].line)]++
		}
		starts(ends[:])
		for i := range list {
			d := slices.Index(lines, list[i].line)
			room[ends[d]] = list[i]
			ends[d]++
		}
		list, room = room, list
	}
	return list, room
}

// linesOf gives the lines of a list in their order, nil where there are too many, and which bits of
// its blocks are not the same in all.
func linesOf(list []rank) (lines []uint64, differ uint64) {
	for i := range list {
		differ |= list[i].block ^ list[0].block
		if len(lines) > 0 && lines[len(lines)-1] == list[i].line || slices.Contains(lines, list[i].line) {
			continue
		}
		if len(lines) == rankLines {
			return nil, 0
		}
		lines = append(lines, list[i].line)
	}
	slices.Sort(lines)
	return lines, differ
}

// starts makes of how many there are of each where the first of each goes.
func starts(counts []int32) {
	var sum int32
	for i, n := range counts {
		counts[i], sum = sum, sum+n
	}
}
