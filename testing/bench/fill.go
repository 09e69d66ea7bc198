package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"weft/dataplane/engine"
	"weft/domain"
)

// fillCase is a device that is full to a part of what it takes, under random writes.
type fillCase struct {
	percent int     // live data of what the device takes
	zipf    float64 // exponent; 0: uniform
	most    float64 // bytes written per byte that are allowed; 0: not judged
}

// name gives the row's name.
func (c fillCase) name(depth int) string {
	how := "uniform"
	if c.zipf > 0 {
		how = fmt.Sprintf("zipf %.1f", c.zipf)
	}
	return fmt.Sprintf("4k randwrite qd%d, %d %% full, %s", depth, c.percent, how)
}

// fillCases are the rows. The first is without cleaning: the others' latencies are compared with
// it.
var fillCases = []fillCase{
	{20, 0, 1.10}, {70, 0, 2.0}, {80, 0, 3.0}, {80, zipfExponent, 2.0}, {95, 0, 0},
}

const (
	zipfExponent = 1.1
	// turnover is how many times its size a volume is overwritten before it is measured, so that the
	// device is as it will be for ever. A skewed load takes longer to reach its coldest blocks.
	turnover     = 2
	turnoverZipf = 4
	// stallMax and slowMax are what an acknowledgement may take at the most, and at the 99th
	// percentile as a multiple of that without cleaning.
	stallMax = 50 * time.Millisecond
	slowMax  = 2.0
)

// fillBench measures what cleaning costs.
type fillBench struct {
	dir     string
	device  int64
	depth   int
	runtime time.Duration
	repeats int
	log     io.Writer
}

// fillRow is what one case gave.
type fillRow struct {
	fillCase
	name      string
	live      float64 // of what the device takes, as it was at the end
	written   float64 // bytes per byte of the host
	count     int64
	iops      float64
	p50       []time.Duration // of each repeat, as the next
	p99       []time.Duration
	longest   time.Duration // acknowledgement of all repeats
	device    time.Duration // the longest call into the device meanwhile
	cleaned   int64         // segments
	amplified int64         // bytes of the host while it was measured
}

func benchFill(ctx context.Context, args []string, out io.Writer) error {
	b := fillBench{log: os.Stderr}
	set := flag.NewFlagSet("bench fill", flag.ContinueOnError)
	set.StringVar(&b.dir, "dir", os.TempDir(), "folder on the file system to measure")
	set.DurationVar(&b.runtime, "runtime", 10*time.Second, "length of each run")
	set.IntVar(&b.repeats, "repeats", 3, "runs of each device")
	set.IntVar(&b.depth, "depth", 32, "requests under way")
	only := set.String("only", "", "run the rows whose name matches, and the first")
	size := set.String("size", "4GiB", "size of the device, a file")
	strict := set.Bool("strict", false, "exit with 3 when a target is missed")
	if err := set.Parse(args); err != nil {
		return err
	}
	bytes, err := domain.ParseBytes(*size)
	if err != nil {
		return err
	}
	if b.device = int64(bytes); b.device < gib || b.device > diskMax || b.depth < 1 ||
		b.depth > 1024 || b.repeats < 1 {
		return errors.New("-size: from 1 to 36 GiB, -depth: from 1 to 1024, -repeats: from 1 on")
	}
	chosen, err := regexp.Compile(*only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	var rows []fillRow
	for i, c := range fillCases {
		if i > 0 && !chosen.MatchString(c.name(b.depth)) {
			continue
		}
		r, err := b.measure(ctx, c)
		if err != nil {
			return fmt.Errorf("%d %% full: %w", c.percent, err)
		}
		_, _ = fmt.Fprintf(b.log, "bench: %s: WA %.2f, p99 %s, longest %s, of the device %s\n", r.name,
			r.written, r.p99, r.longest, r.device)
		rows = append(rows, r)
	}
	failed, err := reportFill(out, rows, b.runtime)
	if err == nil && failed > 0 && *strict {
		err = errMissed
	}
	return err
}

// measure ages a device of its own to a case, and then measures.
func (b *fillBench) measure(ctx context.Context, c fillCase) (r fillRow, err error) {
	dir, err := os.MkdirTemp(b.dir, "weft-fill-")
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s := &server{calls: &timed{}}
	defer func() { err = errors.Join(err, s.close()) }()
	usable, err := b.usable(ctx, dir)
	if err != nil {
		return r, err
	}
	volume := usable * int64(c.percent) / 100 / int64(domain.VolumeMin) * int64(domain.VolumeMin)
	f := serveFlags{
		file: filepath.Join(dir, "device"), device: b.device, volume: volume, mode: modeDurable,
	}
	if err := s.openDisk(ctx, f); err != nil {
		return r, err
	}
	r.fillCase, r.name = c, c.name(b.depth)
	turns := int64(turnover)
	if c.zipf > 0 {
		turns = turnoverZipf
	}
	fill := load{Name: "fill", RW: "write", Block: mib, Depth: 4}
	if _, err := newDriver(s.disk, fill).run(ctx, 0); err != nil {
		return r, err
	}
	age := newDriver(s.disk, load{Name: "age", RW: "randwrite", Block: 4 * kib, Depth: b.depth})
	age.skew(c.zipf)
	for range turns {
		if _, err := age.run(ctx, 0); err != nil {
			return r, err
		}
	}
	before, wrote := s.eng.Stats(), s.dev.Stats().WriteBytes
	s.calls.again()
	var took time.Duration
	for range b.repeats {
		age.hist = histogram{}
		t, err := age.run(ctx, b.runtime)
		if err != nil {
			return r, err
		}
		took += t
		r.count += age.hist.total
		r.p50, r.p99 = append(r.p50, age.hist.quantile(0.5)), append(r.p99, age.hist.quantile(0.99))
		r.longest = max(r.longest, age.hist.quantile(1))
	}
	after := s.eng.Stats()
	r.note(before, after, s.dev.Stats().WriteBytes-wrote)
	r.iops, r.device = float64(r.count)/took.Seconds(), s.calls.again()
	return r, nil
}

// usable tells what a device of that size takes, index included.
func (b *fillBench) usable(ctx context.Context, dir string) (n int64, err error) {
	s := &server{}
	file := filepath.Join(dir, "empty")
	err = s.openDisk(ctx, serveFlags{
		file: file, device: b.device, volume: int64(domain.VolumeMin), mode: modeProcess,
	})
	if err == nil {
		n = s.eng.Stats().UsableBytes
	}
	return n, errors.Join(err, s.close(), os.Remove(file))
}

func (r *fillRow) note(before, after engine.Stats, wrote int64) {
	r.amplified = after.UserBytes - before.UserBytes
	r.written = float64(wrote) / float64(max(r.amplified, 1))
	r.cleaned = after.Cleaned - before.Cleaned
	r.live = float64(after.LiveBytes) / float64(after.UsableBytes)
}

// skew lets the driver choose blocks by a Zipf distribution, the hot ones scattered over the disk.
func (v *driver) skew(exponent float64) {
	if exponent == 0 {
		return
	}
	blocks := uint64(v.size / int64(v.load.Block))
	z := mathrand.NewZipf(v.rng, exponent, 1, blocks-1)
	step := uint64(math.Phi*float64(blocks/2)) | 1
	for gcd(step, blocks) != 1 {
		step += 2
	}
	v.pick = func() int64 { return int64(z.Uint64() * step % blocks) }
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// fillFooter says what the columns are.
const fillFooter = `
%s
Each device was written once in order and then overwritten %d times by random writes, %d times where
they are skewed, before it was measured for %s, and again. live: of what the device takes. WA: what
the device took for each byte written, cleaning and checkpoints included. p50, p99: medians of the
runs. longest: of all of them; device: the longest call into the device meanwhile, and none of ours.

`

// in gives durations as numbers of a unit.
func in(unit time.Duration, d ...time.Duration) spread {
	v := make([]float64, len(d))
	for i := range d {
		v[i] = float64(d[i]) / float64(unit)
	}
	return spreadOf(v)
}

// reportFill writes the table and the judged figures, and tells how many were missed.
func reportFill(w io.Writer, rows []fillRow, runtime time.Duration) (failed int, err error) {
	lines := [][]string{{
		"row", "live", "IOPS", "p50 us", "p99 us", "longest ms", "device ms", "WA",
		"cleaned",
	}}
	var targets []target
	for _, r := range rows {
		lines = append(lines, []string{
			r.name, fmt.Sprintf("%.0f %%", 100*r.live), fmt.Sprintf("%.0f", r.iops),
			fmt.Sprintf("%.0f", in(time.Microsecond, r.p50...).Median),
			fmt.Sprintf("%.0f", in(time.Microsecond, r.p99...).Median),
			fmt.Sprintf("%.1f", in(time.Millisecond, r.longest).Median),
			fmt.Sprintf("%.1f", in(time.Millisecond, r.device).Median),
			fmt.Sprintf("%.2f", r.written), fmt.Sprint(r.cleaned),
		})
		if r.most > 0 {
			targets = append(targets, target{
				Name: r.name + ": bytes written per byte", Want: r.most, Most: true, Unit: "x",
				Got: spreadOf([]float64{r.written}),
			})
		}
		targets = append(targets, target{
			Name: r.name + ": longest acknowledgement beyond the device's longest call", Most: true,
			Want: in(time.Millisecond, stallMax).Median, Unit: "ms",
			Got: in(time.Millisecond, max(r.longest-r.device, 0)),
		})
		if r.percent == 80 {
			base := in(time.Microsecond, rows[0].p99...).Median
			got := in(time.Microsecond, r.p99...)
			targets = append(targets, target{
				Name: r.name + ": p99 to that of " + rows[0].name, Want: slowMax, Most: true, Unit: "x",
				Got: spread{got.Median / base, got.Min / base, got.Max / base, got.N},
			})
		}
	}
	_, err = fmt.Fprintf(w, fillFooter, align(lines, 1), turnover, turnoverZipf, runtime)
	if err != nil {
		return 0, err
	}
	return printTargets(w, targets, false)
}
