package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// load is a row of the table: what a client does.
type load struct {
	Name  string `json:"name"`
	RW    string `json:"rw"`    // as fio says it: randwrite, randread, write, read
	Block int    `json:"block"` // bytes
	Depth int    `json:"depth"`
	// Synced rows compare acknowledged writes that survive a power cut. Their raw column is fio
	// with fdatasync after each write.
	Synced bool `json:"synced,omitempty"`
	// Initiator rows reach iSCSI targets without the bridge: the client is qemu-img bench, which has
	// libiscsi in itself, goes through the disk in strides, and tells no latencies.
	Initiator bool `json:"initiator,omitempty"`
}

func (l load) writes() bool { return strings.HasSuffix(l.RW, "write") }

func (l load) random() bool { return strings.HasPrefix(l.RW, "rand") }

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

// loads lists the rows.
func loads() []load {
	var out []load
	for _, depth := range []int{1, 32} {
		for _, rw := range []string{"randwrite", "randread"} {
			out = append(out, load{
				Name: fmt.Sprintf("4k-%s-qd%d", rw, depth), RW: rw, Block: 4 * kib, Depth: depth,
			})
		}
	}
	out = append(out, deepWrite())
	return append(out,
		load{Name: "64k-randwrite-qd16", RW: "randwrite", Block: 64 * kib, Depth: 16},
		load{Name: "64k-randread-qd16", RW: "randread", Block: 64 * kib, Depth: 16},
		sequentialWrite(),
		load{Name: "1m-read-qd4", RW: "read", Block: mib, Depth: 4},
		load{Name: "4k-durable-qd32", RW: "randwrite", Block: 4 * kib, Depth: 32, Synced: true},
		load{Name: "4k-durable-qd64", RW: "randwrite", Block: 4 * kib, Depth: 64, Synced: true},
		load{
			Name: "4k-initiator-write-qd32", RW: "randwrite", Block: 4 * kib, Depth: 32,
			Initiator: true,
		},
		load{
			Name: "4k-initiator-read-qd32", RW: "randread", Block: 4 * kib, Depth: 32,
			Initiator: true,
		},
	)
}

// deepWrite is the row by which destaging is judged, beside sequentialWrite.
func deepWrite() load {
	return load{Name: "4k-randwrite-qd128", RW: "randwrite", Block: 4 * kib, Depth: 128}
}

// deepRead is the row by which reads at depth are judged.
func deepRead() load {
	return load{Name: "4k-randread-qd32", RW: "randread", Block: 4 * kib, Depth: 32}
}

func sequentialWrite() load {
	return load{Name: "1m-write-qd4", RW: "write", Block: mib, Depth: 4}
}

// The columns.
const (
	raw           = "raw"
	engineDurable = "engine"
	engineProcess = "engine-process"
	engineNVRAM   = "engine-nvram"
	nbdDurable    = "nbd"
	nbdProcess    = "nbd-process"
	nbdUnix       = "nbd-unix"
	iscsiDurable  = "iscsi"
	iscsiProcess  = "iscsi-process"
	qemuNBD       = "qemu-nbd"
	tgt           = "tgt"
)

// columns lists them as the table does: each of ours next to what it is compared with.
func columns() []string {
	return []string{
		raw, engineDurable, engineProcess, engineNVRAM, nbdDurable, nbdProcess, qemuNBD, nbdUnix,
		iscsiDurable, iscsiProcess, tgt,
	}
}

// measured tells whether a column has a figure in a row. Reads are the same in both durability
// modes, and a durable row has those columns only that promise what it is about. The journal takes
// writes alone, and depth 128 is for its sake.
func measured(l load, column string) bool {
	switch {
	case column == engineNVRAM:
		return l.writes() && !l.Synced && !l.Initiator
	case l == deepWrite():
		return column == raw || column == engineDurable
	case l.Synced:
		return slices.Contains([]string{raw, engineDurable, nbdDurable}, column)
	case l.Initiator && !slices.Contains([]string{iscsiDurable, iscsiProcess, tgt}, column):
		return false
	case strings.HasSuffix(column, "-process"):
		return l.writes()
	}
	return true
}

// cell is one figure of the table: a row and a column.
type cell struct {
	Row    load
	Column string
}

func (c cell) String() string { return c.Row.Name + "/" + c.Column }

// cells lists what is to be measured, in the order of one repeat. only, when not nil, keeps those
// whose "row/column" it matches; without says which columns cannot be measured here.
func cells(only *regexp.Regexp, without map[string]string) []cell {
	var out []cell
	for _, l := range loads() {
		for _, column := range columns() {
			c := cell{l, column}
			if !measured(l, column) || without[column] != "" ||
				only != nil && !only.MatchString(c.String()) {
				continue
			}
			out = append(out, c)
		}
	}
	return out
}
