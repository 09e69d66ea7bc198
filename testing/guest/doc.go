// Command guest boots a Debian guest under QEMU and lets the initiators of its kernel use volumes
// of a node that runs outside: open-iscsi with two paths under dm-multipath, one of which is cut
// under load, and the kernel's NBD client. It is for correctness alone: without KVM a guest moves a
// few thousand blocks a second.
//
// The guest is one initramfs, made once of Debian packages by mmdebstrap and kept in the user's
// cache; its root is memory, so nothing that a job does outlives it. A job is a script of the
// folder jobs; it speaks to this program by lines on the console:
//
//	PASS name        a check held
//	FAIL name        it did not; lines that begin with "  | " tell why
//	PATH cut|mend    break the second path of the target, or let it work again
//	RESULT p f       the end, with the number of checks that passed and failed
//
// It needs root, for mmdebstrap's chroot, and the packages qemu-system-x86, mmdebstrap and cpio.
package main
