package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"

	"weft/domain"
)

// The exit codes.
const (
	exitFailed = 1 // it could not be done
	exitUsage  = 2
	exitMissed = 3 // with -strict: a target was missed
)

var errMissed = errors.New("targets were missed")

func main() {
	// Children die with the thread that started them: the main goroutine keeps the main thread.
	runtime.LockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM,
		syscall.SIGHUP)
	err := run(ctx, os.Args[1:])
	stop()
	switch {
	case err == nil:
		return
	case errors.Is(err, flag.ErrHelp):
		os.Exit(exitUsage)
	case errors.Is(err, errMissed):
		os.Exit(exitMissed)
	case errors.Is(err, context.Canceled):
		err = errors.New("interrupted; the files are removed, and what is printed is not complete")
	}
	_, _ = fmt.Fprintln(os.Stderr, "bench:", err)
	os.Exit(exitFailed)
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 && args[0] == "serve" {
		return serve(ctx, args[1:], os.Stdin, os.Stdout)
	}
	if len(args) > 0 && args[0] == "log" {
		return benchLog(ctx, args[1:], os.Stdout)
	}
	if len(args) > 0 && args[0] == "log-voter" {
		return voter(ctx, args[1:], os.Stdin)
	}
	if len(args) > 0 && args[0] == "fill" {
		return benchFill(ctx, args[1:], os.Stdout)
	}
	if len(args) > 0 && args[0] == "recover" {
		return benchRecover(ctx, args[1:], os.Stdout)
	}
	if len(args) > 0 && args[0] == "move" {
		return benchMove(ctx, args[1:], os.Stdout)
	}
	o, err := parse(args)
	if err != nil {
		return err
	}
	return compare(ctx, o, os.Stdout)
}

// parse reads the flags of the first mode.
func parse(args []string) (options, error) {
	o := options{log: os.Stderr}
	set := flag.NewFlagSet("bench", flag.ContinueOnError)
	set.DurationVar(&o.runtime, "runtime", 20*time.Second, "length of each run")
	set.IntVar(&o.repeats, "repeats", 3, "runs of each cell, interleaved")
	size := set.String("size", "2GiB",
		"size of the disks; the files take thirteen times as much, or by -room and -journal-room more")
	set.Int64Var(&o.room, "room", 4, "how many times the size of its volume a device of ours is: at "+
		"4, 35 % of what it takes is live; at 2, 71 %, and random writes pay for cleaning")
	set.Int64Var(&o.below, "journal-room", 4, "the same of the device below the journal of "+
		"engine-nvram: at 4, random writes pay for cleaning all the time; at 16, not before they have "+
		"passed the volume 14 times, in all repeats together")
	cache := set.String("read-cache", "128MiB", "memory of each server of ours for what is read "+
		"again; the default is that of weft serve")
	set.StringVar(&o.dir, "dir", os.TempDir(), "folder on the file system to measure")
	only := set.String("only", "", "measure only what `regexp` matches in \"row/column\", such as "+
		"\"4k-rand.*qd32/(raw|nbd|qemu-nbd)$\"; ratios need both columns")
	set.StringVar(&o.json, "json", "", "write all samples to this `file`, too")
	set.StringVar(&o.profile, "profile", "", "write a CPU profile of each server to this `folder`")
	set.StringVar(&o.aio, "qemu-aio", "io_uring", "how qemu-nbd does its I/O: io_uring or native")
	set.BoolVar(&o.strict, "strict", false, "exit with 3 when a target is missed")
	if err := set.Parse(args); err != nil {
		return o, err
	}
	if set.NArg() > 0 {
		return o, fmt.Errorf("argument %q: only flags are taken", set.Arg(0))
	}
	if *only != "" {
		re, err := regexp.Compile(*only)
		if err != nil {
			return o, err
		}
		o.only = re
	}
	n, err := domain.ParseBytes(*size)
	if err != nil {
		return o, err
	}
	o.size = int64(n)
	if n, err = domain.ParseBytes(*cache); err != nil {
		return o, err
	}
	o.cache = int64(n)
	return o, o.validate()
}

// compare is the first mode: prepare, measure, report, and leave nothing behind.
func compare(ctx context.Context, o options, w io.Writer) (err error) {
	b := &bench{
		options: o, nodes: map[string]*node{}, subjects: map[string]subject{},
		results: newResults(), without: missing(),
	}
	if b.without[raw] != "" {
		return errNoFIO
	}
	b.cells = cells(o.only, b.without)
	if len(b.cells) == 0 {
		return errors.New("-only matches no row/column")
	}
	if err := b.room(); err != nil {
		return err
	}
	host := facts(ctx, o)
	total := time.Duration(len(b.cells)*b.repeats) * (b.runtime + overhead)
	b.progress("%d cells, %d repeats of %s: about %s", len(b.cells), b.repeats, b.runtime,
		total.Round(time.Second))
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.prepare(ctx); err != nil {
		return err
	}
	broken := b.measure(ctx)
	if broken != nil && len(b.results.samples) == 0 {
		return broken
	}
	_, _ = fmt.Fprintf(w, "Weft bench: %s, %s cores, %s, %s, %s, %s on %s\n\n", host["kernel"],
		host["cores"], host["fio"], host["qemu-nbd"], host["tgtd"], o.dir, host["disk"])
	missed, err := b.report(w, host, broken != nil || o.only != nil)
	switch {
	case broken != nil:
		err = errors.Join(err, fmt.Errorf("the table is not complete: %w", broken))
	case err == nil && missed > 0 && o.strict:
		err = errMissed
	}
	return err
}

// room refuses to begin where the files would fill the file system.
func (b *bench) room() error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(b.dir, &st); err != nil {
		return fmt.Errorf("%s: %w", b.dir, err)
	}
	need, free := b.files()+gib, int64(st.Bavail)*st.Bsize
	if free < need {
		return fmt.Errorf("%s has %s free, %s are needed: choose another -dir or a smaller -size",
			b.dir, domain.Bytes(free/mib*mib), domain.Bytes(need))
	}
	return nil
}

// facts gathers what a reader must know to judge the figures.
func facts(ctx context.Context, o options) map[string]string {
	f := map[string]string{
		"cores": fmt.Sprint(runtime.NumCPU()), "go": runtime.Version(), "disk": "unknown",
		"qemu-aio": o.aio,
	}
	for name, argv := range map[string][]string{
		"fio":      {"fio", "--version"},
		"qemu-nbd": {"qemu-nbd", "--version"}, "tgtd": {"tgtd", "--version"},
	} {
		f[name] = "no " + name
		if _, err := exec.LookPath(argv[0]); err != nil {
			continue
		}
		if out, err := output(ctx, toolLimit, argv...); err == nil {
			line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
			f[name], _, _ = strings.Cut(line, " (")
		}
	}
	if release, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		f["kernel"] = "Linux " + strings.TrimSpace(string(release))
	}
	if v := f["tgtd"]; v != "no tgtd" {
		f["tgtd"] = "tgtd " + v
	}
	if disk, err := mediaOf(o.dir); err == nil {
		f["disk"] = disk
	}
	return f
}
