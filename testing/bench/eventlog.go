package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"weft/domain"
	"weft/domain/volume"
	"weft/eventstore"
	"weft/eventstore/codec"
	"weft/eventstore/quorum"
	"weft/projections"
	"weft/projections/audit"
	"weft/projections/catalog"
	"weft/projections/desired"
	"weft/projections/topology"
)

// The rows of the event log.
const (
	rowRaw     = "raw write+fdatasync, 1 writer"
	eventSize  = 256 // bytes of data of an event
	recordSize = 570 // bytes of its record: what raw writes
	logStreams = 64
)

// logOptions are the flags of the event log's mode.
type logOptions struct {
	dir     string
	runtime time.Duration
	repeats int
	events  int
	kills   int            // of the leader
	weft    string         // the product's own program; empty: no row of it
	which   *regexp.Regexp // which appends are measured
	progress
}

type progress func(format string, args ...any)

// logRow is a line of the table: a figure, and what it must be.
type logRow struct {
	name   string
	unit   string
	values []float64 // one per repeat
	p50    []float64 // microseconds, of appends
	ratio  []float64 // to raw in the same repeat; for latencies, raw divides
	want   float64   // of ratio, or of value where there is none; 0: not judged
	most   bool
	worst  bool // judged by its worst value, not by the median
}

// logBench measures the event log: `bench log`.
type logBench struct {
	logOptions
	rows  []*logRow
	notes []string // what is to be said below the table
}

func (b *logBench) note(format string, args ...any) {
	b.notes = append(b.notes, fmt.Sprintf(format, args...))
}

// benchLog is the program's third mode.
func benchLog(ctx context.Context, args []string, out io.Writer) error {
	o := logOptions{progress: func(format string, args ...any) {
		_, _ = fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...)
	}}
	set := flag.NewFlagSet("bench log", flag.ContinueOnError)
	set.StringVar(&o.dir, "dir", os.TempDir(), "folder on the file system to measure")
	set.DurationVar(&o.runtime, "runtime", 5*time.Second, "length of each run")
	set.IntVar(&o.repeats, "repeats", 3, "runs of each row, interleaved")
	set.IntVar(&o.events, "events", 1_000_000, "events to replay and to fold")
	set.IntVar(&o.kills, "kills", 20, "how often the leader of three voters is killed; 0: not")
	set.StringVar(&o.weft, "weft", "", "the `program` weft, to measure a whole node")
	only := set.String("only", "", "do only the steps that match this `regexp`: "+
		"starts, appends, outages, grows, replays, folds, pasts, trims, memory")
	rows := set.String("rows", "", "of the appends, only the rows that match this `regexp`")
	if err := set.Parse(args); err != nil {
		return err
	}
	which, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	if o.which, err = regexp.Compile(*rows); err != nil {
		return err
	}
	if o.repeats < 1 || o.events < 1000 || o.runtime < 100*time.Millisecond {
		return errors.New("-repeats from 1, -events from 1000, -runtime from 100ms")
	}
	if _, err := mediaOf(o.dir); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(o.dir, "weft-bench-log-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // it is in the folder for temporary files
	o.dir = dir
	b := &logBench{logOptions: o}
	for _, step := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"starts", b.starts},
		{"appends", b.appends},
		{"outages", b.outages},
		{"grows", b.grows},
		{"replays", b.replays},
		{"folds", b.folds},
		{"pasts", b.pasts},
		{"trims", b.trims},
		{"memory", b.memory},
	} {
		if !which.MatchString(step.name) {
			continue
		}
		if err := step.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return b.report(out, facts(ctx, options{dir: dir}))
}

// row gives a row by name, making it when it is new.
func (b *logBench) row(name, unit string, want float64, most bool) *logRow {
	for _, r := range b.rows {
		if r.name == name {
			return r
		}
	}
	r := &logRow{name: name, unit: unit, want: want, most: most}
	b.rows = append(b.rows, r)
	return r
}

// appends measures raw and both sizes of cluster, interleaved.
func (b *logBench) appends(ctx context.Context) error {
	one, err := openCluster(ctx, filepath.Join(b.dir, "one"), 1)
	if err != nil {
		return err
	}
	defer one.close()
	three, err := openCluster(ctx, filepath.Join(b.dir, "three"), 3)
	if err != nil {
		return err
	}
	defer three.close()
	for i := range b.repeats {
		raw, rawP50, err := b.raw(i)
		if err != nil {
			return err
		}
		r := b.row(rowRaw, "events/s", 0, false)
		r.values, r.p50 = append(r.values, raw), append(r.p50, rawP50)
		for _, c := range []struct {
			name    string
			of      *logCluster
			writers int
			want    float64
			latency bool // the ratio is that of p50, which must not be more
		}{
			{"append, 1 voter, 1 writer (p50 to raw p50)", one, 1, 3, true},
			{"append, 1 voter, 16 writers", one, 16, 2.5, false},
			{"append, 1 voter, 63 writers", one, 63, 3, false},
			{"append, 3 voters, 1 writer (p50 to raw p50)", three, 1, 12, true},
			{"append, 3 voters, 16 writers", three, 16, 0, false},
			{"append, 3 voters, 63 writers", three, 63, 3, false},
		} {
			if !b.which.MatchString(c.name) {
				continue
			}
			rate, p50, err := c.of.append(ctx, c.writers, b.runtime)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			r := b.row(c.name, "events/s", c.want, c.latency)
			r.values, r.p50 = append(r.values, rate), append(r.p50, p50)
			ratio := rate / raw
			if c.latency {
				ratio = p50 / rawP50
			}
			r.ratio = append(r.ratio, ratio)
			b.progress("repeat %d, %s: %.0f events/s, p50 %.0f us, %.2f x raw", i+1, c.name, rate, p50,
				ratio)
		}
	}
	used, err := one.idle(ctx, b.runtime)
	r := b.row("idle, 1 + 3 voters in one process, per voter", "% of a core", 3, true)
	r.values = append(r.values, used/4)
	return err
}

// raw writes and syncs a record's bytes again and again.
func (b *logBench) raw(repeat int) (rate, p50 float64, err error) {
	f, err := os.Create(filepath.Join(b.dir, fmt.Sprintf("raw-%d", repeat)))
	if err != nil {
		return 0, 0, err
	}
	defer f.Close() //nolint:errcheck // a yardstick, not data
	buf := make([]byte, recordSize)
	var h histogram
	n, begin := 0, time.Now()
	for ; time.Since(begin) < b.runtime; n++ {
		from := time.Now()
		if _, err := f.Write(buf); err != nil {
			return 0, 0, err
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return 0, 0, err
		}
		h.add(time.Since(from))
	}
	return float64(n) / time.Since(begin).Seconds(), us(&h), nil
}

func us(h *histogram) float64 { return float64(h.quantile(0.5)) / 1e3 }

// logCluster is a log of one or more voters in this process, on the loopback interface.
type logCluster struct {
	stores []*quorum.Store
	stops  []func()
	calls  atomic.Int64
}

func (c *logCluster) close() {
	for _, stop := range slices.Backward(c.stops) {
		stop()
	}
}

// openCluster makes a log with so many voters.
func openCluster(ctx context.Context, dir string, voters int) (*logCluster, error) {
	c, urls := &logCluster{}, []string{""}
	for i := range voters {
		url, err := c.open(ctx, filepath.Join(dir, fmt.Sprint(i)), urls[0])
		if err != nil {
			c.close()
			return nil, err
		}
		if urls = append(urls, url); i == 0 {
			urls = urls[1:]
		}
	}
	if voters > 1 {
		if err := c.grow(ctx, urls[1:]...); err != nil {
			c.close()
			return nil, err
		}
	}
	return c, nil
}

// open starts one node on any port of the loopback interface.
func (c *logCluster) open(ctx context.Context, dir, seed string) (string, error) {
	return c.openAt(ctx, dir, "127.0.0.1:0", seed)
}

// openAt starts one node of a log, as a client of the node at seed where there is one.
func (c *logCluster) openAt(ctx context.Context, dir, addr, seed string) (string, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return "", err
	}
	cfg := quorum.Config{
		Dir: dir, ClusterID: domain.ClusterID{UUID: domain.UUID{1}}, Name: filepath.Base(dir),
		Logger: slog.New(slog.DiscardHandler),
		Net:    &quorum.Net{URL: "http://" + l.Addr().String(), Port: quorum.NewPort()},
	}
	if seed != "" {
		cfg.Net.Seeds = []string{seed}
	}
	srv := handler(cfg.Net.Port)
	go srv.Serve(l) //nolint:errcheck // it ends with Close
	s, err := quorum.Open(ctx, cfg)
	if err != nil {
		_ = srv.Close()
		return "", err
	}
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	var loop sync.WaitGroup
	loop.Go(func() {
		for life.Err() == nil {
			_ = s.Follow(life) // the next look comes soon
			pause(life, 20*time.Millisecond)
		}
	})
	c.stores = append(c.stores, s)
	c.stops = append(c.stops, func() {
		end()
		loop.Wait()
		_ = s.Close()
		_ = srv.Close()
	})
	return cfg.Net.URL, nil
}

// inStep waits until so many learners are in step and makes voters of them.
func (c *logCluster) inStep(ctx context.Context, want int) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		members, err := c.stores[0].Members(ctx)
		if err != nil {
			return err
		}
		var ids []uint64
		for _, m := range members {
			if in, err := c.stores[0].CaughtUp(ctx, m); m.Learner && in && err == nil {
				ids = append(ids, m.ID)
			}
		}
		if len(ids) == want {
			return c.stores[0].Promote(ctx, ids...)
		}
		pause(ctx, 20*time.Millisecond)
		if ctx.Err() != nil {
			return errors.New("the learners were not in step within a minute")
		}
	}
}

// append lets writers append one event a call for a while, to 64 streams in turn through the first
// node.
func (c *logCluster) append(ctx context.Context, writers int, d time.Duration) (
	rate, p50 float64, err error,
) {
	run := c.calls.Add(1)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var all histogram
	var n atomic.Int64
	var failed atomic.Pointer[error]
	begin := time.Now()
	for w := range writers {
		wg.Go(func() {
			var h histogram
			revs := map[int]domain.Revision{}
			for i := 0; time.Since(begin) < d && failed.Load() == nil; i++ {
				k := w + writers*(i%max(logStreams/writers, 1))
				rev, seen := revs[k]
				if !seen {
					rev = domain.NoRevision
				}
				id := domain.StreamID(fmt.Sprintf("bench-%d-%d", run, k))
				from := time.Now()
				a, err := c.stores[0].Append(ctx, id, eventstore.At(rev), proposal(
					fmt.Sprintf("%s/%d", id, rev), make([]byte, eventSize),
				))
				if err != nil {
					failed.CompareAndSwap(nil, &err)
					return
				}
				h.add(time.Since(from))
				revs[k] = a.Last
				n.Add(1)
			}
			mu.Lock()
			defer mu.Unlock()
			all.merge(&h)
		})
	}
	wg.Wait()
	if f := failed.Load(); f != nil {
		return 0, 0, *f
	}
	return float64(n.Load()) / time.Since(begin).Seconds(), us(&all), nil
}

// proposal makes an event of data.
func proposal(seed string, data []byte) eventstore.Proposed {
	sum := sha256.Sum256([]byte(seed))
	command := domain.CommandID{UUID: domain.DeriveUUID(domain.UUID{}, seed)}
	return eventstore.Proposed{Data: data, Header: domain.Header{
		ID: command.EventID(0), Type: "BenchHappened", Schema: 1, Actor: "user/bench",
		Tenant: "bench", Source: "192.0.2.7:4711", RequestID: "r-1", Command: command,
		RequestHash: [16]byte(sum[:16]), Created: time.Now().UTC().Truncate(100),
	}}
}

// idle gives the share of a core, in percent, that this process uses while nobody asks.
func (*logCluster) idle(ctx context.Context, d time.Duration) (float64, error) {
	pid := os.Getpid()
	before, err := cpuTime(pid)
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	pause(ctx, d)
	after, err := cpuTime(pid)
	return 100 * (after - before).Seconds() / time.Since(begin).Seconds(), err
}

// fillVolumes appends real events until there are so many: volumes that are made, served, and then
// grown again and again.
func fillVolumes(ctx context.Context, s eventstore.Store, events int, say progress) error {
	c := codec.Catalog()
	if err := c.Err(); err != nil {
		return err
	}
	for n, v := 0, 0; n < events; v++ {
		id := domain.VolumeID{UUID: domain.DeriveUUID(domain.UUID{}, "volume", fmt.Sprint(v))}
		facts := []domain.Event{
			&volume.VolumeCreated{Volume: id, Name: fmt.Sprintf("bench/app/%d", v), Size: domain.GiB},
			&volume.VolumeOnlined{Incarnation: 1, Export: make([]byte, 16)},
		}
		for k := len(facts); k < min(100, events-n); k++ {
			facts = append(facts, &volume.VolumeResized{
				From: domain.GiB * domain.Bytes(k-1), To: domain.GiB * domain.Bytes(k),
			})
		}
		facts = facts[:min(len(facts), events-n)]
		var list []eventstore.Proposed
		for i, f := range facts {
			schema, data, err := c.Encode(ctx, volume.Stream(id), f)
			if err != nil {
				return err
			}
			p := proposal(fmt.Sprintf("%d/%d", v, i), data)
			p.Type, p.Schema = f.EventType(), schema
			list = append(list, p)
		}
		if _, err := s.Append(ctx, domain.StreamOf("volume", id.UUID), eventstore.NoStream(),
			list...); err != nil {
			return err
		}
		if n/100_000 != (n+len(list))/100_000 {
			say("%d of %d events written", n+len(list), events)
		}
		n += len(list)
	}
	return nil
}

// openLong opens the log that is replayed and folded.
func (b *logBench) openLong(ctx context.Context) (*quorum.Store, error) {
	return quorum.Open(ctx, quorum.Config{
		Dir: filepath.Join(b.dir, "long"), ClusterID: domain.ClusterID{UUID: domain.UUID{2}},
		Logger: slog.New(slog.DiscardHandler),
	})
}

// logViews are the views of a node that need no keys.
func logViews() []projections.View {
	return []projections.View{topology.New(), desired.New(), catalog.New(), audit.New()}
}

// replays measures reading a long log from the mirror and from the engine.
func (b *logBench) replays(ctx context.Context) error {
	s, err := b.openLong(ctx)
	if err != nil {
		return err
	}
	err = fillVolumes(ctx, s, b.events, b.progress)
	for range b.repeats {
		if err != nil {
			return errors.Join(err, s.Close())
		}
		n, begin := 0, time.Now()
		for _, rerr := range s.ReadAll(ctx, 0, eventstore.Forward, domain.Filter{}, eventstore.NoLimit) {
			if rerr != nil {
				err = rerr
				break
			}
			n++
		}
		r := b.row("replay from the local mirror, every record verified", "events/s", 200_000, false)
		r.values = append(r.values, float64(n)/time.Since(begin).Seconds())
		if err = errors.Join(err, s.Close()); err != nil {
			return err
		}
		begin = time.Now()
		if s, err = b.openLong(ctx); err != nil {
			return err
		}
		r = b.row("start: all records by Range, verified into the mirror", "events/s", 100_000, false)
		r.values = append(r.values, float64(n)/time.Since(begin).Seconds())
		b.progress("replayed and restarted with %d events", n)
	}
	return s.Close()
}

// folds measures the rebuild of all views from the first event.
func (b *logBench) folds(ctx context.Context) error {
	s, err := b.openLong(ctx)
	if err != nil {
		return err
	}
	defer s.Close() //nolint:errcheck // it was only read
	for range b.repeats {
		r, err := projections.New(projections.Config{
			Store: s, Codec: codec.Catalog(),
			Views: logViews(),
		})
		if err != nil {
			return err
		}
		begin := time.Now()
		err = errors.Join(r.Start(ctx), r.CaughtUp(ctx))
		took := time.Since(begin).Seconds()
		if err = errors.Join(err, r.Close()); err != nil {
			return err
		}
		row := b.row(fmt.Sprintf("rebuild of all views from %d events", b.events), "s",
			10*float64(b.events)/1e6, true)
		row.values = append(row.values, took)
	}
	return nil
}

// report prints the table and the verdicts.
func (b *logBench) report(out io.Writer, host map[string]string) error {
	lines := [][]string{{
		"row", "median, or longest", "unit", "p50 us", "x raw", "min..max", "target", "",
	}}
	for _, r := range b.rows {
		v, ratio := spreadOf(r.values), spreadOf(r.ratio)
		judged := v
		if ratio.N > 0 {
			judged = ratio
		}
		shown := v.Median
		if r.worst {
			shown = v.Max
		}
		line := []string{
			r.name, digits(shown), r.unit, latency(spreadOf(r.p50)), factor(ratio), bounds(judged),
			"-", "",
		}
		if r.want != 0 {
			by := judged.Median
			if r.worst {
				by = judged.Max
			}
			sign, pass := ">=", by >= r.want
			if r.most {
				sign, pass = "<=", by <= r.want
			}
			line[6], line[7] = sign+" "+digits(r.want), map[bool]string{true: "PASS", false: "FAIL"}[pass]
		}
		lines = append(lines, line)
	}
	_, err := fmt.Fprintf(out, "Weft event log: %s, %s cores, %s on %s, %d repeats\n\n%s\n"+
		"raw is one file, one write of %d bytes and one fdatasync at a time, measured beside the rest\n"+
		"in each repeat. Appends are events of %d bytes, one a call, on %d streams through one node;\n"+
		"nodes of three voters share this machine, its disk and this process.\n", host["kernel"],
		host["cores"], b.dir, host["disk"], b.repeats, align(lines, 1), recordSize, eventSize,
		logStreams)
	for _, n := range b.notes {
		_, nerr := fmt.Fprintln(out, n)
		err = errors.Join(err, nerr)
	}
	return err
}
