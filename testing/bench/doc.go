// Command bench measures Weft beside what it is compared with, and prints one table.
//
// A row is a load (4 KiB random writes at queue depth 32), a column is a way to reach a disk:
//
//	raw              fio, io_uring and O_DIRECT, on a file written before
//	engine           a driver inside the server's process, over the disk, without a protocol
//	engine-nvram     the same over an engine with a journal in shared memory in place of NVRAM
//	nbd, nbd-unix    fio's NBD client over TCP and over a unix socket -> our server
//	iscsi            fio's NBD client -> bridge (qemu-nbd, libiscsi) -> our target
//	qemu-nbd         fio's NBD client over TCP -> qemu-nbd, cache=none, on the raw file
//	tgt              fio's NBD client -> bridge -> tgtd with O_DIRECT, on the raw file
//
// The bridge is a second server before the target, and takes more CPU than the targets do. So the
// rows named initiator reach the targets by libiscsi in the client itself, and these are judged.
//
// Our columns come twice for writes. The plain ones acknowledge only what a power cut cannot take;
// those with -process acknowledge what a crash of the process cannot take, which is all that the
// peers promise, for neither of them flushes. Durable rows compare the engine with fio that calls
// fdatasync after each write.
//
// The column engine-nvram acknowledges from memory that a power cut takes: no machine without NVRAM
// can do better, so it shows what the engine and its destaging cost, not what is kept. Its journal
// is small beside what a run writes, and a run begins with the journal filled to where destaging
// begins: what is measured is the rate of destaging, not that of memory. Its device is three
// quarters empty, so that little is cleaned, 2 to 3 bytes for 100 written; with -journal-room 16
// and short runs (-runtime 4s -repeats 2) nothing is, which the report says. That is what the goals
// of sustained writes are about; the default is harder.
//
// # The event log
//
// "bench log" is a mode of its own: appends with 1, 16 and 63 writers on one and three voters,
// replay, start, the rebuild of all views and what an idle voter costs, each beside one write and
// one fdatasync at a time.
//
// # Cleaning
//
// "bench fill" is a mode of its own, too: it ages devices that are 20 to 95 % full of live data by
// random writes, uniform and skewed, and then measures what the device takes for each byte written
// and how long acknowledgements take, the longest too.
//
// "bench recover" writes a log of random writes behind the last checkpoint, ends the engine as a
// crash does, and measures how long the next start takes, of which processor, and what it reads.
//
// # How it measures
//
//	for each repeat: for each row: for each column: wait until the servers are quiet; run; note
//
// So the columns of a row are measured within minutes of each other, and a ratio is taken within
// one repeat before the median is: a machine that slows down for an hour moves the figures and
// leaves the ratios.
//
// Every server is a process of its own, and CPU per I/O is what its process used from the start of
// a run until it is quiet again, so the cleaner's share is in it. The client and the bridge are
// not. For raw it is fio's own CPU, for engine it includes the driver, whose own part is measured
// behind each run, on no disk and while nothing else is under way. Work that the kernel does in
// nobody's name, such as interrupts of the network, is in no figure.
//
// # What it leaves behind
//
// Nothing: files are in a folder of their own, removed in the end; children are in process groups
// of their own, die with this process, and are ended in the end and on SIGINT.
package main
