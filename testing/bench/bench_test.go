package main

import (
	"bytes"
	"context"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/domain"
)

// report is what fio 3.33 writes, cut to what matters, with the line that its NBD client puts
// before it.
const report = `fio: connected to NBD server
{
  "fio version" : "fio-3.33",
  "jobs" : [
    {
      "jobname" : "bench",
      "error" : 0,
      "read" : {"total_ios" : 0, "iops" : 0.0, "bw_bytes" : 0},
      "write" : {
        "total_ios" : 20000, "iops" : 10000.0, "bw_bytes" : 40960000,
        "lat_ns" : {"N" : 20000, "percentile" : {"50.000000" : 100000, "99.000000" : 900000}}
      },
      "sync" : {
        "total_ios" : 0,
        "lat_ns" : {"N" : 20000, "percentile" : {"50.000000" : 50000, "99.000000" : 100000}}
      },
      "job_runtime" : 4000,
      "usr_cpu" : 1.0,
      "sys_cpu" : 4.0
    }
  ]
}
`

func row(name string) load {
	for _, l := range loads() {
		if l.Name == name {
			return l
		}
	}
	panic(name)
}

// TestParseFio proves that a report becomes figures in our units, with fio's own CPU time spread
// over the I/Os and the latency of fdatasync added.
func TestParseFio(t *testing.T) {
	s, err := parseFio([]byte(report), row("4k-durable-qd32"))
	if err != nil {
		t.Fatal(err)
	}
	want := sample{Count: 20000, IOPS: 10000, MBps: 40.96, P50: 150, P99: 1000, CPU: 10}
	if s != want {
		t.Errorf("%+v, want %+v", s, want)
	}
}

// TestParseFioRefuses proves that a run without a figure is an error and never a zero.
func TestParseFioRefuses(t *testing.T) {
	write := row("4k-randwrite-qd1")
	for name, text := range map[string]string{
		"nothing":   "",
		"no report": "fio: nbd_connect_uri: connect: No such file or directory",
		"cut":       report[:len(report)/2],
		"error":     strings.Replace(report, `"error" : 0`, `"error" : 5`, 1),
		"no I/O":    strings.Replace(report, `"total_ios" : 20000`, `"total_ios" : 0`, 1),
		"no job":    "{\n\"jobs\": []}",
	} {
		if s, err := parseFio([]byte(text), write); err == nil {
			t.Errorf("%s: %+v", name, s)
		}
	}
	if s, err := parseFio([]byte(report), row("4k-randread-qd1")); err == nil {
		t.Errorf("writes taken for reads: %+v", s)
	}
}

// TestParseInitiator proves that a count and a time become a rate, and that a run without a time is
// an error.
func TestParseInitiator(t *testing.T) {
	l := row("4k-initiator-write-qd32")
	const text = "Sending 1000 write requests, 4096 bytes each, 32 in parallel\n" +
		"Run completed in 0.250 seconds.\n"
	s, err := parseInitiator([]byte(text), l, 1000)
	if want := (sample{Count: 1000, IOPS: 4000, MBps: 16.384}); err != nil || s != want {
		t.Errorf("%+v, %v; want %+v", s, err, want)
	}
	for _, bad := range []string{
		"", "qemu-img: Could not open", strings.Replace(text, "0.250", "0", 1),
	} {
		if s, err := parseInitiator([]byte(bad), l, 1000); err == nil {
			t.Errorf("%q: %+v", bad, s)
		}
	}
}

// TestFioArgs proves that a synced run has one job for each place in the queue, and others a depth.
func TestFioArgs(t *testing.T) {
	args := fioArgs(row("4k-durable-qd64"), 1500*time.Millisecond, true, "--filename=f")
	for _, want := range []string{"--numjobs=64", "--fdatasync=1", "--runtime=1500ms", "--bs=4096"} {
		if !slices.Contains(args, want) {
			t.Errorf("no %s in %q", want, args)
		}
	}
	args = fioArgs(row("64k-randread-qd16"), time.Second, false, "--ioengine=nbd")
	if !slices.Contains(args, "--iodepth=16") || slices.Contains(args, "--fdatasync=1") ||
		args[len(args)-1] != "--ioengine=nbd" {
		t.Errorf("%q", args)
	}
}

// TestParseStat proves that CPU time is read past a name with spaces and brackets, and that a short
// or odd line is an error.
func TestParseStat(t *testing.T) {
	const line = "42 (a) b (c)) S 1 42 42 0 -1 4194304 1 2 3 4 150 50 7 8 20 0 5 0 9 10 11\n"
	got, err := parseStat(line)
	if err != nil || got != 2*time.Second {
		t.Errorf("%s, %v", got, err)
	}
	for _, bad := range []string{"", "42 (a) S 1 2 3", strings.Replace(line, "150", "x", 1)} {
		if got, err := parseStat(bad); err == nil {
			t.Errorf("%q: %s", bad, got)
		}
	}
}

// TestCPUTime proves that the kernel's file is as we read it: work shows up.
func TestCPUTime(t *testing.T) {
	before, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		now, err := cpuTime(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if now > before {
			return
		}
	}
	t.Error("no CPU time in ten seconds of work")
}

// TestSpread proves median and bounds for even and odd counts, and that what is no number is left
// out.
func TestSpread(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want spread
	}{
		{nil, spread{}},
		{[]float64{3}, spread{3, 3, 3, 1}},
		{[]float64{9, 1, 2}, spread{2, 1, 9, 3}},
		{[]float64{4, 1, 3, 2}, spread{2.5, 1, 4, 4}},
		{[]float64{math.NaN(), 5, math.Inf(1)}, spread{5, 5, 5, 1}},
	} {
		if got := spreadOf(c.in); got != c.want {
			t.Errorf("%v: %+v, want %+v", c.in, got, c.want)
		}
	}
}

// filled gives results in which every cell of a row has the IOPS given, one per repeat, and so much
// CPU per I/O.
func filled(l load, cpu float64, figures map[string][]float64) *results {
	r := newResults()
	for column, values := range figures {
		for i, v := range values {
			key := cell{l, column}.String()
			r.samples[key] = append(r.samples[key], sample{Repeat: i + 1, IOPS: v, CPU: cpu})
		}
	}
	return r
}

// TestRatio proves that ratios are taken within a repeat, so a machine at half speed in one of them
// changes nothing, and that a repeat which lacks one side is left out.
func TestRatio(t *testing.T) {
	l := row("4k-randwrite-qd32")
	r := filled(l, 1, map[string][]float64{
		nbdDurable: {200, 100, 300}, qemuNBD: {100, 50, 150}, tgt: {40},
	})
	if got := r.ratio(l, nbdDurable, qemuNBD); got != (spread{2, 2, 2, 3}) {
		t.Errorf("%+v", got)
	}
	if got := r.ratio(l, nbdDurable, tgt); got != (spread{5, 5, 5, 1}) {
		t.Errorf("%+v", got)
	}
	if got := r.ratio(l, nbdDurable, raw); got.N != 0 {
		t.Errorf("%+v", got)
	}
}

// TestTargets proves which figures are judged, that each is judged in the right direction at its
// bound, and that a target without a figure fails unless it was left out on purpose.
func TestTargets(t *testing.T) {
	l, direct := row("4k-randwrite-qd32"), row("4k-initiator-write-qd32")
	r := filled(l, 41, map[string][]float64{
		nbdDurable: {99}, nbdProcess: {100}, qemuNBD: {100}, iscsiDurable: {1}, tgt: {100},
	})
	maps.Copy(r.samples, filled(direct, 99, map[string][]float64{
		iscsiDurable: {200}, iscsiProcess: {149}, tgt: {100},
	}).samples)
	verdicts := map[string]bool{}
	all := r.targets()
	for _, g := range all {
		if g.known() {
			verdicts[g.Name] = g.pass()
		}
	}
	head := l.Name + ": "
	want := map[string]bool{
		head + "nbd-process / qemu-nbd": true, direct.Name + ": iscsi-process / tgt": false,
		head + "CPU per I/O of the node, nbd-process": true,
		head + "CPU per I/O of the node, nbd":         true,
	}
	for name, pass := range want {
		if got, ok := verdicts[name]; !ok || got != pass {
			t.Errorf("%s: %t, want %t", name, got, pass)
		}
	}
	if len(verdicts) != len(want) {
		t.Errorf("%v", verdicts)
	}
	if failed, err := printTargets(io.Discard, all, true); failed != 1 || err != nil {
		t.Errorf("%d failed of those measured, %v", failed, err)
	}
	var b bytes.Buffer
	if failed, err := printTargets(&b, all, false); failed != len(all)-3 || err != nil ||
		!strings.Contains(b.String(), "no figure") {
		t.Errorf("%d failed of %d, %v:\n%s", failed, len(all), err, b.String())
	}
}

// TestNVRAMTargets proves that the journal is judged by its bandwidth beside that of another row in
// the same repeat, where there is one, and by what the device took.
func TestNVRAMTargets(t *testing.T) {
	l := deepWrite()
	r := filled(l, 2.5, map[string][]float64{engineNVRAM: {500, 600, 700}, raw: {100, 100}})
	for i := range r.samples[cell{l, engineNVRAM}.String()] {
		s := &r.samples[cell{l, engineNVRAM}.String()][i]
		s.MBps, s.Log = 70, &logWork{UserBytes: 100, Written: 107}
		s.CPU, s.Driver = 2.75, 0.25
	}
	key := cell{sequentialWrite(), raw}.String()
	r.samples[key] = []sample{{Repeat: 3, MBps: 50}, {Repeat: 1, MBps: 100}}
	for i, want := range []struct {
		median float64
		n      int
		pass   bool
	}{{5.5, 2, true}, {1.05, 2, true}, {2.5, 3, true}, {1.07, 3, false}} {
		got := r.nvramTargets()[i]
		if math.Abs(got.Got.Median-want.median) > 1e-9 || got.Got.N != want.n ||
			got.pass() != want.pass {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
}

// TestMoved proves that a report says what the cleaner moved while the journal was judged, where it
// was.
func TestMoved(t *testing.T) {
	l := deepWrite()
	r := filled(l, 2.5, map[string][]float64{raw: {100}, engineNVRAM: {500, 600, 700}})
	if s := r.moved(); s != "" {
		t.Errorf("%q without an account", s)
	}
	for i, moved := range []int64{0, 3, 9} {
		r.samples[cell{l, engineNVRAM}.String()][i].Log = &logWork{UserBytes: 100, MovedBytes: moved}
	}
	if s := r.moved(); !strings.Contains(s, "moved 3.00 (0.00..9.00)") {
		t.Errorf("%q", s)
	}
}

// TestEngineTargets proves that an engine is judged beside raw in reads and in writes, and pays for
// the driver of its reads as fio does.
func TestEngineTargets(t *testing.T) {
	r := filled(deepRead(), 2.5, map[string][]float64{engineDurable: {97, 87}, raw: {100, 100}})
	for i := range r.samples[cell{deepRead(), engineDurable}.String()] {
		s := &r.samples[cell{deepRead(), engineDurable}.String()][i]
		s.CPU, s.Driver = 5, 2
	}
	write := filled(deepWrite(), 2.5, map[string][]float64{engineDurable: {300}, raw: {200}})
	for k, v := range write.samples {
		r.samples[k] = v
	}
	r.samples[cell{deepWrite(), engineDurable}.String()][0].Log = &logWork{
		UserBytes: 100, Written: 111,
	}
	for i, want := range []struct {
		median float64
		pass   bool
	}{{0.92, true}, {2, false}, {1.5, true}, {1.11, false}} {
		if got := r.engineTargets()[i]; math.Abs(got.Got.Median-want.median) > 1e-9 ||
			got.pass() != want.pass {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
}

// TestDriverAlone proves that the driver runs to its end without a disk, in both its ways, and
// tells what that took.
func TestDriverAlone(t *testing.T) {
	for _, l := range []load{deepRead(), deepWrite()} {
		us, err := driverAlone(t.Context(), l, domain.DiskInfo{Size: domain.GiB})
		if err != nil || us <= 0 {
			t.Errorf("%s: %g us, %v", l.Name, us, err)
		}
	}
}

// TestFiles proves that only those files count that the chosen cells need.
func TestFiles(t *testing.T) {
	for only, want := range map[string]int64{
		"/raw$": 1, "/(raw|qemu-nbd)$": 1, "qd1/(nbd|iscsi|engine)$": 3, "-process": 3,
		"engine-nvram": 5, ".": 9,
	} {
		b := bench{
			options: options{size: 1, room: 2, below: 4}, cells: cells(regexp.MustCompile(only), nil),
		}
		if got := b.files(); got != want {
			t.Errorf("%s: %d, want %d", only, got, want)
		}
	}
}

// TestTargetCount proves that the list of targets is whole: NBD on every row, iSCSI at depth 32,
// CPU in both modes of writes, two durable rows, and four figures of the engine without a journal
// and with one.
func TestTargetCount(t *testing.T) {
	const nbd, iscsi, cpu, durable, engine, journal = 8, 2, 2 + 1, 2, 4, 4
	if n := len(newResults().targets()); n != nbd+iscsi+cpu+durable+engine+journal {
		t.Errorf("%d targets", n)
	}
}

// TestCells proves that reads have no column of the other durability mode nor of the journal, that
// durable rows have those columns alone that promise durability, depth 128 what the journal is
// compared with, and that -only and missing programs take cells out.
func TestCells(t *testing.T) {
	all := cells(nil, nil)
	if n := len(all); n != 4*(10+1)+4*7+3+2*3+3+2 {
		t.Errorf("%d cells", n)
	}
	for _, c := range all {
		if !c.Row.writes() && (modeOf(c.Column) != modeDurable) {
			t.Errorf("%s is measured twice", c)
		}
	}
	only := cells(regexp.MustCompile(`qd32/(raw|nbd)$`), map[string]string{raw: "gone"})
	var names []string
	for _, c := range only {
		names = append(names, c.String())
	}
	want := []string{"4k-randwrite-qd32/nbd", "4k-randread-qd32/nbd", "4k-durable-qd32/nbd"}
	if !slices.Equal(names, want) {
		t.Errorf("%q, want %q", names, want)
	}
}

// TestTable proves the look of the table: one line for each cell, names on the left, numbers on the
// right, a failed cell named, an untried one absent.
func TestTable(t *testing.T) {
	l := row("4k-randwrite-qd1")
	r := filled(l, 7.5, map[string][]float64{raw: {1000, 2000}, nbdDurable: {500, 600}})
	for i := range r.samples[cell{l, nbdDurable}.String()] {
		r.samples[cell{l, nbdDurable}.String()][i].Log = &logWork{UserBytes: 400, Written: 500}
	}
	r.failures[cell{l, tgt}.String()] = []string{"gone"}
	var b bytes.Buffer
	if err := r.printTable(&b); err != nil {
		t.Fatal(err)
	}
	want := strings.Join([]string{
		"row               column    IOPS    min..max  MB/s  p50 us  p99 us  CPU us/IO    WA  x raw" +
			"    min..max",
		"",
		"4k-randwrite-qd1  raw       1500  1000..2000  0.00       -       -       7.50     -   1.00" +
			"  1.00..1.00",
		"4k-randwrite-qd1  nbd        550    500..600  0.00       -       -       7.50  1.25   0.40" +
			"  0.30..0.50",
		"4k-randwrite-qd1  tgt     failed",
		"\n",
	}, "\n")
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

// TestHistogram proves that a quantile is within one step of the true value, over nine orders of
// magnitude.
func TestHistogram(t *testing.T) {
	for _, unit := range []time.Duration{1, time.Microsecond, time.Second} {
		var h histogram
		for i := range 1000 {
			h.add(time.Duration(i+1) * unit)
		}
		for _, q := range []float64{0.01, 0.5, 0.99} {
			got, want := float64(h.quantile(q)), q*1000*float64(unit)
			if math.Abs(got-want) > want/40+1 {
				t.Errorf("%s: quantile %g is %g, want %g", unit, q, got, want)
			}
		}
	}
	for _, v := range []uint64{0, 1, 127, 128, 129, 1 << 20, 1<<63 - 1} {
		if i := step(v); least(i) > v || least(i+1) <= v {
			t.Errorf("%d is not in step %d, from %d on", v, i, least(i))
		}
	}
}

// TestOptions proves that a run which would take too much disk, time or sense is refused before it
// begins.
func TestOptions(t *testing.T) {
	for _, args := range [][]string{
		{"-size", "5GiB"},
		{"-size", "1MiB"},
		{"-size", "x"},
		{"-repeats", "0"},
		{"-runtime", "1ms"},
		{"-runtime", "1h"},
		{"-read-cache", "x"},
		{"-journal-room", "1"},
		{"-journal-room", "17"},
		{"-journal-room", "16"},
		{"-size", "3GiB"},
		{"-only", "("},
		{"surplus"},
	} {
		if _, err := parse(args); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
	o, err := parse([]string{"-size", "1536MiB", "-only", "nbd"})
	if err != nil || o.size != 3*gib/2 || o.repeats != 3 || o.runtime != 20*time.Second ||
		o.roomOf(modeNVRAM) != 4 {
		t.Errorf("%+v, %v", o, err)
	}
	o, err = parse([]string{"-journal-room", "16", "-only", "nvram"})
	if err != nil || o.roomOf(modeNVRAM) != 16 || o.roomOf(modeDurable) != 4 {
		t.Errorf("%+v, %v", o, err)
	}
}

// countingDisk answers on the spot and counts what is under way and where it went.
type countingDisk struct {
	t    *testing.T
	size int64
	seen map[int64]int
}

func (d *countingDisk) Info() domain.DiskInfo { return domain.DiskInfo{Size: domain.Bytes(d.size)} }

func (d *countingDisk) Submit(io *domain.IO) {
	if io.Off%io.Len != 0 || io.Off+io.Len > d.size {
		d.t.Errorf("%d bytes at %d", io.Len, io.Off)
	}
	d.seen[io.Off]++
	io.To.Complete(io)
}

// Kick has nothing to do.
func (d *countingDisk) Kick() {}

// TestDriverPassesOnce proves that a load without a time covers the disk exactly once, and that one
// with a time stops.
func TestDriverPassesOnce(t *testing.T) {
	d := &countingDisk{t: t, size: 64 * mib, seen: map[int64]int{}}
	s, err := drive(t.Context(), d, load{RW: "write", Block: mib, Depth: 4}, 0)
	if err != nil || s.Count != 64 || len(d.seen) != 64 {
		t.Errorf("%+v, %d places, %v", s, len(d.seen), err)
	}
	again := newDriver(d, load{RW: "write", Block: mib, Depth: 4})
	for range 2 {
		if _, err := again.run(t.Context(), 0); err != nil {
			t.Error(err)
		}
	}
	if again.hist.total != 128 {
		t.Errorf("%d requests of two runs", again.hist.total)
	}
	s, err = drive(t.Context(), d, row("4k-randwrite-qd32"), 20*time.Millisecond)
	if err != nil || s.Count == 0 || s.IOPS == 0 || s.P99 < s.P50 {
		t.Errorf("%+v, %v", s, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := drive(ctx, d, row("4k-randread-qd1"), time.Hour); err == nil {
		t.Error("a run that was broken off counts")
	}
}

// brokenDisk fails every request.
type brokenDisk struct{ countingDisk }

func (*brokenDisk) Submit(io *domain.IO) {
	io.Err = domain.Errorf(domain.Unavailable, "broken")
	io.To.Complete(io)
	if f, ok := io.To.(domain.Feeder); ok && f.Next() != nil {
		panic("a driver that met an error goes on")
	}
}

// ramDisk answers reads on a goroutine of its own and asks feeders for the next.
type ramDisk struct {
	countingDisk
	mu    sync.Mutex
	count int64
	most  int
	now   int
}

func (d *ramDisk) Submit(io *domain.IO) {
	d.took(io)
	go func() {
		for io != nil {
			io.To.Complete(io)
			d.mu.Lock()
			d.now-- // before it is asked: with its answer it may have given the place to another
			d.mu.Unlock()
			if io = io.To.(domain.Feeder).Next(); io != nil { //nolint:forcetypeassert // reads at depth are
				d.took(io)
			}
		}
	}()
}

func (d *ramDisk) took(io *domain.IO) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.now++
	d.most = max(d.most, d.now)
	d.count++
	d.seen[io.Off]++
}

// TestDriverFollows proves that reads at depth follow one another, as many at a time as were asked
// for, each counted once, and end with their time.
func TestDriverFollows(t *testing.T) {
	d := &ramDisk{countingDisk: countingDisk{t: t, size: mib, seen: map[int64]int{}}}
	v := newDriver(d, row("4k-randread-qd32"))
	for range 2 {
		if _, err := v.run(t.Context(), 20*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	if v.hist.total != d.count || d.count < 64 || d.most > 32 || len(d.seen) < 16 {
		t.Errorf("%d counted of %d, %d at a time, %d places", v.hist.total, d.count, d.most,
			len(d.seen))
	}
}

// TestDriverStopsOnError proves that a failed request ends a run, and that all places come back.
func TestDriverStopsOnError(t *testing.T) {
	d := &brokenDisk{countingDisk{size: mib}}
	if s, err := drive(t.Context(), d, row("4k-randread-qd32"), time.Hour); err == nil {
		t.Errorf("%+v", s)
	}
}

// TestServe proves the server's side by its own protocol, in every mode: it makes its device, says
// where it listens, obeys, and ends with its input.
func TestServe(t *testing.T) {
	for _, mode := range []string{modeDurable, modeProcess, modeNVRAM} {
		t.Run(mode, func(t *testing.T) { testServe(t, mode) })
	}
}

func testServe(t *testing.T, mode string) {
	t.Helper()
	dir := t.TempDir()
	var in, out bytes.Buffer
	in.WriteString(`{"load":{"rw":"write","block":1048576,"depth":4}}` + "\n" +
		`{"load":{"rw":"randread","block":4096,"depth":2},"time":50000000}` + "\n")
	err := serve(t.Context(), []string{
		"-file", filepath.Join(dir, "d.img"), "-device", "134217728", "-volume", "33554432",
		"-socket", filepath.Join(dir, "s"), "-durability", mode,
	}, &in, &out)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 3 || !strings.Contains(lines[0], `"nbd":"127.0.0.1:`) ||
		!strings.Contains(lines[1], `"ios":32,`) || strings.Contains(out.String(), `"err"`) ||
		strings.Contains(lines[1], `"JournalBytes":0,`) != (mode != modeNVRAM) {
		t.Errorf("%s", out.String())
	}
}
