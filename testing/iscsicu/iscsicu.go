// Package iscsicu runs libiscsi's conformance suite (iscsi-test-cu, Debian package libiscsi-bin)
// against an iSCSI target and counts the results. Every test runs in a process of its own, because
// one that hangs or outlives its target would end the whole suite. All data on the logical unit is
// lost.
package iscsicu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"strings"
	"time"

	"weft/domain"
)

// Program is the name of the suite's executable.
const Program = "iscsi-test-cu"

const (
	limitDefault = 25 * time.Second
	outputMax    = 1 << 20 // bytes of a test's output that are looked at
	reasonMax    = 220
)

// Status is how one test ended.
type Status string

// The ways a test ends.
const (
	Pass Status = "pass" // every check held
	Skip Status = "skip" // the test found the feature absent
	Fail Status = "fail" // a check failed
	Hang Status = "hang" // no end within the limit
	Err  Status = "err"  // the test could not run
	// Faulty is a test that did not pass and that the caller lists as wrong in itself.
	Faulty Status = "faulty"
)

// Statuses lists them in the order of the summary.
var Statuses = []Status{Pass, Skip, Fail, Hang, Err, Faulty}

// Result is the outcome of one test.
type Result struct {
	Test   string
	Status Status
	Took   time.Duration
	Reason string
}

// Options says what to run.
type Options struct {
	// URLs are one or two paths to the same logical unit ("iscsi://host:port/iqn/lun"). The second
	// one enables the multipath tests.
	URLs []string
	// Prefixes keeps the tests whose names begin with one of them; empty keeps all.
	Prefixes []string
	// Limit bounds one test; 0 is 25 s.
	Limit time.Duration
	// Faulty names tests that no target can pass in this setup, with the reason.
	Faulty map[string]string
	// Output takes one line per test as it ends: name, status, seconds, reason, with tabs between.
	// Nil discards.
	Output io.Writer
}

// Report is the outcome of a run.
type Report struct {
	Results []Result
	Took    time.Duration
}

// Count tells how many tests ended in a way.
func (r Report) Count(s Status) int {
	n := 0
	for _, x := range r.Results {
		if x.Status == s {
			n++
		}
	}
	return n
}

// Summary gives one line of counts.
func (r Report) Summary() string {
	var b strings.Builder
	fmt.Fprintf(&b, "iscsi-cu total=%d", len(r.Results))
	for _, s := range Statuses {
		fmt.Fprintf(&b, " %s=%d", s, r.Count(s))
	}
	fmt.Fprintf(&b, " seconds=%.1f", r.Took.Seconds())
	return b.String()
}

// Check gives an error that lists every test that failed, hung or erred, or tells that fewer than
// least passed.
func (r Report) Check(least int) error {
	var errs []error
	for _, x := range r.Results {
		if x.Status != Pass && x.Status != Skip && x.Status != Faulty {
			errs = append(errs, fmt.Errorf("%s: %s: %s", x.Test, x.Status, x.Reason))
		}
	}
	if n := r.Count(Pass); n < least {
		errs = append(errs, fmt.Errorf("%d tests passed, fewer than %d", n, least))
	}
	return errors.Join(errs...)
}

// Available tells whether the suite is installed, and why not.
func Available() error {
	if _, err := exec.LookPath(Program); err != nil {
		return &domain.Error{
			Op: "iscsicu.Available", Kind: domain.NotFound, Ref: Program,
			Remedy: "install libiscsi-bin", Err: err,
		}
	}
	return nil
}

// Tests lists the distinct tests of the suite: of its families, LINUX repeats SCSI, and ALL both.
func Tests(ctx context.Context, prefixes []string) ([]string, error) {
	out, err := exec.CommandContext(ctx, Program, "-l").Output()
	if err != nil && len(out) == 0 {
		return nil, fmt.Errorf("iscsicu: list: %w", err)
	}
	var tests []string
	for line := range strings.Lines(string(out)) {
		name := strings.TrimSpace(line)
		distinct := strings.HasPrefix(name, "SCSI.") || strings.HasPrefix(name, "iSCSI.")
		if distinct && strings.Count(name, ".") == 2 && wanted(name, prefixes) {
			tests = append(tests, name)
		}
	}
	return tests, nil
}

func wanted(name string, prefixes []string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return len(prefixes) == 0
}

// Run runs the tests one after the other. It returns an error when the suite cannot be run at all;
// failed tests are in the report.
func Run(ctx context.Context, o Options) (Report, error) {
	var r Report
	if err := Available(); err != nil {
		return r, err
	}
	if len(o.URLs) < 1 || len(o.URLs) > 2 {
		return r, domain.Errorf(domain.Invalid, "%d URLs, want one or two", len(o.URLs))
	}
	tests, err := Tests(ctx, o.Prefixes)
	if err != nil {
		return r, err
	}
	if o.Limit == 0 {
		o.Limit = limitDefault
	}
	start := time.Now()
	for _, name := range tests {
		if err := ctx.Err(); err != nil {
			return r, err
		}
		x := runTest(ctx, name, o)
		r.Results = append(r.Results, x)
		r.Took = time.Since(start)
		if o.Output == nil {
			continue
		}
		_, err := fmt.Fprintf(o.Output, "%s\t%s\t%.2f\t%s\n", x.Test, x.Status, x.Took.Seconds(),
			x.Reason)
		if err != nil {
			return r, fmt.Errorf("iscsicu: output: %w", err)
		}
	}
	return r, nil
}

func runTest(ctx context.Context, name string, o Options) Result {
	limited, cancel := context.WithTimeout(ctx, o.Limit)
	defer cancel()
	args := []string{"--dataloss", "--allow-sanitize", "--verbose", "--test", name}
	cmd := exec.CommandContext(limited, Program, append(args, o.URLs...)...)
	var out clipped
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second
	start := time.Now()
	_ = cmd.Run() // the suite's own table tells the result, not its exit status
	x := Result{Test: name, Took: time.Since(start)}
	text := out.String()
	x.Status = statusOf(text)
	if limited.Err() != nil {
		x.Status = Hang
	}
	x.Reason = reasonOf(text, x.Status)
	if why, ok := o.Faulty[name]; ok && x.Status != Pass {
		x.Reason = fmt.Sprintf("%s: %s", x.Status, why)
		x.Status = Faulty
	}
	return x
}

// clipped keeps the first outputMax bytes that are written to it.
type clipped struct{ bytes.Buffer }

// Write implements io.Writer and never fails.
func (c *clipped) Write(p []byte) (int, error) {
	if room := outputMax - c.Len(); room > 0 {
		c.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

var (
	tablePattern  = regexp.MustCompile(`\btests\s+\d+\s+\d+\s+\d+\s+(\d+)`)
	markedPattern = regexp.MustCompile(`\[(?:FAILED|SKIPPED|WARNING)\][^\n]*`)
)

// statusOf reads the suite's table, which decides between pass and fail. A skip passes there and
// shows only in the text.
func statusOf(text string) Status {
	table := tablePattern.FindStringSubmatch(text)
	switch {
	case table == nil:
		return Err
	case strings.Trim(table[1], "0") != "":
		return Fail
	case strings.Contains(text, "[SKIPPED]"):
		return Skip
	}
	return Pass
}

// reasonOf picks the line that explains a status best.
func reasonOf(text string, s Status) string {
	if s == Pass {
		return ""
	}
	lines := markedPattern.FindAllString(text, -1)
	want := "[FAILED]"
	if s == Skip {
		want = "[SKIPPED]"
	}
	best := ""
	for _, l := range lines {
		if strings.HasPrefix(l, want) {
			best = l
			break
		}
	}
	if best == "" && len(lines) > 0 {
		best = lines[0]
	}
	if best == "" {
		all := strings.Split(strings.TrimSpace(text), "\n")
		best = all[len(all)-1]
	}
	best = strings.Join(strings.Fields(best), " ")
	return best[:min(len(best), reasonMax)]
}
