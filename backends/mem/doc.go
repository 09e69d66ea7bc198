// Package mem is a block device in RAM whose power can be cut. It is a product of the tree, not a
// mock: crash tests of the engine stand on it, so what it promises is written here.
//
// A device keeps its content in copy-on-write pages. With RecordHistory it also keeps the content
// at the start of the recording and every operation since, with its data, in the order in which the
// device took them. A power cut is then a question about the past:
//
//	     durable base          tail: since the last flush
//	|--------------------| w | w(fua) | d | w | w | ...
//	                     ^ flush          at     ^ in flight at the cut
//
// A cut at n means: operations 0..n-1 had returned to the caller; operation n was under way, and so
// were later ones whose calls had come in by then, which happens where goroutines overlap. What
// the medium then holds is bound by these rules, and by nothing else:
//
//	M1  A write completed before a completed Flush is there whole.
//	M2  A completed write with fua is there whole, from its completion on.
//	M3  Any other write may be there whole, in part, or not at all, whatever became of its
//	    neighbours. A part is made of whole logical blocks; a Chooser may ask for one of garbage.
//	M4  Where writes overlap, the one the device took later wins, as far as it is there.
//	M5  Nothing else changes.
//
// A PowerSafe device treats every write as fua; on a Volatile one a Flush promises nothing, so all
// writes of the history stay open to choice. A discard is a write of 0xDB under the same rules.
//
// An image costs a copy of the page table (2 KiB for 4 MiB) plus the pages which the open writes
// touch; an Enumerator walks the history once, so all cuts of a history cost about as much as
// replaying it. Its checksum, Sum, costs as much as the pages that it does not share.
package mem
