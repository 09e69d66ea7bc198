// Package cache keeps blocks that were read again and again in memory.
//
// A block is known by its place: device, address, and the checksum that the index holds for it.
// What stands at a place is never overwritten while the index names it, and when the place is used
// again the checksum is another. So nothing is ever invalidated, a snapshot and its clones share
// what they share on the device, and a hit is verified against the checksum like any other read.
//
// A block that was read ahead of a stream is taken in at once and goes when it is read.
//
// Any other is taken in when it is read for the second time within the memory of a filter, which
// has four entries for each block of the cache. A scan of any length leaves its marks in the filter
// and nothing in the cache. Which block goes is decided by CLOCK inside a set of eight, with
// counters that a hit raises up to three, as in S3-FIFO (Yang et al., "FIFO queues are all you need
// for cache eviction", SOSP 2023), whose ghost queue the filter stands for.
package cache
