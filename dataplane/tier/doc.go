// Package tier decides when a journal in NVRAM is destaged and how writers are slowed down so that
// it never fills. It is a pure core: no clock, no lock, no I/O; the engine is its shell.
//
// A journal that is destaged too early coalesces nothing, one that is destaged too late stops its
// writers. So destaging starts when half of it is used and holds the fill between 50 and 70 %:
//
//	0 .. 50 %    nothing is done: an idle journal keeps what it has, and the device sleeps
//	50 .. 70 %   the oldest is destaged, a sixteenth of the journal at a time
//	70 .. 100 %  and writers wait in proportion: at 78 % they get the rate at which the journal is
//	             destaged, at 100 % a quarter of it, so the fill settles between and nobody stops
//
// The rate is measured from destaging itself, as time per byte.
package tier
