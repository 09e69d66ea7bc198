//go:build linux

package direct

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"weft/backends"
)

// Media is what the kernel knows of the disk below a device or a file. Unknown fields are zero.
type Media struct {
	Disk       string // the whole disk's name, such as "sda", also for a partition
	Partition  string // such as "sda1" when it is one
	Rotational bool   // as the kernel says; virtual disks often lie: see Turns
	Virtual    bool   // a disk of a hypervisor, or one made of such disks alone
	NVMe       bool
	Model      string
	Serial     string
	WriteCache bool // the disk has a volatile cache
	Discard    bool // the disk can discard
	OptimalIO  int  // bytes; 0 is unknown
	Atomic     int  // bytes that a power cut does not tear, where the disk says so; 0 is unknown
	File       bool // a file on a file system, not the disk itself
	Memory     bool // RAM: nothing survives a power cut
}

// Turns tells whether it is a disk that turns. The kernel's word is not taken for a hypervisor's
// disks, of which virtio says that they turn whatever is below.
func (m Media) Turns() bool { return m.Rotational && !m.Virtual && !m.NVMe && !m.Memory }

// Durability is that of a completed write, as the table in the package comment says.
func (m Media) Durability() backends.Durability {
	switch {
	case m.Memory:
		return backends.Volatile
	case m.File, m.WriteCache, m.Disk == "", strings.HasPrefix(m.Disk, "loop"):
		return backends.NeedsFlush
	}
	return backends.PowerSafe
}

// Probe tells what lies below path, a block device or a file. It opens nothing and needs no
// rights on the device. Errors: ErrNotPresent, or that of stat.
func Probe(path string) (Media, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return Media{}, fail("probe", path, err)
	}
	return probe("/sys", path, &st), nil
}

func probe(sys, path string, st *unix.Stat_t) Media {
	dev, file := st.Rdev, false
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		dev, file = st.Dev, true
	}
	m := Media{}
	if dir, err := filepath.EvalSymlinks(fmt.Sprintf("%s/dev/block/%d:%d",
		sys, unix.Major(dev), unix.Minor(dev))); err == nil {
		m = probeDisk(dir)
	}
	m.File = file
	m.Memory = m.Memory || file && memoryFS(path)
	if strings.HasPrefix(m.Disk, "loop") {
		backing := word(filepath.Join(sys, "block", m.Disk, "loop/backing_file"))
		m.Memory = backing != "" && memoryFS(backing)
		var below unix.Stat_t
		if backing != "" && unix.Stat(backing, &below) == nil {
			disk := probe(sys, backing, &below)
			m.Rotational, m.Virtual, m.NVMe = disk.Rotational, disk.Virtual, disk.NVMe
		}
	}
	return m
}

// probeDisk reads the folder of a disk or of a partition, which lies inside its disk's.
func probeDisk(dir string) Media {
	m := Media{}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		m.Partition = filepath.Base(dir)
		dir = filepath.Dir(dir)
	}
	m.Disk = filepath.Base(dir)
	m.NVMe = strings.HasPrefix(m.Disk, "nvme")
	m.Memory = strings.HasPrefix(m.Disk, "zram") || strings.HasPrefix(m.Disk, "ram")
	m.Rotational = number(dir, "queue/rotational") == 1
	m.WriteCache = word(filepath.Join(dir, "queue/write_cache")) != "write through"
	m.Discard = number(dir, "queue/discard_max_bytes") > 0
	m.OptimalIO = int(number(dir, "queue/optimal_io_size"))
	m.Atomic = int(number(dir, "queue/atomic_write_unit_max_bytes"))
	m.Model = first(dir, "device/model")
	m.Virtual = virtual(dir, m.Disk, word(filepath.Join(dir, "device/vendor"))+" "+m.Model)
	m.Serial = first(dir, "serial", "device/serial", "device/wwid", "wwid")
	return m
}

// virtual tells whether a disk is a hypervisor's, by its name or by what it calls itself. One that
// is made of others, as device mapper and md make them, is what all of them are.
func virtual(dir, name, model string) bool {
	if strings.HasPrefix(name, "vd") || strings.HasPrefix(name, "xvd") {
		return true
	}
	for _, s := range []string{"QEMU", "VBOX", "VMware", "Virtual", "Msft", "PersistentDisk"} {
		if strings.Contains(model, s) {
			return true
		}
	}
	parts, err := filepath.Glob(filepath.Join(dir, "slaves", "*"))
	for _, p := range parts {
		if p, err = filepath.EvalSymlinks(p); err != nil || !probeDisk(p).Virtual {
			return false
		}
	}
	return err == nil && len(parts) > 0
}

func memoryFS(path string) bool {
	var fs unix.Statfs_t
	if unix.Statfs(path, &fs) != nil {
		return false
	}
	return fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC
}

func word(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func first(dir string, names ...string) string {
	for _, name := range names {
		if s := word(filepath.Join(dir, name)); s != "" {
			return s
		}
	}
	return ""
}

func number(dir, name string) int64 {
	n, err := strconv.ParseInt(word(filepath.Join(dir, name)), 10, 64)
	if err != nil {
		return 0 // an old kernel does not have the file
	}
	return n
}
