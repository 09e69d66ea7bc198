package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"weft/domain"
	"weft/domain/cluster"
	"weft/domain/tenancy"
	"weft/eventstore"
	"weft/eventstore/archive"
	"weft/eventstore/codec"
	"weft/eventstore/quorum"
	"weft/projections"
	"weft/projections/audit"
	"weft/projections/catalog"
	"weft/projections/desired"
	"weft/projections/topology"
)

const (
	loadWriters = 16
	// settleTime is what a node is given to give back what it needed for its start: it looks every
	// half minute.
	settleTime = 100 * time.Second
	// hotEvents is how many events the database of a node holds at the most, by default.
	hotEvents = 200_000
)

// pause waits, or until the context ends.
func pause(ctx context.Context, d time.Duration) {
	rest, cancel := context.WithTimeout(ctx, d)
	<-rest.Done()
	cancel()
}

// starts measures an empty folder's way to its first acknowledged event.
func (b *logBench) starts(ctx context.Context) error {
	row := b.row("first start, empty folder, to the first event", "s", 1, true)
	for i := range b.repeats {
		began := time.Now()
		s, err := quorum.Open(ctx, quorum.Config{
			Dir: filepath.Join(b.dir, fmt.Sprintf("first-%d", i)), Logger: slog.New(slog.DiscardHandler),
			ClusterID: domain.ClusterID{UUID: domain.UUID{3}},
		})
		if err != nil {
			return err
		}
		_, err = s.Append(ctx, "bench-1", eventstore.NoStream(), proposal("1", make([]byte, eventSize)))
		row.values = append(row.values, time.Since(began).Seconds())
		if err = errors.Join(err, s.Close()); err != nil {
			return err
		}
	}
	return nil
}

// voter is the mode of a child: a node of a log in a process of its own, until its input ends.
func voter(ctx context.Context, args []string, in io.Reader) error {
	set := flag.NewFlagSet("bench log-voter", flag.ContinueOnError)
	dir := set.String("dir", "", "`folder` of the node")
	addr := set.String("listen", "", "`host:port`")
	seed := set.String("seed", "", "`URL` of a node of the log; empty: a new log")
	if err := set.Parse(args); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer cancel()
		_, _ = io.Copy(io.Discard, in)
	}()
	c := &logCluster{}
	defer c.close()
	if _, err := c.openAt(ctx, *dir, *addr, *seed); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// member is a node in a process of its own, which may be killed and started again.
type member struct {
	dir, addr, seed string
	*child
}

func (m *member) url() string { return "http://" + m.addr }

func (m *member) start(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	in, w, err := os.Pipe() // ends with this process
	if err != nil {
		return err
	}
	m.child, err = spawn(nil, in, nil, self, "log-voter", "-dir", m.dir, "-listen", m.addr, "-seed",
		m.seed)
	_ = in.Close()
	if err != nil {
		_ = w.Close()
		return err
	}
	go func() {
		<-m.done
		_ = w.Close()
	}()
	return m.await(ctx, answers("tcp", m.addr))
}

// kill is SIGKILL.
func (m *member) kill() {
	_ = m.cmd.Process.Kill()
	<-m.done
}

// outages kills the leader of three voters again and again under load from a node without a vote,
// and measures for how long no write came through. Afterwards all that was acknowledged is counted.
func (b *logBench) outages(ctx context.Context) (err error) {
	if b.kills == 0 {
		return nil
	}
	nodes := make([]*member, 3)
	defer func() {
		for _, m := range nodes {
			if m != nil && m.child != nil {
				m.stop()
			}
		}
	}()
	if err := b.startMembers(ctx, nodes); err != nil {
		return err
	}
	c := &logCluster{}
	defer c.close()
	if _, err := c.open(ctx, filepath.Join(b.dir, "client"), nodes[0].url()); err != nil {
		return err
	}
	client := c.stores[0]
	if err := c.grow(ctx, nodes[1].url(), nodes[2].url()); err != nil {
		return err
	}
	l := startLoad(ctx, client)
	defer func() { err = errors.Join(err, l.stop()) }()
	longest := b.row("kill -9 of the leader, until writes resume: longest", "s", 0.6, true)
	middle := b.row("kill -9 of the leader, until writes resume: median", "s", 0.6, true)
	longest.worst = true
	for i := range b.kills {
		var victim *member
		for victim == nil && ctx.Err() == nil {
			for _, m := range nodes {
				if client.Leader() == m.url() {
					victim = m
				}
			}
			pause(ctx, 10*time.Millisecond)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		pause(ctx, time.Second) // the load runs
		l.longest.Store(0)
		victim.kill()
		pause(ctx, 3*time.Second)
		gap := time.Duration(l.longest.Load())
		longest.values = append(longest.values, gap.Seconds())
		middle.values = append(middle.values, gap.Seconds())
		b.progress("kill %d of %d: %s without a write", i+1, b.kills, gap.Round(time.Millisecond))
		if err := victim.start(ctx); err != nil {
			return err
		}
		back := time.Now()
		if err := inSync(ctx, client, len(nodes)); err != nil {
			return err
		}
		b.progress("kill %d of %d: back, and in sync after %s", i+1, b.kills,
			time.Since(back).Round(time.Millisecond))
	}
	if err := l.stop(); err != nil {
		return err
	}
	lost, twice, err := l.missing(ctx)
	b.note("%d events acknowledged over %d kills, %d of them lost, %d events stand twice", l.acked(),
		b.kills, lost, twice)
	row := b.row("events lost or standing twice after the kills", "events", 0.5, true)
	row.values = append(row.values, float64(lost+twice))
	return err
}

// inSync waits until as many voters answer and hold all but the last moment's events: a leader that
// is killed before that is the second of three nodes to be missing.
func inSync(ctx context.Context, s *quorum.Store, voters int) error {
	for ctx.Err() == nil {
		members, err := s.Members(ctx)
		n := 0
		for _, m := range members {
			if in, err := s.CaughtUp(ctx, m); err == nil && in && !m.Learner {
				n++
			}
		}
		if err == nil && n == voters {
			return nil
		}
		pause(ctx, 10*time.Millisecond)
	}
	return ctx.Err()
}

// startMembers starts nodes of one log; the first makes it.
func (b *logBench) startMembers(ctx context.Context, nodes []*member) error {
	for i := range nodes {
		port, err := freePort()
		if err != nil {
			return err
		}
		nodes[i] = &member{
			dir:  filepath.Join(b.dir, fmt.Sprintf("voter-%d", i)),
			addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)),
		}
		if i > 0 {
			nodes[i].seed = nodes[0].url()
		}
		if err := nodes[i].start(ctx); err != nil {
			return err
		}
	}
	return nil
}

// steadyLoad appends through one node until it is stopped.
type steadyLoad struct {
	to      *quorum.Store
	end     context.CancelFunc
	wg      sync.WaitGroup
	longest atomic.Int64 // nanoseconds between two acknowledgements, the longest since it was zeroed
	last    atomic.Int64 // when the last one was, UnixNano
	heads   [loadWriters]domain.Revision
	failed  atomic.Pointer[error]
	stats   struct {
		sync.Mutex
		histogram
	}
}

func startLoad(ctx context.Context, to *quorum.Store) *steadyLoad {
	ctx, end := context.WithCancel(ctx)
	l := &steadyLoad{to: to, end: end}
	l.last.Store(time.Now().UnixNano())
	for w := range loadWriters {
		l.heads[w] = domain.NoRevision
		l.wg.Go(func() { l.write(ctx, w) })
	}
	return l
}

func (*steadyLoad) stream(w int) domain.StreamID {
	return domain.StreamID(fmt.Sprintf("load-%d", w))
}

// write appends one event after the other. One whose outcome is not known is appended again with
// the same id.
func (l *steadyLoad) write(ctx context.Context, w int) {
	for ctx.Err() == nil {
		from := time.Now()
		a, err := l.to.Append(context.WithoutCancel(ctx), l.stream(w), eventstore.At(l.heads[w]),
			proposal(fmt.Sprintf("load/%d/%d", w, l.heads[w]), make([]byte, eventSize)))
		switch {
		case errors.Is(err, eventstore.ErrUnknownOutcome), errors.Is(err, eventstore.ErrNoQuorum):
			continue
		case err != nil:
			l.failed.CompareAndSwap(nil, &err)
			return
		}
		l.heads[w] = a.Last
		now := time.Now()
		gap := now.UnixNano() - l.last.Swap(now.UnixNano())
		for old := l.longest.Load(); gap > old && !l.longest.CompareAndSwap(old, gap); {
			old = l.longest.Load()
		}
		l.stats.Lock()
		l.stats.add(now.Sub(from))
		l.stats.Unlock()
	}
}

// p99 gives the latency since the last call, in microseconds.
func (l *steadyLoad) p99() float64 {
	l.stats.Lock()
	defer l.stats.Unlock()
	v := float64(l.stats.quantile(0.99)) / 1e3
	l.stats.histogram = histogram{}
	return v
}

func (l *steadyLoad) stop() error {
	l.end()
	l.wg.Wait()
	if f := l.failed.Load(); f != nil {
		return *f
	}
	return nil
}

func (l *steadyLoad) acked() (n int64) {
	for _, h := range l.heads {
		n += int64(h) + 1
	}
	return n
}

// missing reads the log and counts what was acknowledged and is not there, and what is there twice.
func (l *steadyLoad) missing(ctx context.Context) (lost, twice int64, err error) {
	if _, err := l.to.Head(ctx); err != nil {
		return 0, 0, err
	}
	seen := map[domain.EventID]bool{}
	var count [loadWriters]int64
	for r, err := range l.to.ReadAll(ctx, 0, eventstore.Forward, domain.Filter{},
		eventstore.NoLimit) {
		if err != nil {
			return 0, 0, err
		}
		if seen[r.ID] {
			twice++
		}
		seen[r.ID] = true
		if w, err := strconv.Atoi(strings.TrimPrefix(string(r.Stream), "load-")); err == nil {
			count[w]++
		}
	}
	for w, h := range l.heads {
		lost += max(0, int64(h)+1-count[w])
	}
	return lost, twice, nil
}

// grows takes a log under load from one voter to three and five, and then replaces a voter that is
// gone with its disk.
func (b *logBench) grows(ctx context.Context) (err error) {
	c := &logCluster{}
	defer c.close()
	first, err := c.open(ctx, filepath.Join(b.dir, "grow-0"), "")
	if err != nil {
		return err
	}
	urls := []string{first}
	for i := range 5 {
		u, err := c.open(ctx, filepath.Join(b.dir, fmt.Sprintf("grow-%d", i+1)), first)
		if err != nil {
			return err
		}
		urls = append(urls, u)
	}
	l := startLoad(ctx, c.stores[0])
	defer func() { err = errors.Join(err, l.stop()) }()
	step := b.row("growth 1-3-5 and a replaced voter, longest step", "s", 10, true)
	step.worst = true
	for _, s := range []struct {
		what string
		do   func() error
	}{
		{"1 to 3", func() error { return c.grow(ctx, urls[1], urls[2]) }},
		{"3 to 5", func() error { return c.grow(ctx, urls[3], urls[4]) }},
		{"a dead voter replaced", func() error { return c.replace(ctx, 2, urls[2], urls[5]) }},
	} {
		began := time.Now()
		if err := s.do(); err != nil {
			return fmt.Errorf("growth, %s: %w", s.what, err)
		}
		step.values = append(step.values, time.Since(began).Seconds())
		b.progress("growth, %s: %s", s.what, time.Since(began).Round(time.Millisecond))
	}
	if err := l.stop(); err != nil {
		return err
	}
	gap := b.row("longest time without a write meanwhile", "s", 1, true)
	gap.values = append(gap.values, time.Duration(l.longest.Load()).Seconds())
	lost, twice, err := l.missing(ctx)
	row := b.row("events lost or standing twice after growth", "events", 0.5, true)
	row.values = append(row.values, float64(lost+twice))
	return err
}

// grow makes voters of nodes: learners first, promoted when all of them are in step.
func (c *logCluster) grow(ctx context.Context, urls ...string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for _, u := range urls {
		if err := c.stores[0].AddLearner(ctx, u); err != nil {
			return err
		}
	}
	return c.inStep(ctx, len(urls))
}

// replace stops a node for good and gives its vote to another.
func (c *logCluster) replace(ctx context.Context, dead int, url, by string) error {
	stop := c.stops[dead]
	c.stops[dead] = func() {}
	stop()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	members, err := c.stores[0].Members(ctx)
	if err != nil {
		return err
	}
	for _, m := range members {
		if m.URL == url {
			if err := c.stores[0].Remove(ctx, m.ID); err != nil {
				return err
			}
		}
	}
	return c.grow(ctx, by)
}

// trims measures appends while archived events are deleted from the database, beside appends alone,
// on the long log.
func (b *logBench) trims(ctx context.Context) (err error) {
	s, err := b.openLong(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	a, err := s.Archive(ctx)
	if err != nil {
		return err
	}
	part := (a.Held.Position.N() - a.Sealed.Position.N()) / uint64(b.repeats)
	if part == 0 {
		b.note("the log was too short to have an archive: deletion is not measured")
		return nil
	}
	l := startLoad(ctx, s)
	defer func() { err = errors.Join(err, l.stop()) }()
	row := b.row("append p99 while archived events are deleted, to p99 without", "x", 2, true)
	for i := range b.repeats {
		pause(ctx, time.Second)
		l.p99()
		pause(ctx, b.runtime)
		alone := l.p99()
		began := time.Now()
		n, err := s.Trim(ctx, a.Sealed.Position+domain.Position(part*uint64(i+1)))
		if err != nil {
			return err
		}
		with := l.p99()
		row.values = append(row.values, with/alone)
		b.progress("deleted %d events in %s: append p99 %.0f us, %.0f us alone", n,
			time.Since(began).Round(time.Millisecond), with, alone)
	}
	return nil
}

// pastEvents is how far the furthest kept state lies from a position of the past.
const pastEvents = 100_000

// pasts measures reading the state at past positions, two readers at once.
func (b *logBench) pasts(ctx context.Context) (err error) {
	s, err := b.openLong(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	r, err := projections.New(projections.Config{
		Store: s, Codec: codec.Catalog(), Views: logViews(),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if err := errors.Join(r.Start(ctx), r.CaughtUp(ctx)); err != nil {
		return err
	}
	row := b.row("all views at a past position, two readers at once: longest", "s", 1, true)
	row.worst = true
	took := make([][]float64, 2)
	failed := make([]error, 2)
	var wg sync.WaitGroup
	for i := range took {
		wg.Go(func() {
			for k := range b.repeats {
				// Just before the next state that is kept: the longest way from the last one.
				at := uint64(pastEvents)*uint64(1+(k+i)%max(1, b.events/pastEvents)) - 1
				began := time.Now()
				failed[i] = errors.Join(failed[i], viewsAt(ctx, r, domain.Position(min(at, uint64(b.events)))))
				took[i] = append(took[i], time.Since(began).Seconds())
			}
		})
	}
	wg.Wait()
	for _, t := range took {
		row.values = append(row.values, t...)
	}
	return errors.Join(failed...)
}

// viewsAt builds what the API shows of a past position.
func viewsAt(ctx context.Context, r *projections.Runner, p domain.Position) error {
	_, _, err := projections.AtOnce(ctx, r, p, topology.New(), desired.New(), catalog.New(),
		audit.New())
	return err
}

// memory measures what a whole idle node keeps resident with as many events in its database as it
// holds there at the most. The node is the product's own program.
func (b *logBench) memory(ctx context.Context) (err error) {
	if b.weft == "" {
		b.note("without -weft PROGRAM the memory of a node is not measured")
		return nil
	}
	saved, data := filepath.Join(b.dir, "saved"), filepath.Join(b.dir, "node")
	if err := b.save(ctx, saved); err != nil {
		return err
	}
	out, err := output(ctx, prepareLimit, b.weft, "restore", saved, "--data-dir", data)
	if err != nil {
		return fmt.Errorf("weft restore: %w\n%s", err, out)
	}
	in, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer w.Close() //nolint:errcheck // it carries nothing
	env := []string{"HOME=" + b.dir, "XDG_STATE_HOME=" + b.dir}
	argv := []string{b.weft, "serve", "--data-dir", data, "--log-level", "error", "-o", "json"}
	for _, f := range []string{"--api", "--nbd", "--iscsi", "--peer", "--events"} {
		argv = append(argv, f, "127.0.0.1:0")
	}
	c, err := spawn(nil, in, env, argv...)
	_ = in.Close()
	if err != nil {
		return err
	}
	defer c.stop()
	err = c.await(ctx, func() bool { return strings.Contains(c.tail.text(), `"api"`) })
	if err != nil {
		return err
	}
	var said struct {
		API string `json:"api"`
	}
	_ = json.Unmarshal([]byte(c.tail.text()), &said)
	b.progress("a node with %d events, left alone for %s", hotEvents, settleTime)
	pause(ctx, settleTime)
	anon, file, err := resident(c.pid())
	if err != nil {
		return err
	}
	before, err := cpuTime(c.pid())
	if err != nil {
		return err
	}
	pause(ctx, 2*b.runtime)
	after, err := cpuTime(c.pid())
	core := 50 * (after - before).Seconds() / b.runtime.Seconds()
	for _, r := range []struct {
		name, unit string
		want       float64
		value      float64
	}{
		{"a whole idle node, resident without pages of files", "MB", 150, anon},
		{"a whole idle node, pages of files (database and program)", "MB", 250, file},
		{"a whole idle node, processor", "% of a core", 0, core},
	} {
		row := b.row(r.name, r.unit, r.want, true)
		row.values = append(row.values, r.value)
	}
	return err
}

// save writes a backup of a log of as many events as a database holds at the most.
func (b *logBench) save(ctx context.Context, to string) (err error) {
	id := domain.ClusterID{UUID: domain.UUID{4}}
	s, err := quorum.Open(ctx, quorum.Config{
		Dir: filepath.Join(b.dir, "hot"), ClusterID: id, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if err := fillTenants(ctx, s, id, hotEvents); err != nil {
		return err
	}
	_, err = archive.Folder{Dir: to}.Write(ctx, id.UUID, archive.Of(s), nil)
	return err
}

// fillTenants appends what a cluster begins with, and then tenants whose quotas change again and
// again, each event with 256 bytes of names.
func fillTenants(ctx context.Context, s eventstore.Store, id domain.ClusterID, events int) error {
	c := codec.Catalog()
	if err := c.Err(); err != nil {
		return err
	}
	put := func(stream domain.StreamID, facts []domain.Event) error {
		var list []eventstore.Proposed
		for i, f := range facts {
			schema, data, err := c.Encode(ctx, stream, f)
			if err != nil {
				return err
			}
			p := proposal(fmt.Sprintf("%s/%d", stream, i), data)
			p.Type, p.Schema = f.EventType(), schema
			list = append(list, p)
		}
		_, err := s.Append(ctx, stream, eventstore.NoStream(), list...)
		return err
	}
	if err := put(cluster.Stream(id), []domain.Event{
		&cluster.ClusterInitialized{Cluster: id, Name: "bench"},
	}); err != nil {
		return err
	}
	for n, t := 1, 0; n < events; t++ {
		tenant := domain.TenantID{UUID: domain.DeriveUUID(domain.UUID{}, "tenant", fmt.Sprint(t))}
		facts := []domain.Event{&tenancy.TenantCreated{Tenant: tenant, Name: fmt.Sprintf("t%d", t)}}
		for k := 1; k < min(100, events-n); k++ {
			facts = append(facts, &tenancy.Reserved{
				Kind: "template", Name: fmt.Sprintf("%d-%s", k, strings.Repeat("x", 55)),
				Object: domain.DeriveUUID(tenant.UUID, fmt.Sprint(k)), Bytes: domain.GiB,
			})
		}
		if err := put(tenancy.Stream(tenant), facts); err != nil {
			return err
		}
		n += len(facts)
	}
	return nil
}

// resident gives what a process holds of memory that no file backs, and of files, in MB.
func resident(pid int) (anon, file float64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kb, _ := strconv.ParseFloat(f[1], 64)
		switch f[0] {
		case "RssAnon:", "RssShmem:":
			anon += kb / 1e3 * 1.024
		case "RssFile:":
			file = kb / 1e3 * 1.024
		}
	}
	return anon, file, nil
}

// handler serves a node's port to others in the clear, on loopback alone.
func handler(port *quorum.Port) *http.Server {
	var proto http.Protocols
	proto.SetHTTP1(true)
	proto.SetUnencryptedHTTP2(true)
	return &http.Server{Handler: port, Protocols: &proto, ReadHeaderTimeout: toolLimit}
}
