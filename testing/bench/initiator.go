package main

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"time"
)

const (
	// stride of the initiator's rows: neighbours in time are far apart on the disk, and a pass over
	// the disk never meets the blocks of the pass before.
	stride = mib + 4*kib
	// trial is how many I/Os tell how many the time asked for holds.
	trial = 20000
)

// initiate runs a row by qemu-img bench, which ends after a count and not after a time: a trial
// gives the count. The sample's Count has both, for so the server's CPU time has.
func initiate(ctx context.Context, uri string, l load, d time.Duration) (sample, error) {
	first, err := initiateCount(ctx, uri, l, trial, d+overrun)
	if err != nil {
		return sample{}, err
	}
	count := max(int64(first.IOPS*d.Seconds()), trial)
	s, err := initiateCount(ctx, uri, l, count, 3*d+overrun)
	s.Count += trial
	return s, err
}

func initiateCount(ctx context.Context, uri string, l load, count int64, limit time.Duration) (
	sample, error,
) {
	args := []string{
		"qemu-img", "bench", "-f", "raw", "-t", "none", "-c", strconv.FormatInt(count, 10),
		"-d", strconv.Itoa(l.Depth), "-s", strconv.Itoa(l.Block),
		"-S", strconv.Itoa(stride),
	}
	if l.writes() {
		args = append(args, "-w")
	}
	out, err := output(ctx, limit, append(args, uri)...)
	if err != nil {
		return sample{}, err
	}
	return parseInitiator(out, l, count)
}

// completed is the last line of qemu-img bench.
var completed = regexp.MustCompile(`(?m)^Run completed in ([0-9.]+) seconds\.`)

// parseInitiator reads the report of a run of so many I/Os. It tells no latencies.
func parseInitiator(out []byte, l load, count int64) (sample, error) {
	m := completed.FindSubmatch(out)
	if m == nil {
		return sample{}, fmt.Errorf("qemu-img bench: no time in %q", out)
	}
	took, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil || took <= 0 {
		return sample{}, fmt.Errorf("qemu-img bench: took %q s", m[1])
	}
	rate := float64(count) / took
	return sample{Count: count, IOPS: rate, MBps: rate * float64(l.Block) / 1e6}, nil
}
