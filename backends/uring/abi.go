//go:build linux

package uring

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel's interface, include/uapi/linux/io_uring.h, as far as it is used.
const (
	opNop  = 0
	opRead = 22

	sqeFixedFile    = 1 << 0
	enterGetEvents  = 1 << 0
	setupClamp      = 1 << 4
	featSingleMmap  = 1 << 0
	featNoDrop      = 1 << 1
	featRWCurPos    = 1 << 3 // came with Linux 5.6, as opRead did
	mapRings        = 0
	mapSQEs         = 0x10000000
	registerFiles   = 2
	unregisterFiles = 3
)

type sqe struct {
	opcode   uint8
	flags    uint8
	ioprio   uint16
	fd       int32
	off      uint64
	addr     uint64
	len      uint32
	rwFlags  uint32
	userData uint64
	_        [3]uint64
}

type cqe struct {
	userData uint64
	res      int32
	flags    uint32
}

type sqOffsets struct {
	head, tail, mask, entries, flags, dropped, array, _ uint32
	_                                                   uint64
}

type cqOffsets struct {
	head, tail, mask, entries, overflow, cqes, flags, _ uint32
	_                                                   uint64
}

type params struct {
	sqEntries, cqEntries, flags, cpu, idle, features, wqFD uint32
	_                                                      [3]uint32
	sq                                                     sqOffsets
	cq                                                     cqOffsets
}

// The kernel refuses or misreads any other size.
var (
	_ [64]byte  = [unsafe.Sizeof(sqe{})]byte{}
	_ [16]byte  = [unsafe.Sizeof(cqe{})]byte{}
	_ [120]byte = [unsafe.Sizeof(params{})]byte{}
)

func setup(entries uint32, p *params) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries),
		uintptr(unsafe.Pointer(p)), 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// enter submits and, with least above 0, waits for so many completions.
func enter(fd int, submit, least uint32) (uint32, unix.Errno) {
	flags := uintptr(0)
	if least > 0 {
		flags = enterGetEvents
	}
	n, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(fd), uintptr(submit),
		uintptr(least), flags, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return uint32(n), 0
}

func register(fd int, what uintptr, arg unsafe.Pointer, n int) error {
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(fd), what, uintptr(arg),
		uintptr(n), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
