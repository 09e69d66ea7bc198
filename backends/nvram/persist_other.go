//go:build linux && !amd64

package nvram

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// persist lets the kernel write the lines back: on a DAX mapping msync does just that.
func persist(p unsafe.Pointer, n uintptr) {
	start := uintptr(p) &^ (page - 1)
	_, _, errno := unix.Syscall(unix.SYS_MSYNC, start, uintptr(p)+n-start, unix.MS_SYNC)
	if errno != 0 {
		// Durability was promised and cannot be kept; to go on would be to lie.
		panic("nvram: msync: " + errno.Error())
	}
}
