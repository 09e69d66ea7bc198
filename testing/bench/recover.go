package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/pprof"
	"syscall"
	"time"

	"weft/domain"
)

const (
	// recoverLog and recoverMost are the goal: so much log of 4 KiB records that no checkpoint has
	// taken up, in so much of one core.
	recoverLog  = 64 * gib
	recoverMost = 3.0
	// recoverNode is the most that a node leaves without a checkpoint.
	recoverNode = 16 * gib
)

// recovery is what one start behind a crash took.
type recovery struct {
	log     int64 // bytes of records behind the checkpoint
	entries int64
	took    time.Duration
	cpu     time.Duration
	read    int64 // bytes, of the device
	reads   int64
}

func benchRecover(ctx context.Context, args []string, out io.Writer) error {
	set := flag.NewFlagSet("bench recover", flag.ContinueOnError)
	dir := set.String("dir", os.TempDir(), "folder on the file system to measure")
	size := set.String("log", "8GiB",
		"log that no checkpoint has taken up; the file takes twice as much")
	profile := set.String("profile", "", "write a CPU profile of the start to this `file`")
	strict := set.Bool("strict", false, "exit with 3 when a target is missed")
	if err := set.Parse(args); err != nil {
		return err
	}
	log, err := domain.ParseBytes(*size)
	if err != nil {
		return err
	}
	if log < 64*mib || log > recoverNode || int64(log)%int64(domain.VolumeMin) != 0 {
		return fmt.Errorf("-log: multiples of %s from 64MiB to %s", domain.VolumeMin,
			domain.Bytes(recoverNode))
	}
	r, err := recoverOnce(ctx, *dir, *profile, int64(log))
	if err != nil {
		return err
	}
	failed, err := r.report(out)
	if err == nil && failed > 0 && *strict {
		err = errMissed
	}
	return err
}

// recoverOnce writes a log of random writes, ends the engine as a crash does, and opens it again.
func recoverOnce(ctx context.Context, dir, profile string, log int64) (r recovery, err error) {
	dir, err = os.MkdirTemp(dir, "weft-recover-")
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	f := serveFlags{
		file: filepath.Join(dir, "device"), device: 2 * log, volume: log, mode: modeDurable,
		checkpoint: 1 << 40,
	}
	s := &server{}
	if err := s.openDisk(ctx, f); err != nil {
		return r, errors.Join(err, s.close())
	}
	v := newDriver(s.disk, load{Name: "log", RW: "randwrite", Block: 4 * kib, Depth: 128})
	_, err = v.run(ctx, 0)
	r.log, r.entries = v.hist.total*4*kib, v.hist.total
	s.eng.Abandon()
	s.eng = nil // to be closed no more: that would be a checkpoint
	if err := errors.Join(err, s.close()); err != nil {
		return r, err
	}
	again := &server{}
	defer func() { err = errors.Join(err, again.close()) }()
	if profile != "" {
		out, err := os.Create(profile)
		if err != nil {
			return r, err
		}
		defer func() { err = errors.Join(err, out.Close()) }()
		if err := pprof.StartCPUProfile(out); err != nil {
			return r, err
		}
		defer pprof.StopCPUProfile()
	}
	began, cpu := time.Now(), ownCPU()
	if err := again.openDisk(ctx, f); err != nil {
		return r, err
	}
	r.took, r.cpu = time.Since(began), ownCPU()-cpu
	st := again.dev.Stats()
	r.read, r.reads = st.ReadBytes, st.Reads
	if live := again.eng.Stats().LiveBytes; live == 0 {
		return r, errors.New("nothing was recovered")
	}
	return r, nil
}

// ownCPU gives the processor time of this process so far.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// report writes what it took, and what the goal's log would take at that rate.
func (r recovery) report(w io.Writer) (failed int, err error) {
	rate := r.cpu.Seconds() * float64(recoverLog) / float64(r.log)
	_, err = fmt.Fprintf(w, `
%s of log in %d records of 4 KiB behind the checkpoint, random, then a crash:
open    %.2f s, %.2f s of processor, %.0f ns a record
read    %s in %d requests, %.2f %% of the log
A node leaves at most %s without a checkpoint: %.2f s of processor at this rate.

`, domain.Bytes(r.log), r.entries, r.took.Seconds(), r.cpu.Seconds(),
		float64(r.cpu.Nanoseconds())/float64(r.entries), domain.Bytes(r.read), r.reads,
		100*float64(r.read)/float64(r.log), domain.Bytes(recoverNode), rate*recoverNode/recoverLog)
	if err != nil {
		return 0, err
	}
	return printTargets(w, []target{{
		Name: fmt.Sprintf("processor time for %s of log, extrapolated", domain.Bytes(recoverLog)),
		Want: recoverMost, Most: true, Unit: "s", Got: spreadOf([]float64{rate}),
	}}, false)
}
