package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"weft/domain"
)

// TestRecoverMeasures recovers a small log, and finds all of it behind the checkpoint.
func TestRecoverMeasures(t *testing.T) {
	const log = 64 * mib
	r, err := recoverOnce(t.Context(), t.TempDir(), "", log)
	if err != nil {
		t.Fatal(err)
	}
	if r.log != log || r.entries != log/4096 || r.read < log/100 || r.read > log || r.cpu == 0 ||
		r.took == 0 {
		t.Errorf("%+v", r)
	}
}

// TestRecoverReport proves that the goal is judged by what its log would take.
func TestRecoverReport(t *testing.T) {
	for cpu, want := range map[time.Duration]int{46 * time.Millisecond: 0, 48 * time.Millisecond: 1} {
		var out bytes.Buffer
		r := recovery{log: gib, entries: gib / 4096, took: time.Second, cpu: cpu, read: gib / 50}
		if failed, err := r.report(&out); err != nil || failed != want {
			t.Errorf("%s: %d failed, %v", cpu, failed, err)
		}
		if !strings.Contains(out.String(), "2.00 % of the log") {
			t.Error(out.String())
		}
	}
}

// TestRecoverRefuses proves that sizes that make no sense are refused before anything is written.
func TestRecoverRefuses(t *testing.T) {
	for _, size := range []string{"x", "1MiB", "17GiB", domain.Bytes(65*mib + 1).String()} {
		if err := benchRecover(t.Context(), []string{"-log", size}, &bytes.Buffer{}); err == nil {
			t.Errorf("%s is taken", size)
		}
	}
}
