// Package compress makes a block of 4 KiB smaller, if that is worth it, and whole again.
//
// A compressed block is 1 to 7 units of 512 bytes: at least an eighth is saved, or it stays as it
// is. Blocks are compressed one by one, so that a read of one needs no other.
//
//	0            4       5    6       8
//	+------------+-------+----+-------+-----------------+-- zeros up to a unit --+
//	| CRC-32C of | codec | 0  | bytes | compressed data |                        |
//	| the block  | 1     | 1  | 2     |                 |                        |
//	+------------+-------+----+-------+-----------------+------------------------+
//	codec: 1 s2 (a block of that format), 2 zstd (a frame)
//
// The CRC is the one that was taken where the block entered the node: it goes through compression
// and back, so that an error of a codec is found like one of a device. What stands on a device is
// under another checksum, over these bytes (dataplane/segment).
//
// What will not become smaller is mostly told by a sample of its bytes, and a stream of such blocks
// is tried less and less often (Backoff).
package compress
