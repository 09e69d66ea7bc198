package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

// printTable writes the results as one table: a line for each row and column, with the median and,
// for IOPS and the ratio to raw, the least and the most of the repeats.
func (r *results) printTable(w io.Writer) error {
	lines := [][]string{{
		"row", "column", "IOPS", "min..max", "MB/s", "p50 us", "p99 us", "CPU us/IO", "WA", "x raw",
		"min..max",
	}}
	for _, row := range loads() {
		lines = append(lines, nil)
		for _, column := range columns() {
			if line := r.line(row, column); line != nil {
				lines = append(lines, line)
			}
		}
		if lines[len(lines)-1] == nil {
			lines = lines[:len(lines)-1]
		}
	}
	_, err := io.WriteString(w, align(lines, 2)+"\n")
	return err
}

// align pads fields to columns: so many of the first ones stand on the left, the others on the
// right. A line without fields stays empty.
func align(lines [][]string, left int) string {
	var width []int
	for _, line := range lines {
		for i, field := range line {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], len(field))
		}
	}
	var b strings.Builder
	for _, line := range lines {
		var text strings.Builder
		for i, field := range line {
			pad := width[i]
			if i < left {
				pad = -pad
			}
			fmt.Fprintf(&text, "%*s  ", pad, field)
		}
		b.WriteString(strings.TrimRight(text.String(), " ") + "\n")
	}
	return b.String()
}

// line gives the fields of a line, nil for a cell that was not tried.
func (r *results) line(row load, column string) []string {
	c := cell{row, column}
	io := r.of(c, iops)
	if io.N == 0 {
		if len(r.failures[c.String()]) == 0 {
			return nil
		}
		return []string{row.Name, column, "failed", "", "", "", "", "", "", "", ""}
	}
	ratio := r.ratio(row, column, raw)
	return []string{
		row.Name, column, digits(io.Median), bounds(io), digits(r.of(c, mbps).Median),
		latency(r.of(c, p50)), latency(r.of(c, p99)), digits(r.of(c, cpu).Median),
		written(row, r.of(c, amplification)),
		factor(ratio), bounds(ratio),
	}
}

// digits gives a number with as many digits as a reader wants: three, or all before the point.
func digits(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// latency is digits, or a dash for a client that tells none.
func latency(s spread) string {
	if s.Median == 0 {
		return "-"
	}
	return digits(s.Median)
}

// written is the amplification of a row that writes, or a dash.
func written(row load, s spread) string {
	if !row.writes() || s.N == 0 {
		return "-"
	}
	return digits(s.Median)
}

func factor(s spread) string {
	if s.N == 0 {
		return "-"
	}
	return digits(s.Median)
}

// bounds gives least and most; there are none for one value.
func bounds(s spread) string {
	if s.N < 2 {
		return "-"
	}
	return digits(s.Min) + ".." + digits(s.Max)
}

// printRatios writes the ratios that people ask for, by row.
func (r *results) printRatios(w io.Writer) error {
	pairs := [][2]string{
		{nbdDurable, qemuNBD},
		{nbdProcess, qemuNBD},
		{nbdUnix, qemuNBD},
		{iscsiDurable, tgt},
		{iscsiProcess, tgt},
		{engineDurable, raw},
		{engineNVRAM, raw},
	}
	head := []string{"ratio of IOPS"}
	for _, p := range pairs {
		head = append(head, p[0]+"/"+p[1])
	}
	lines := [][]string{head}
	for _, row := range loads() {
		line, some := []string{row.Name}, false
		for _, p := range pairs {
			s := r.ratio(row, p[0], p[1])
			some = some || s.N > 0
			text := factor(s)
			if s.N > 1 {
				text += " (" + bounds(s) + ")"
			}
			line = append(line, text)
		}
		if some {
			lines = append(lines, line)
		}
	}
	if len(lines) == 1 {
		return nil
	}
	_, err := io.WriteString(w, align(lines, 1)+"\n")
	return err
}

// printTargets writes the judged figures and tells how many were missed. A target without a figure
// is missed too, but in a partial run, which does not have all of them on purpose.
func printTargets(w io.Writer, targets []target, partial bool) (failed int, err error) {
	var lines [][]string
	passed, unknown := 0, 0
	for _, g := range targets {
		verdict, got, order := "FAIL", factor(g.Got)+" "+g.Unit, ">="
		if g.Most {
			order = "<="
		}
		switch {
		case !g.known() && partial:
			continue
		case !g.known():
			unknown++
			failed++
			got = "no figure"
		case g.pass():
			verdict = "PASS"
			passed++
		default:
			failed++
		}
		lines = append(lines, []string{
			verdict, g.Name, got, "(" + bounds(g.Got) + ")",
			fmt.Sprintf("target %s %s %s", order, digits(g.Want), g.Unit),
		})
	}
	_, err = fmt.Fprintf(w, "%stargets: %d passed, %d failed (%d of them without a figure)\n",
		align(lines, 2), passed, failed, unknown)
	return failed, err
}

// footer says what the columns promise, so that nobody compares unlike things unawares.
const footer = `Medians of %d runs of %s, columns interleaved; ratios are taken within a repeat.
Durability: an acknowledged write in engine, nbd, nbd-unix and iscsi survives a power cut (FUA on
a device that is "%s"). In the columns with -process it survives a crash of the process, like
a write to qemu-nbd or tgt, neither of which flushes; compare those with them. Reads do not differ
by mode and are measured once. raw does not flush, but in the rows named durable: there it is fio
psync, one job per place in the queue, fdatasync after each write; its latency is the sum of both.
engine-nvram survives a crash of the process too, not a power cut: its journal is shared memory. WA
is what the device took for each byte written, cleaning and checkpoints included.
CPU is that of the server's process, cleaning and checkpoints included; the client and the bridge
of iscsi and tgt are not in it. raw: fio itself. engine: server and driver in one process.
Rows named initiator go without the bridge, which costs more than either target: there the client
is qemu-img bench with libiscsi inside, in strides over the disk, and tells no latencies.
Rows run from top to bottom: 1m-read follows 1m-write, so it reads what was written in order; the
random reads before it find blocks where random writes have left them.
`

// moved says how much the cleaner moved below the journal while random writes at depth were judged:
// with nothing moved they were judged before cleaning.
func (r *results) moved() string {
	s := r.of(cell{deepWrite(), engineNVRAM}, moving)
	if s.N == 0 {
		return ""
	}
	return fmt.Sprintf("%s, %s: for 100 bytes written the cleaner moved %s (%s).\n\n",
		deepWrite().Name, engineNVRAM, digits(s.Median), bounds(s))
}

// document is what -json writes.
type document struct {
	Host     map[string]string   `json:"host"`
	Runtime  string              `json:"runtime"`
	Repeats  int                 `json:"repeats"`
	Size     int64               `json:"size_bytes"`
	Samples  map[string][]sample `json:"samples"`
	Failures map[string][]string `json:"failures,omitempty"`
	Without  map[string]string   `json:"without,omitempty"`
	Targets  []verdict           `json:"targets"`
}

// verdict is a target with its outcome.
type verdict struct {
	target
	Pass bool `json:"pass"`
}

func (b *bench) writeJSON(host map[string]string, targets []target) error {
	d := document{
		Host: host, Runtime: b.runtime.String(), Repeats: b.repeats, Size: b.size,
		Samples: b.results.samples, Failures: b.results.failures, Without: b.without,
	}
	for _, t := range targets {
		d.Targets = append(d.Targets, verdict{t, t.pass()})
	}
	out, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(b.json, append(out, '\n'), 0o644)
}

// report writes everything that a run gave, and tells how many targets were missed.
func (b *bench) report(w io.Writer, host map[string]string, partial bool) (int, error) {
	if err := b.results.printTable(w); err != nil {
		return 0, err
	}
	durability := "not used"
	for _, n := range b.nodes {
		durability = n.hello.Durability
	}
	_, _ = fmt.Fprintf(w, footer+"\n", b.repeats, b.runtime, durability)
	_, _ = io.WriteString(w, b.results.moved())
	for _, column := range columns() {
		if why := b.without[column]; why != "" {
			_, _ = fmt.Fprintf(w, "without %s: %s\n\n", column, why)
		}
	}
	for _, c := range b.cells {
		for _, why := range b.results.failures[c.String()] {
			_, _ = fmt.Fprintf(w, "failed: %s: %s\n\n", c, why)
		}
	}
	if err := b.results.printRatios(w); err != nil {
		return 0, err
	}
	targets := b.results.targets()
	failed, err := printTargets(w, targets, partial)
	if err != nil {
		return 0, err
	}
	if b.json == "" {
		return failed, nil
	}
	return failed, b.writeJSON(host, targets)
}
