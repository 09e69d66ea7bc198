package backends

import "syscall"

const (
	adviseHuge     = 14 // MADV_HUGEPAGE
	adviseCollapse = 25 // MADV_COLLAPSE, Linux 6.1
)

// huge asks the kernel to back the memory by huge pages. A megabyte in 4 KiB pages is 256
// scattered pieces, more than a virtio disk takes in one request: 1 MiB writes went from 2.9-3.7
// to 4.8-5.2 GB/s, reads from 1.15 to 2.75, at half the CPU. It is advice: what the kernel refuses
// costs speed.
func huge(p []byte) {
	_ = syscall.Madvise(p, adviseHuge)
	_ = syscall.Madvise(p, adviseCollapse)
}
