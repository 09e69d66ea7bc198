// Package journal is the format of a device's share of NVRAM: a header, and slots that hold what
// the engine has acknowledged and not yet destaged. It stores, orders what must be durable before
// what, and tells after a crash what is there. It decides nothing: which record goes where, in what
// order and for how long is the engine's, which calls it under a lane's mutex.
//
//	header A | header B | slot 0 | slot 1 | ...
//	slot:  commit page 4 KiB | entries | payload
//
// # What it promises, of memory that keeps what was persisted and tears at 8 bytes
//
//	J1  A record counts if and only if its commit word is there, and the word is stored and persisted
//	    after the record's entry and payload are. So a record is there whole or not at all.
//	J2  Nothing of a slot is stored over in place. A slot is used again only after its commit page is
//	    zero, durably, and before any other byte of it changes: an old word never meets a new entry.
//	J3  A word that is there and does not verify is damage, never a torn tail: what a power cut
//	    leaves of the last append is no word at all. Damage costs the record that it hit.
//	J4  A slot that is sealed says how many words it has, so a word that became zero is damage too.
//	J5  The share names cluster, node and device, and has an identity of its own, drawn when it was
//	    formatted, which the device's anchors repeat: another share, or an older state of this one,
//	    is told from the one that holds the device's records.
//
// The words bind a record to its slot's life and its place in it, so that neither an older life's
// entry nor one of another slot verifies. FORMAT.md draws the bytes.
//
// A Share has no lock. Slots are independent of each other: each belongs to whoever opened it, and
// Open, Seal and Free of one slot do not meet.
package journal
