package main

import (
	"cmp"
	"math"
	"slices"
)

// spread is a median with the least and the most beside it. N is 0 when there is nothing.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	N      int     `json:"n"`
}

// spreadOf takes values that are numbers: others are left out.
func spreadOf(values []float64) spread {
	v := slices.DeleteFunc(slices.Clone(values), func(x float64) bool {
		return math.IsNaN(x) || math.IsInf(x, 0)
	})
	if len(v) == 0 {
		return spread{}
	}
	slices.Sort(v)
	mid := len(v) / 2
	median := v[mid]
	if len(v)%2 == 0 {
		median = (v[mid-1] + v[mid]) / 2
	}
	return spread{median, v[0], v[len(v)-1], len(v)}
}

// figure is one number of a sample.
type figure func(sample) float64

func iops(s sample) float64 { return s.IOPS }
func mbps(s sample) float64 { return s.MBps }
func p50(s sample) float64  { return s.P50 }
func p99(s sample) float64  { return s.P99 }
func cpu(s sample) float64  { return s.CPU }

// ownCost is the CPU of what is measured, without the driver's.
func ownCost(s sample) float64 { return s.CPU - s.Driver }

// amplification is what the device took for each byte of the client's, by all causes. Only servers
// of ours tell it.
func amplification(s sample) float64 {
	if s.Log == nil {
		return math.NaN()
	}
	return float64(s.Log.Written) / float64(s.Log.UserBytes)
}

// moving is what the cleaner moved for a hundred bytes of the client's.
func moving(s sample) float64 {
	if s.Log == nil {
		return math.NaN()
	}
	const percent = 100
	return percent * float64(s.Log.MovedBytes) / float64(s.Log.UserBytes)
}

// results holds the samples of all cells.
type results struct {
	samples  map[string][]sample // by cell.String
	failures map[string][]string
}

func newResults() *results {
	return &results{map[string][]sample{}, map[string][]string{}}
}

func (r *results) of(c cell, f figure) spread {
	var v []float64
	for _, s := range r.samples[c.String()] {
		v = append(v, f(s))
	}
	return spreadOf(v)
}

// ratio divides the IOPS of two columns of one row.
func (r *results) ratio(row load, a, b string) spread {
	return r.quotient(cell{row, a}, cell{row, b}, iops)
}

// quotient divides a figure of two cells within each repeat that has both. So the spread is that of
// the ratio, and not of the machine.
func (r *results) quotient(a, b cell, of figure) spread {
	var v []float64
	below := r.samples[b.String()]
	for _, s := range r.samples[a.String()] {
		i := slices.IndexFunc(below, func(o sample) bool { return o.Repeat == s.Repeat })
		if i >= 0 {
			v = append(v, of(s)/of(below[i]))
		}
	}
	return spreadOf(v)
}

// target is a line of the final list: a figure, and what it must be.
type target struct {
	Name string  `json:"name"`
	Want float64 `json:"want"`
	Most bool    `json:"most,omitempty"` // Want is the most, not the least
	Unit string  `json:"unit"`           // "x" or "us"
	Got  spread  `json:"got"`
}

// known tells whether there is a figure at all.
func (t target) known() bool { return t.Got.N > 0 }

// pass judges the median.
func (t target) pass() bool {
	order := cmp.Compare(t.Got.Median, t.Want)
	return t.known() && (order == 0 || order < 0 == t.Most)
}

// engineTargets gives the judged figures of an engine without a journal: what it acknowledges is
// durable, and raw does not flush.
func (r *results) engineTargets() []target {
	read, write := deepRead(), deepWrite()
	return []target{
		{
			Name: read.Name + ": " + engineDurable + " / " + raw, Want: 0.9, Unit: "x",
			Got: r.ratio(read, engineDurable, raw),
		},
		{
			Name: read.Name + ": CPU per I/O, driver included, " + engineDurable + " / " + raw,
			Want: 1.6, Most: true, Unit: "x",
			Got: r.quotient(cell{read, engineDurable}, cell{read, raw}, cpu),
		},
		{
			Name: write.Name + ": " + engineDurable + " / " + raw, Want: 1, Unit: "x",
			Got: r.ratio(write, engineDurable, raw),
		},
		{
			Name: write.Name + ": bytes written per byte, " + engineDurable,
			Want: 1.1, Most: true, Unit: "x", Got: r.of(cell{write, engineDurable}, amplification),
		},
	}
}

// nvramTargets gives the judged figures of writes through a journal.
func (r *results) nvramTargets() []target {
	l := deepWrite()
	c := cell{l, engineNVRAM}
	return []target{
		{
			Name: l.Name + ": " + engineNVRAM + " / " + raw, Want: 5, Unit: "x",
			Got: r.ratio(l, engineNVRAM, raw),
		},
		{
			Name: l.Name + ": MB/s of " + engineNVRAM + " / " + sequentialWrite().Name + " " + raw,
			Want: 0.7, Unit: "x", Got: r.quotient(c, cell{sequentialWrite(), raw}, mbps),
		},
		{
			Name: l.Name + ": CPU per I/O without the driver's, " + engineNVRAM,
			Want: 2.5, Most: true, Unit: "us", Got: r.of(c, ownCost),
		},
		{
			Name: l.Name + ": bytes written per byte, " + engineNVRAM,
			Want: 1.06, Most: true, Unit: "x", Got: r.of(c, amplification),
		},
	}
}

// peer gives the column that is compared with a server which never flushes: writes in the mode that
// promises as little as it does, reads in the only mode they are measured in.
func peer(row load, process, durable string) string {
	if measured(row, process) {
		return process
	}
	return durable
}

// targets gives the judged figures of the first complete version. What acknowledges durable writes
// beside a peer that does not is in the table, and judged against raw fdatasync.
func (r *results) targets() []target {
	var out []target
	ratio := func(row load, a, b string, want float64) {
		out = append(out, target{
			Name: row.Name + ": " + a + " / " + b, Want: want, Unit: "x", Got: r.ratio(row, a, b),
		})
	}
	most := func(row load, column string, us float64) {
		out = append(out, target{
			Name: row.Name + ": CPU per I/O of the node, " + column, Want: us, Most: true,
			Unit: "us", Got: r.of(cell{row, column}, cpu),
		})
	}
	for _, row := range loads() {
		if measured(row, qemuNBD) {
			ratio(row, peer(row, nbdProcess, nbdDurable), qemuNBD, 1)
		}
	}
	for _, row := range loads() {
		if row.Initiator {
			ratio(row, peer(row, iscsiProcess, iscsiDurable), tgt, 1.5)
		}
	}
	for _, row := range loads() {
		switch {
		case row.Synced:
			ratio(row, engineDurable, raw, 1)
		case row.Initiator:
		case row.Block == 4*kib && row.Depth == 32 && row.writes():
			most(row, nbdProcess, 41)
			most(row, nbdDurable, 41)
		case row.Block == 4*kib && row.Depth == 32:
			most(row, nbdDurable, 30)
		}
	}
	return append(append(out, r.engineTargets()...), r.nvramTargets()...)
}
