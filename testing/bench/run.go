package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"weft/backends/direct"
	"weft/domain"
)

const (
	// roomMin and roomMax bound how many times the size of its volume a device of ours is.
	roomMin, roomMax = 2, 16

	diskMax      = 36 * int64(gib) // of all files together
	sizeMin      = 256 * int64(mib)
	prepareLimit = 15 * time.Minute
	// overrun is what a run may take beyond its time before it is given up.
	overrun = 30 * time.Second
	// overhead of a run, for the estimate: start, connect, settle.
	overhead = 1200 * time.Millisecond
)

// options are the flags.
type options struct {
	runtime time.Duration
	repeats int
	size    int64
	room    int64 // how many times the size of its volume a device of ours is
	below   int64 // the same of the one below the journal
	cache   int64 // bytes of each server's read cache
	dir     string
	only    *regexp.Regexp
	json    string
	profile string
	aio     string
	strict  bool
	log     io.Writer // progress
}

func (o options) validate() error {
	switch {
	case o.runtime < 100*time.Millisecond || o.runtime > 10*time.Minute:
		return errors.New("-runtime: from 100ms to 10m")
	case o.repeats < 1 || o.repeats > 100:
		return errors.New("-repeats: from 1 to 100")
	case o.size < sizeMin || o.size%(4*mib) != 0:
		return errors.New("-size: at least 256MiB, in steps of 4MiB")
	case o.cache < 0:
		return errors.New("-read-cache: at least 0")
	case o.room < roomMin || o.room > roomMax:
		return fmt.Errorf("-room: from %d to %d", roomMin, roomMax)
	case o.below < roomMin || o.below > roomMax:
		return fmt.Errorf("-journal-room: from %d to %d", roomMin, roomMax)
	}
	b := bench{options: o, cells: cells(o.only, nil)}
	if n := b.files(); n > diskMax {
		return fmt.Errorf("the files of what is measured would take %s, more than %s: see -size, -only, "+
			"-room and -journal-room", domain.Bytes(n), domain.Bytes(diskMax))
	}
	return nil
}

// subject is a column that is ready to be measured.
type subject struct {
	pid   int      // whose CPU counts; 0: what the run itself tells
	node  *node    // ours: whose log to account for
	fio   []string // arguments that name the disk; nil: the node drives itself
	iscsi string   // URI of the logical unit, for rows without the bridge
}

// bench is one run of the whole program.
type bench struct {
	options
	work     string // our folder
	raw      string // file
	cells    []cell
	nodes    map[string]*node // by durability
	children []*child
	subjects map[string]subject
	results  *results
	without  map[string]string // column to reason
}

// prepare makes the files and starts the servers that the cells need.
func (b *bench) prepare(ctx context.Context) error {
	_, err := mediaOf(b.dir)
	if err != nil {
		return err
	}
	if b.work, err = os.MkdirTemp(b.dir, "weft-bench-"); err != nil {
		return err
	}
	b.raw = filepath.Join(b.work, "raw.img")
	b.progress("writing %d MiB of files in %s", b.files()/mib, b.work)
	_, err = output(ctx, prepareLimit, "fio", "--name=fill", "--filename="+b.raw, "--rw=write",
		"--bs=1m", "--ioengine=psync", "--direct=1", "--size="+fmt.Sprint(b.size), "--end_fsync=1",
		"--fallocate=none")
	if err != nil {
		return err
	}
	for _, column := range columns() {
		if !slices.ContainsFunc(b.cells, func(c cell) bool { return c.Column == column }) {
			continue
		}
		s, err := b.open(ctx, column)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && (column == qemuNBD || column == tgt):
			b.drop(column, strings.TrimSpace(err.Error()))
			continue
		case err != nil:
			return fmt.Errorf("%s: %w", column, err)
		}
		b.subjects[column] = s
	}
	return nil
}

// mediaOf names the disk below a folder. Memory is refused: direct I/O there measures copies.
func mediaOf(dir string) (string, error) {
	m, err := direct.Probe(dir)
	switch {
	case err != nil:
		return "", err
	case m.Memory:
		return "", fmt.Errorf("%s is memory, not a disk: choose another -dir", dir)
	case m.WriteCache:
		return m.Disk + " (volatile write cache)", nil
	}
	return m.Disk + " (no volatile write cache)", nil
}

// drop leaves a column out for a reason.
func (b *bench) drop(column, why string) {
	b.without[column] = why
	b.cells = slices.DeleteFunc(b.cells, func(c cell) bool { return c.Column == column })
	b.progress("without %s: %s", column, why)
}

// open makes a column ready.
func (b *bench) open(ctx context.Context, column string) (subject, error) {
	switch column {
	case raw:
		return subject{fio: []string{"--filename=" + b.raw, "--direct=1"}}, nil
	case qemuNBD:
		c, uri, err := startQEMU(ctx, b.raw, b.aio)
		if err != nil {
			return subject{}, err
		}
		b.children = append(b.children, c)
		return subject{pid: c.pid(), fio: nbdArgs(uri)}, nil
	case tgt:
		c, uri, err := startTGT(ctx, b.work, b.raw)
		if err != nil {
			return subject{}, err
		}
		b.children = append(b.children, c)
		return b.bridged(ctx, column, uri, subject{pid: c.pid()})
	}
	mode := modeOf(column)
	n := b.nodes[mode]
	if n == nil {
		var err error
		if n, err = startNode(ctx, b.work, mode, b.options); err != nil {
			return subject{}, err
		}
		b.nodes[mode] = n
	}
	s := subject{pid: n.pid(), node: n}
	switch column {
	case nbdDurable, nbdProcess:
		s.fio = nbdArgs(tcpURI(n.hello.NBD))
	case nbdUnix:
		s.fio = nbdArgs(unixURI(n.socket))
	case iscsiDurable, iscsiProcess:
		return b.bridged(ctx, column, "iscsi://"+n.hello.ISCSI+"/"+targetName+"/0", s)
	}
	return s, nil
}

// The modes of our servers: what an acknowledged write survives, and out of what.
const (
	modeDurable = "durable"
	modeProcess = "process"
	modeNVRAM   = "nvram" // durable below a journal in shared memory, which no power cut survives
)

// modeOf gives the mode of the server that a column of ours needs.
func modeOf(column string) string {
	switch {
	case column == engineNVRAM:
		return modeNVRAM
	case strings.HasSuffix(column, "-process"):
		return modeProcess
	}
	return modeDurable
}

// roomOf gives how many times the volume a server's device is.
func (o options) roomOf(mode string) int64 {
	if mode == modeNVRAM {
		return o.below
	}
	return o.room
}

// files gives the bytes of all files that the cells need at most.
func (b *bench) files() int64 {
	sum, seen := b.size, map[string]bool{}
	for _, c := range b.cells {
		if mode := modeOf(c.Column); !seen[mode] && ours(c.Column) {
			seen[mode] = true
			sum += b.size * b.roomOf(mode)
		}
	}
	return sum
}

// ours tells whether a column is measured on a server of ours.
func ours(column string) bool { return column != raw && column != qemuNBD && column != tgt }

func nbdArgs(uri string) []string { return []string{"--ioengine=nbd", "--uri=" + uri} }

// bridged puts a bridge before an iSCSI target.
func (b *bench) bridged(ctx context.Context, column, uri string, s subject) (subject, error) {
	c, exported, err := bridge(ctx, b.work, "bridge-"+column, uri)
	if err != nil {
		return subject{}, err
	}
	b.children = append(b.children, c)
	s.fio = nbdArgs(exported)
	s.iscsi = uri
	return s, nil
}

// measure runs all cells, repeat by repeat. A cell that fails is noted and the others go on.
func (b *bench) measure(ctx context.Context) error {
	if b.profile != "" {
		for _, n := range b.nodes {
			if _, err := n.obey(ctx, order{Profile: true}, toolLimit); err != nil {
				return err
			}
		}
	}
	total, done, begin := len(b.cells)*b.repeats, 0, time.Now()
	for repeat := range b.repeats {
		for _, c := range b.cells {
			s, err := b.run(ctx, c)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			done++
			each := max(time.Since(begin)/time.Duration(done), b.runtime)
			left := (each * time.Duration(total-done)).Round(time.Second)
			head := fmt.Sprintf("%d/%d, %s left: repeat %d, %s", done, total, left, repeat+1, c)
			if err != nil {
				b.results.failures[c.String()] = append(b.results.failures[c.String()], err.Error())
				b.progress("%s: %v", head, err)
				continue
			}
			s.Repeat = repeat + 1
			b.results.samples[c.String()] = append(b.results.samples[c.String()], s)
			b.progress("%s: %.0f IOPS, p99 %.0f us", head, s.IOPS, s.P99)
		}
	}
	return nil
}

// run measures one cell once.
func (b *bench) run(ctx context.Context, c cell) (sample, error) {
	subj := b.subjects[c.Column]
	if err := settle(ctx, b.pids()); err != nil {
		return sample{}, err
	}
	var before answer
	var used time.Duration
	var err error
	if subj.node != nil {
		if before, err = subj.node.obey(ctx, order{}, toolLimit); err != nil {
			return sample{}, err
		}
	}
	if subj.pid != 0 {
		if used, err = cpuTime(subj.pid); err != nil {
			return sample{}, err
		}
	}
	s, err := b.load(ctx, subj, c)
	if err != nil || subj.pid == 0 {
		return s, err
	}
	if err := settle(ctx, b.pids()); err != nil {
		return sample{}, err
	}
	after, err := cpuTime(subj.pid)
	if err != nil {
		return sample{}, err
	}
	s.CPU = (after - used).Seconds() * 1e6 / float64(s.Count)
	if subj.node != nil && subj.fio == nil && !c.Row.Initiator {
		a, err := subj.node.obey(ctx, order{Load: &c.Row, Alone: true}, overrun)
		if err != nil {
			return sample{}, err
		}
		s.Driver = a.Sample.Driver
	}
	if subj.node != nil {
		now, err := subj.node.obey(ctx, order{}, toolLimit)
		if err != nil {
			return sample{}, err
		}
		s.Log = since(before, now)
	}
	return s, nil
}

// load lets the client of a column run.
func (b *bench) load(ctx context.Context, subj subject, c cell) (sample, error) {
	if c.Row.Initiator {
		return initiate(ctx, subj.iscsi, c.Row, b.runtime)
	}
	if subj.fio == nil {
		a, err := subj.node.obey(ctx, order{Load: &c.Row, Time: b.runtime}, overrun)
		return a.Sample, err
	}
	target := slices.Clone(subj.fio)
	synced := c.Column == raw && c.Row.Synced
	if c.Column == raw && !synced {
		target = append(target, "--ioengine=io_uring")
	}
	out, err := output(ctx, b.runtime+overrun, fioArgs(c.Row, b.runtime, synced, target...)...)
	if err != nil {
		return sample{}, err
	}
	return parseFio(out, c.Row)
}

// pids lists the servers.
func (b *bench) pids() []int {
	var out []int
	for _, s := range b.subjects {
		if s.pid != 0 && !slices.Contains(out, s.pid) {
			out = append(out, s.pid)
		}
	}
	return out
}

// close ends all children, clients before their servers, and removes the files.
func (b *bench) close() error {
	for _, c := range slices.Backward(b.children) {
		c.stop()
	}
	for _, n := range b.nodes {
		n.shut()
	}
	if b.work == "" {
		return nil
	}
	return os.RemoveAll(b.work)
}

func (b *bench) progress(format string, args ...any) {
	_, _ = fmt.Fprintf(b.log, "bench: "+format+"\n", args...)
}
