// Package direct is a block device, or a file used as one, behind O_DIRECT: what is written goes to
// the device and not to the page cache, so a completed write means what the device says it means,
// and memory is not spent twice.
//
// Calls block; a queue depth needs as many goroutines. Writes, and reads with few others under
// way, block in the system call, which needs GOMAXPROCS of 16 or more, since a goroutine in a
// system call keeps its processor until the monitor takes it away. Reads at depth go through an
// io_uring of the device, made for the first of them: see ringFrom. Where io_uring is forbidden
// they are preads too.
//
// The lock is flock on the very descriptor which the I/O uses, so it lasts just as long as we can
// write. A block device is opened O_EXCL besides: the kernel then refuses one that is mounted or
// part of an array.
//
// Alignment is asserted here and not left to the kernel: tmpfs takes anything, and tests on it
// would hide what a disk refuses.
//
// # Durability
//
// Probe reads what the kernel knows, the options overrule it:
//
//	a disk, queue/write_cache "write through"   PowerSafe
//	a disk, "write back"                        NeedsFlush
//	a file on such disks                        NeedsFlush: its metadata is cached
//	a loop device                               NeedsFlush: so is its file
//	tmpfs, zram, a RAM disk                     Volatile
//
// FUA is pwritev2 with RWF_DSYNC, which is a FUA write or a write and a flush as the device has it;
// where the kernel or the file system refuses the flag, a write and fdatasync.
//
// # Files
//
// Create allocates the blocks and then writes zeros over all of them. Allocation alone leaves
// unwritten extents, and the first durable write to each then pays for a journal commit of the file
// system: see BenchmarkDurableWrite. For the same reason a discarded range of a file is slow to
// write once.
package direct
