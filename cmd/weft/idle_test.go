package main

import "testing"

// Memory is given back by a node that does nothing and holds more than it uses, and by no other.
func TestIdle(t *testing.T) {
	at := heap{allocated: 1 << 40, live: 100 << 20, held: 100<<20 + idleSpare + 1}
	was := at
	was.allocated -= idleAllocs - 1
	if !idle(was, at) {
		t.Error("an idle node keeps what it does not use")
	}
	busy := at
	busy.allocated -= idleAllocs
	if idle(busy, at) {
		t.Error("a node at work collects")
	}
	at.held--
	if idle(was, at) {
		t.Error("a node that has nothing to give collects")
	}
	if h := readHeap(); h.allocated == 0 || h.held == 0 {
		t.Errorf("the runtime says %+v", h)
	}
}
