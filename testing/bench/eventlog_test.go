package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"
)

// TestMain lets this program be a child of the bench, too.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "log-voter" {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestBenchLog proves that the event log's mode measures every row with real logs of one and three
// voters, and judges them.
func TestBenchLog(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT TESTED: the bench of the event log: -short")
	}
	dir := t.TempDir()
	if _, err := mediaOf(dir); err != nil {
		t.Skipf("NOT TESTED: the bench of the event log: %v", err)
	}
	var out bytes.Buffer
	err := benchLog(t.Context(), []string{
		"-dir", dir, "-runtime", "100ms", "-repeats", "1", "-events", "1000", "-kills", "1",
	}, &out)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"raw write+fdatasync", "1 voter, 1 writer", "1 voter, 16 writers", "1 voter, 63 writers",
		"3 voters, 1 writer", "3 voters, 16 writers", "3 voters, 63 writers", "idle", "replay from",
		"start: all records", "rebuild of all views from 1000 events",
		"first start", "kill -9 of the leader, until writes resume: longest", "lost or standing twice",
		"growth 1-3-5", "longest time without a write", "views at a past position",
		"acknowledged over 1 kills, 0 of them lost, 0 events stand twice", "too short to have an archive",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if n := strings.Count(out.String(), "PASS") + strings.Count(out.String(), "FAIL"); n != 17 {
		t.Errorf("%d verdicts in\n%s", n, out.String())
	}
}

// TestLogVerdicts proves that a row is judged by its ratio where it has one, else by its value,
// and in the right direction.
func TestLogVerdicts(t *testing.T) {
	b := &logBench{}
	for _, r := range []struct {
		name         string
		value, ratio float64
		want         float64
		most         bool
	}{
		{"rate meets", 10, 3, 3, false},
		{"rate misses", 1000, 2.9, 3, false},
		{"latency meets", 1000, 3, 3, true},
		{"latency misses", 1, 3.1, 3, true},
		{"value meets", 9, 0, 10, true},
		{"value misses", 11, 0, 10, true},
	} {
		row := b.row(r.name, "x", r.want, r.most)
		row.values = append(row.values, r.value)
		if r.ratio > 0 {
			row.ratio = append(row.ratio, r.ratio)
		}
	}
	for name, values := range map[string][]float64{
		"worst meets": {1, 2, 10}, "worst misses": {1, 2, 11},
	} {
		row := b.row(name, "x", 10, true)
		row.values, row.worst = values, true
	}
	var out bytes.Buffer
	if err := b.report(&out, map[string]string{}); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out.String()) {
		if strings.Contains(line, "meets") && !strings.Contains(line, "PASS") ||
			strings.Contains(line, "misses") && !strings.Contains(line, "FAIL") {
			t.Error(line)
		}
	}
}

// TestHistogramMerge proves that what two histograms hold is what one would.
func TestHistogramMerge(t *testing.T) {
	var a, b, both histogram
	for i := range 1000 {
		d := time.Duration(i*i) * time.Microsecond
		both.add(d)
		if i%3 == 0 {
			a.add(d)
		} else {
			b.add(d)
		}
	}
	a.merge(&b)
	if a != both {
		t.Error("the sum is another")
	}
}
