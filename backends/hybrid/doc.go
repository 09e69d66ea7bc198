// Package hybrid joins a flash device and a disk that turns into one device: one address space
// whose lower part stands on flash and whose upper part, from Geometry.Boundary on, on the disk.
// What is written where, and in which order, is the business of who uses it; this package moves no
// byte from one to the other.
//
// The two belong together: either alone is a part of something, so the loss of one is the loss of
// both. A label on each member (FORMAT.md) names the pair, the member's role and the sizes of both,
// and Open refuses what does not fit together, before anything was written.
//
//	0                          Boundary                                Size
//	+--------------------------+-----------------------------------------+
//	| flash                    | disk                                    |
//	+--------------------------+-----------------------------------------+
//
// A flush makes durable what was written to either. The disk is flushed only if it was written to
// since its last good flush, so that a user of the flash alone does not wait for the disk.
package hybrid
