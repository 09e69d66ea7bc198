// Package storetest is the conformance suite of the event log: what every engine must do, as tests.
// An engine states what it can and runs Run; two engines that promise the same chain run Equal.
//
// It also holds the small vocabulary those tests share: events that derive from a seed, so that two
// engines can be given the very same ones.
package storetest
