// Package uring reads through an io_uring of its own, by raw system calls and without cgo, for many
// goroutines at once. It is made for random reads at depth: one system call submits what several
// goroutines want and one collects what several wait for, where pread costs each of them a call
// that blocks a thread. A lone read is dearer than a pread, so the caller chooses.
//
// # How it works
//
// A read takes one of a bounded number of slots and puts its request into the submission queue
// under a mutex. Whoever finds nobody submitting does so, and goes on for as long as others have
// added requests meanwhile; they only wait for their result. One goroutine, the reaper, sleeps in
// the kernel; nothing polls and nothing runs on a timer. A read allocates nothing.
//
// Who starts the next read from where one ends, by TryStart, needs no goroutine but the reaper.
// Those requests go to the kernel from the moment on at which they are as many as it has. A virtual
// disk ends what it was given together: when its results are seen it stands still, and works again
// on the first request while the next are made; what it is given doubles from call to call, so 32
// take six.
//
// # What the caller owes
//
// The kernel writes into the buffer while the goroutine sleeps, so the buffer must not move: memory
// of the heap or from mmap. A slice given to Read escapes, so the compiler puts it there unless
// unsafe was used to hide it. The descriptor must stay open, and its os.File referenced, until Read
// has returned.
//
// New proves with a request that the kernel really serves the ring; ErrUnavailable means that the
// kernel is too old or forbids it, as container runtimes do by seccomp, and pread is to be used.
package uring
