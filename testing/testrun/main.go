// Command testrun runs "go test -json" with its own arguments and shows what a person wants to see:
// the output of every test that failed, the reason of every skip, how long each package took, and
// one last line with the counts. Its exit status is that of go test.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// event is one line of go test -json.
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
	Elapsed float64
}

// result gathers what a test printed until it ends.
type result struct {
	output []string
}

// tally counts the tests of a run.
type tally struct {
	passed, failed, skipped int
	skips                   []string
	open                    map[string]*result
	out                     *printer
}

// printer writes for a person; where nobody reads any more there is nothing left to do.
type printer struct{ w io.Writer }

func (p *printer) printf(format string, args ...any) { _, _ = fmt.Fprintf(p.w, format, args...) }

func main() {
	cmd := exec.Command("go", append([]string{"test", "-json"}, os.Args[1:]...)...)
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "testrun:", err)
		os.Exit(2)
	}
	t := &tally{open: map[string]*result{}, out: &printer{os.Stdout}}
	t.read(pipe)
	err = cmd.Wait()
	t.report()
	if err != nil {
		os.Exit(1)
	}
}

// read follows the events to their end. Lines that are no events are shown as they are.
func (t *tally) read(r io.Reader) {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 1<<16), 1<<24)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			t.out.printf("%s\n", lines.Text())
			continue
		}
		t.take(e)
	}
}

func (t *tally) take(e event) {
	key := e.Package + "\n" + e.Test
	res := t.open[key]
	if res == nil {
		res = &result{}
		t.open[key] = res
	}
	switch e.Action {
	case "output", "build-output":
		res.output = append(res.output, e.Output)
		return
	case "pass", "fail", "skip":
	default:
		return
	}
	delete(t.open, key)
	if e.Test == "" {
		t.finished(e, res)
		return
	}
	switch e.Action {
	case "pass":
		t.passed++
	case "fail":
		t.failed++
		t.out.printf("FAIL %s %s\n%s", e.Package, e.Test, strings.Join(res.output, ""))
	case "skip":
		t.skipped++
		t.skips = append(t.skips, e.Package+" "+e.Test+": "+reason(res.output))
	}
}

// finished tells how a package ended. Of one that failed it shows the tests that never ended, too:
// a process that was killed, or ended itself, says nothing of them.
func (t *tally) finished(e event, res *result) {
	t.out.printf("%-4s %7.1fs %s\n", e.Action, e.Elapsed, e.Package)
	if e.Action != "fail" {
		return
	}
	t.failed++
	t.out.printf("%s", strings.Join(res.output, ""))
	for _, key := range slices.Sorted(maps.Keys(t.open)) {
		pkg, test, _ := strings.Cut(key, "\n")
		if pkg == e.Package && test != "" {
			t.out.printf("NOT ENDED %s %s\n%s", pkg, test, strings.Join(t.open[key].output, ""))
			delete(t.open, key)
		}
	}
}

// reason gives what a skipped test said.
func reason(output []string) string {
	for _, line := range output {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "===") && !strings.HasPrefix(line, "---") {
			return line
		}
	}
	return "no reason given"
}

// report shows the skips and the counts.
func (t *tally) report() {
	slices.Sort(t.skips)
	for _, s := range t.skips {
		t.out.printf("SKIP %s\n", s)
	}
	t.out.printf("%d passed, %d failed, %d skipped\n", t.passed, t.failed, t.skipped)
}
