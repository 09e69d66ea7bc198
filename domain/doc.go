// Package domain is the vocabulary of Weft: identifiers, units, the version of a block, the
// position of an event, commands, events, errors, and the request a host makes of a disk. Every
// other package speaks these words; this one imports nothing but the pure part of the standard
// library.
//
// What it never does: no I/O, no clock, no chance, no goroutine, no lock, no context. Whatever an
// aggregate needs of the world (the time, an identifier, a name) arrives as an argument, so the
// same input gives the same bytes on every node and in every replay.
//
// The rooms below it hold the aggregates (intent, volume, cluster, tenancy), the policy engine and
// the orders a node agent obeys. An aggregate is a pair of pure functions: Decide answers a command
// with events or with an *Error, Evolve folds one event into a state and cannot fail.
//
// Words have one meaning each; ARCHITECTURE.md holds the list.
package domain
