package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	dir    string // where the image is kept
	weft   string // the binary
	jobs   []string
	limit  time.Duration // of one job
	memory int           // of the guest, MiB
	log    io.Writer
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	failed := 0
	if err == nil {
		failed, err = run(ctx, o)
	}
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(2)
	case failed > 0:
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	o := options{log: os.Stdout}
	set := flag.NewFlagSet("guest", flag.ContinueOnError)
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	jobs := ""
	set.StringVar(&o.dir, "dir", filepath.Join(cache, "weft-guest-image"), "where the image is kept")
	set.StringVar(&o.weft, "weft", "./weft", "the binary to be tried")
	set.StringVar(&jobs, "jobs", "iscsi,nbd", "what to run, in order")
	set.DurationVar(&o.limit, "limit", 15*time.Minute, "when a job is given up")
	set.IntVar(&o.memory, "memory", 2048, "of the guest, in MiB: its root is in it, too")
	if err := set.Parse(args); err != nil {
		return o, err
	}
	o.jobs = strings.Split(jobs, ",")
	for _, j := range o.jobs {
		if _, err := scripts.ReadFile("jobs/" + j + ".sh"); err != nil {
			return o, fmt.Errorf("no job %q: iscsi and nbd there are", j)
		}
	}
	return o, nil
}

// run makes the image where there is none and runs all jobs. It gives how many checks failed.
func run(ctx context.Context, o options) (failed int, err error) {
	img, err := o.image(ctx)
	if err != nil {
		return 0, err
	}
	passed := 0
	for _, j := range o.jobs {
		p, f, err := o.job(ctx, img, j)
		passed, failed = passed+p, failed+f
		if err != nil {
			return failed, fmt.Errorf("job %s: %w", j, err)
		}
	}
	_, _ = fmt.Fprintf(o.log, "guest: %d checks passed, %d failed\n", passed, failed)
	return failed, nil
}
