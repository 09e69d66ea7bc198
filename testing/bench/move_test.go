package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"weft/domain"
)

// TestMoveMeasures moves a small volume there and back, and measures all of it.
func TestMoveMeasures(t *testing.T) {
	b := &moveBench{dir: t.TempDir(), size: 64 * mib, depth: 4, runtime: time.Millisecond}
	if err := b.measure(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := b.row
	if r.raw == 0 || r.quiet == 0 || r.loaded == 0 || r.alone == 0 || r.met == 0 || r.pause == 0 ||
		r.longest == 0 || r.before == 0 || r.took < r.pause {
		t.Errorf("%+v", r)
	}
}

// TestMoveReport proves that the longest write is judged by that of the load on its own.
func TestMoveReport(t *testing.T) {
	for longest, want := range map[time.Duration]int{
		pauseMost + time.Second: 0, pauseMost + time.Second + time.Millisecond: 1,
	} {
		var out bytes.Buffer
		r := moveRow{raw: 2e9, quiet: 1e9, loaded: 5e8, before: time.Second, longest: longest}
		if failed, err := r.report(&out, 32); err != nil || failed != want {
			t.Errorf("%s: %d failed, %v", longest, failed, err)
		}
		if !strings.Contains(out.String(), "0.25") {
			t.Error(out.String())
		}
	}
}

// TestMoveRefuses proves that sizes that make no sense are refused before anything is written.
func TestMoveRefuses(t *testing.T) {
	for _, size := range []string{"x", "1MiB", "9GiB", domain.Bytes(65*mib + 1).String()} {
		if err := benchMove(t.Context(), []string{"-size", size}, &bytes.Buffer{}); err == nil {
			t.Errorf("%s is taken", size)
		}
	}
}
