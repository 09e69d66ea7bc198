// Package nvram is byte-addressable memory in a file: an NVDIMM behind a DAX file system or as a
// device-dax, or a file on tmpfs that stands in for one. The region says what it is worth:
//
//	MAP_SYNC granted       PowerSafe: Persist writes the CPU's cache lines back to the module
//	anything else          Volatile: what is stored survives a crash of the process, no more
//
// MAP_SYNC is granted by a DAX file system and a device-dax only, and means that no metadata of the
// file is needed that is not on the module yet; so a store is as safe as its cache line. That a
// written-back line survives a power cut is the platform's promise (ADR), which no program can
// check.
//
// A file on a disk can be mapped too and is Volatile: msync would make it durable at 3 to 12 times
// the price of a write and a flush, which is no NVRAM.
//
// The region is plain memory: a reader sees a writer's bytes by Go's memory model alone. Only
// aligned stores of 8 bytes are never torn by a power cut. Cutting the file off below a mapping
// kills the process (SIGBUS), which is why the blocks are allocated when it is made and why the
// file is locked.
package nvram
