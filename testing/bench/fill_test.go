package main

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"weft/dataplane/engine"
	"weft/domain"
)

// still is a disk that nothing is sent to.
type still struct{ disk }

func (still) Info() domain.DiskInfo { return domain.DiskInfo{Size: 64 * mib} }

// TestSkew proves that a skewed load stays on the disk, that its hottest fiftieth takes most
// of the writes, and that these are not neighbours.
func TestSkew(t *testing.T) {
	v := newDriver(still{}, load{RW: "randwrite", Block: 4 * kib, Depth: 1})
	v.skew(zipfExponent)
	const draws = 200_000
	blocks := v.size / int64(v.load.Block)
	counts := make([]int, blocks)
	for range draws {
		off := v.offset()
		if off < 0 || off >= v.size || off%int64(v.load.Block) != 0 {
			t.Fatalf("offset %d of %d", off, v.size)
		}
		counts[off/int64(v.load.Block)]++
	}
	hot, neighbours, sum := 0, 0, 0
	for i, n := range counts {
		if n > draws/2000 {
			hot, sum = hot+1, sum+n
			if i > 0 && counts[i-1] > draws/2000 {
				neighbours++
			}
		}
	}
	if int64(hot) > blocks/50 || sum < draws/2 || neighbours > hot/4 {
		t.Errorf("%d of %d blocks take %d of %d, %d side by side", hot, blocks, sum, draws, neighbours)
	}
	uniform := newDriver(still{}, load{RW: "randwrite", Block: 4 * kib, Depth: 1})
	uniform.skew(0)
	if uniform.pick != nil {
		t.Error("a uniform load is skewed")
	}
}

// TestFillTargets proves which figures are judged, and against what.
func TestFillTargets(t *testing.T) {
	rows := []fillRow{
		{
			fillCase: fillCase{20, 0, 1.10}, name: "a", written: 1.1,
			p99: []time.Duration{time.Hour, time.Millisecond, time.Millisecond}, longest: stallMax,
		},
		{
			fillCase: fillCase{80, 0, 3}, name: "b", written: 3.01,
			p99:     []time.Duration{2 * time.Millisecond},
			longest: stallMax + 2*time.Millisecond, device: time.Millisecond,
		},
		{fillCase: fillCase{95, 0, 0}, name: "c", written: 9, longest: time.Second, device: time.Second},
	}
	var out bytes.Buffer
	failed, err := reportFill(&out, rows, time.Second)
	if err != nil || failed != 2 {
		t.Errorf("%d failed, %v", failed, err)
	}
	for _, want := range []string{
		"PASS  a: bytes written per byte", "FAIL  b: bytes written per byte",
		"FAIL  b: longest acknowledgement beyond", "PASS  b: p99 to that of a",
		"PASS  c: longest acknowledgement", "targets: 4 passed, 2 failed",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
}

// TestFillMeasures ages a small device, uniform and skewed, and measures it: as full as it was
// asked for, and every byte accounted for.
func TestFillMeasures(t *testing.T) {
	b := fillBench{
		dir: t.TempDir(), device: 256 * mib, depth: 8, runtime: 20 * time.Millisecond, repeats: 2,
		log: io.Discard,
	}
	for _, c := range []fillCase{{20, 0, 0}, {50, zipfExponent, 0}} {
		r, err := b.measure(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		if r.live > float64(c.percent)/100 || r.live < float64(c.percent-5)/100 || r.written < 1 ||
			r.iops == 0 || len(r.p50) != 2 || r.p50[1] > r.p99[1] || r.p99[1] > r.longest || r.device == 0 {
			t.Errorf("%+v", r)
		}
	}
}

// TestFillAccounts proves that only what was written while it was measured counts.
func TestFillAccounts(t *testing.T) {
	var r fillRow
	r.note(engine.Stats{UserBytes: 100, Cleaned: 3},
		engine.Stats{UserBytes: 300, Cleaned: 10, LiveBytes: 7, UsableBytes: 10}, 500)
	if r.written != 2.5 || r.cleaned != 7 || r.live != 0.7 {
		t.Errorf("%+v", r)
	}
}

// TestFillRefuses proves that sizes that make no sense are refused before anything is written.
func TestFillRefuses(t *testing.T) {
	for _, args := range [][]string{
		{"-size", "1MiB"}, {"-depth", "0"}, {"-size", "x"}, {"-repeats", "0"},
	} {
		if err := benchFill(context.Background(), args, io.Discard); err == nil {
			t.Errorf("%v is taken", args)
		}
	}
}
