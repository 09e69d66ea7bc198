//go:build linux

package uring

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// forbid names the system call which the child process of TestForbidden gives up.
const forbid = "WEFT_URING_FORBID"

// TestForbidden proves in processes of their own that New says ErrUnavailable where a seccomp
// filter forbids the set-up, and where it forbids only the use.
func TestForbidden(t *testing.T) {
	if call := os.Getenv(forbid); call != "" {
		forbidden(t, call)
		return
	}
	for _, call := range []int{unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestForbidden$", "-test.v")
		cmd.Env = append(os.Environ(), forbid+"="+strconv.Itoa(call))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("system call %d: %v\n%s", call, err, out)
		} else if bytes.Contains(out, []byte("SKIPPED")) {
			t.Skipf("%s", out)
		}
	}
}

func forbidden(t *testing.T, call string) {
	number, err := strconv.Atoi(call)
	if err != nil {
		t.Fatal(err)
	}
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(number), Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	runtime.LockOSThread() // no_new_privs goes with the thread, TSYNC hands it to all
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program))); errno != 0 {
		t.Skipf("SKIPPED: seccomp: %v", errno)
	}
	for range 3 {
		if _, err := New(8); !errors.Is(err, ErrUnavailable) || !errors.Is(err, unix.EPERM) {
			t.Errorf("%v", err)
		}
	}
}
