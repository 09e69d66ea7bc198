// Package faulty wraps any device and makes it misbehave by script: errors, latency, torn, lost and
// misdirected writes, flipped bits, stalls. Without rules it does nothing but pass on.
//
// A rule says when it fires (kinds of operation, a range, after how many matches, how many times)
// and what happens then. Rules are looked at in the order in which they were added, and all that
// match fire together: latency adds up, the first error wins. Chance is no part of this package; a
// test that wants it draws rules from its own seed. Nor is time: latency goes through the sleep
// function given to New.
//
// Rules are also written as text, one a line, which the tests that speak in scripts use:
//
//	write after 3 times 1 eio            the fourth write fails
//	read,write 1048576+65536 delay 5ms   a slow region
//	flush after 1 times 1 eio            the second flush fails and flushes nothing
//	write 8192+4096 lose                 acknowledged and not done
//	write times 1 misdirect 4096         lands one block further on
//	write times 1 tear 3                 three sectors land, then an error
//	write times 1 tear 3 silent          three sectors land, acknowledged
//	read 0+4096 flip 17                  bit 17 of the range reads wrong
//	write times 1 flip 9                 bit 9 of the write is stored wrong: rot
//	write stall                          hangs until Release
package faulty
