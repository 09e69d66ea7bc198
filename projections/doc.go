// Package projections folds the event log into views: what the rest of the node reads. It holds the
// contract of a view and the Runner, which feeds every record to every view in the order of the
// log, wakes those who wait for a position, and builds a view as it was at any past position.
//
// What it never does: it appends nothing, it computes no position, and it keeps no view on a
// device. Views live in memory and are folded anew at every start.
//
// Invariants:
//
//	P1  every view sees every record once, in the order of the log, on one goroutine
//	P2  a checkpoint moves only after Apply has returned nil for all of its record's events
//	P3  a view that fails stops alone, at its checkpoint; the others go on
//	P4  a view folded anew to a position has the state hash of the one that was live there
package projections
