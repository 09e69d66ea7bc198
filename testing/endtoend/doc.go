// Package endtoend runs the weft binary as a user would and attaches clients that nobody here
// wrote: fio and nbdinfo over NBD, qemu-io and qemu-img over iSCSI. Its heart is a run in which
// the process is killed in the middle of writes, again and again, and every write acknowledged
// before must be there after.
package endtoend
