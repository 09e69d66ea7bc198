package faulty

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"weft/backends"
)

// Ops is a set of kinds of operations.
type Ops uint8

// The kinds; combine them with |.
const (
	Read Ops = 1 << iota
	Write
	Flush
	Discard

	All = Read | Write | Flush | Discard
)

// Rule says when a fault happens and which. The zero value matches everything and does nothing.
// Several effects of one rule happen together.
type Rule struct {
	On Ops // 0 is All
	// Off and Len restrict the rule to operations that touch the range, in bytes; Len 0 is
	// everywhere. A flush touches every range.
	Off, Len int64
	After    int // matches to let pass first
	Times    int // firings, then the rule is spent; 0 is for ever

	Err       error         // returned instead of doing the operation
	Delay     time.Duration // waited first
	Stall     bool          // hangs until Armed.Release, or until the device is closed
	Lose      bool          // acknowledged, not done; not for reads
	Misdirect int64         // bytes by which a read or write misses its place
	Tear      bool          // only TearAt sectors of a write land; then ErrMedia, unless Silent
	TearAt    int           // in logical blocks
	Silent    bool
	Flip      bool // a bit of what is read or written is wrong
	// FlipBit counts bits from Off where the rule has a range, from the start of the operation
	// where it has none. An operation that does not reach the bit stays whole.
	FlipBit int64
}

func (r *Rule) matches(op Ops, off, n int64) bool {
	if r.On != 0 && r.On&op == 0 {
		return false
	}
	return r.Len == 0 || op == Flush || off < r.Off+r.Len && r.Off < off+n
}

// Parse reads rules as the package comment shows them, one a line. Empty lines and lines that start
// with # are skipped.
func Parse(script string) ([]Rule, error) {
	var rules []Rule
	for i, line := range strings.Split(script, "\n") {
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		r, err := parseRule(words)
		if err != nil {
			return nil, fmt.Errorf("faulty: line %d: %w", i+1, err)
		}
		rules = append(rules, r)
	}
	return rules, nil
}

var opNames = map[string]Ops{
	"read": Read, "write": Write, "flush": Flush, "discard": Discard, "all": All,
}

func parseRule(words []string) (Rule, error) {
	var r Rule
	for _, name := range strings.Split(words[0], ",") {
		op, ok := opNames[name]
		if !ok {
			return r, fmt.Errorf("%q is no operation", name)
		}
		r.On |= op
	}
	w := &wordReader{words: words[1:]}
	effects := 0
	for w.more() {
		switch word := w.next(); word {
		case "after":
			r.After = int(w.number())
		case "times":
			r.Times = int(w.number())
		default:
			if off, n, ok := strings.Cut(word, "+"); ok {
				r.Off, r.Len = w.parse(off), w.parse(n)
				continue
			}
			effects++
			if !r.effect(word, w) {
				return r, fmt.Errorf("%q is no fault", word)
			}
		}
	}
	if w.err == nil && effects == 0 {
		return r, fmt.Errorf("no fault in %q", strings.Join(words, " "))
	}
	return r, w.err
}

func (r *Rule) effect(word string, w *wordReader) bool {
	switch word {
	case "eio":
		r.Err = backends.ErrMedia
	case "enospc":
		r.Err = backends.ErrNoSpace
	case "gone":
		r.Err = backends.ErrNotPresent
	case "delay":
		var err error
		if r.Delay, err = time.ParseDuration(w.next()); err != nil && w.err == nil {
			w.err = err
		}
	case "stall":
		r.Stall = true
	case "lose":
		r.Lose = true
	case "misdirect":
		r.Misdirect = w.parse(w.next()) // the one number that may be negative
	case "tear":
		r.Tear, r.TearAt = true, int(w.number())
	case "silent":
		r.Silent = true
	case "flip":
		r.Flip, r.FlipBit = true, w.number()
	default:
		return false
	}
	return true
}

// wordReader hands out the words of a line and keeps the first error.
type wordReader struct {
	words []string
	err   error
}

func (w *wordReader) more() bool { return len(w.words) > 0 && w.err == nil }

func (w *wordReader) next() string {
	if len(w.words) == 0 {
		if w.err == nil {
			w.err = fmt.Errorf("the line ends where an argument is due")
		}
		return ""
	}
	word := w.words[0]
	w.words = w.words[1:]
	return word
}

// number gives a count or a place.
func (w *wordReader) number() int64 {
	n := w.parse(w.next())
	if n < 0 && w.err == nil {
		w.err = fmt.Errorf("%d is negative", n)
	}
	return n
}

func (w *wordReader) parse(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil && w.err == nil {
		w.err = err
	}
	return n
}
