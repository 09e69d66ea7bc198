package qos

import (
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"weft/domain"
)

// TestReserved proves Q2: a volume of the least weight gets what is reserved for it, in requests or
// in bytes, second by second, beside one that would take the whole device.
func TestReserved(t *testing.T) {
	for name, c := range map[string]struct {
		share Share
		size  int64
		want  int64 // requests a second
	}{
		"requests": {Share{IOPS: 300, Weight: 1}, 4096, 300},
		"bytes":    {Share{Bytes: 8 << 20, Weight: 1}, 64 << 10, 128},
		"both":     {Share{IOPS: 10, Bytes: 2 << 20, Weight: 1}, 4096, 512},
	} {
		m := newModel(t, time.Millisecond)
		noisy := m.host(64, 64<<10, Share{Weight: 100})
		quiet := m.host(48, c.size, c.share)
		m.during(time.Second, noisy, quiet)
		for second := range 10 {
			n, _ := m.during(time.Second, noisy, quiet)
			if n[1] < c.want*98/100 || n[1] > c.want*115/100 {
				t.Errorf("%s: second %d: %d requests, %d are reserved", name, second, n[1], c.want)
			}
		}
		m.idle()
	}
}

// TestShares proves Q3: what is not reserved goes by weight, by cost, whatever the size of requests
// and however many are under way.
func TestShares(t *testing.T) {
	m := newModel(t, 100*time.Microsecond)
	weights := []int64{10, 30, 60, 100}
	hosts := []*host{
		m.host(64, 4096, Share{Weight: 10}), m.host(300, 64<<10, Share{Weight: 30}),
		m.host(40, 16<<10, Share{Weight: 60}), m.host(80, 256<<10, Share{Weight: 100}),
	}
	m.during(time.Second, hosts...)
	_, costs := m.during(10*time.Second, hosts...)
	all := int64(0)
	for _, c := range costs {
		all += c
	}
	for i, c := range costs {
		want := float64(all) * float64(weights[i]) / 200
		if got := float64(c); got < want*0.95 || got > want*1.05 {
			t.Errorf("weight %d has %.1f %% of the device, not %.1f", weights[i], 100*got/float64(all),
				100*want/float64(all))
		}
	}
	m.idle()
}

// TestShareHoldsReservation proves that what is reserved is part of a volume's share and not on top
// of it.
func TestShareHoldsReservation(t *testing.T) {
	m := newModel(t, 100*time.Microsecond)
	a := m.host(64, 4096, Share{IOPS: 2000})
	b := m.host(64, 4096, Share{})
	m.during(time.Second, a, b)
	n, _ := m.during(2*time.Second, a, b)
	if n[0] < n[1]*95/100 || n[0] > n[1]*105/100 {
		t.Errorf("%d and %d requests by equal weight", n[0], n[1])
	}
}

// TestOverbooked proves Q4: reservations of more than the device gives leave an eighth of it to the
// others, and two that are alike are served alike.
func TestOverbooked(t *testing.T) {
	m := newModel(t, time.Millisecond)
	a := m.host(64, 4096, Share{IOPS: 10_000})
	b := m.host(64, 64<<10, Share{})
	m.during(time.Second, a, b)
	_, costs := m.during(20*time.Second, a, b)
	if part := float64(costs[1]) / float64(costs[0]+costs[1]); part < 0.115 || part > 0.135 {
		t.Errorf("%.1f %% is left to who has no reservation", 100*part)
	}
	c := m.host(64, 4096, Share{IOPS: 10_000})
	m.during(time.Second, a, b, c)
	_, costs = m.during(10*time.Second, a, b, c)
	if costs[0] < costs[2]*95/100 || costs[0] > costs[2]*105/100 {
		t.Errorf("of two with one reservation one has %d, the other %d", costs[0], costs[2])
	}
	m.idle()
}

// TestMaximum proves that a volume gets no more than its maximum however idle its device is, and
// however much is reserved for it, and that it shares what it may have.
func TestMaximum(t *testing.T) {
	m := newModel(t, 100*time.Microsecond)
	a := m.host(64, 4096, Share{IOPS: 500, Weight: 100})
	a.gate.SetLimits(Limits{IOPS: 500, Burst: 10 * time.Millisecond})
	b := m.host(64, 4096, Share{Weight: 1})
	n, _ := m.during(4*time.Second, a, b)
	if n[0] < 1960 || n[0] > 2006 {
		t.Errorf("%d requests in 4 s, 2000 are the limit and all are reserved", n[0])
	}
	if want := int64(38_000); n[1] < want*98/100 {
		t.Errorf("%d requests are left to the other volume, not %d", n[1], want)
	}
	m.idle()
}

// TestPauseEarnsNothing proves Q6: a volume that was idle for an hour gets what is reserved from
// then on, and creditMax of it at once.
func TestPauseEarnsNothing(t *testing.T) {
	m := newModel(t, time.Millisecond)
	noisy := m.host(64, 4096, Share{Weight: 100})
	back := m.host(64, 4096, Share{IOPS: 200, Weight: 1})
	m.during(time.Second, noisy, back)
	back.depth = 0
	m.w.pass(10 * time.Second)
	noisy.depth = 0
	m.w.pass(time.Hour)
	noisy.depth, back.depth = 64, 64
	n, _ := m.during(time.Second, noisy, back)
	if n[1] < 200 || n[1] > 200+20+30 { // the credit, and the share and the first window
		t.Errorf("%d requests in the first second, 200 are reserved", n[1])
	}

	var r round
	l := &line{}
	l.set(Share{})
	r.push(l, &domain.IO{Op: domain.OpRead, Len: 4096})
	r.next(time.Unix(1, 0))
	if l.deficit != 0 {
		t.Errorf("a share of %d is left to a volume without requests", l.deficit)
	}
}

// TestNobodyStarves proves of any history of the round that every request is served once, those of
// a volume in order, and that a volume which has no reservation waits for no more than the others'
// due: their quanta while its request becomes due, and seven times that by reservation.
func TestNobodyStarves(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type owed struct {
			l       *line
			sent    []*domain.IO
			served  int
			between int64 // cost that others had since its first request became the first
		}
		const largest = (costOp + 64<<10) / costBytes
		var r round
		var all []*owed
		sum := int64(0)
		for range rapid.IntRange(2, 5).Draw(t, "volumes") {
			x := Share{Weight: rapid.Int64Range(10, 100).Draw(t, "weight")}
			if rapid.Bool().Draw(t, "reserved") {
				x.IOPS = rapid.Int64Range(1, 100_000).Draw(t, "iops")
			}
			o := &owed{l: &line{owner: &Flow{share: x}}}
			o.l.set(x)
			all = append(all, o)
			sum += quantum*x.Weight + largest
		}
		now := time.Unix(1000, 0)
		serve := func() {
			now = now.Add(100 * time.Microsecond)
			f, io := r.next(now)
			for _, o := range all {
				if o.l.owner != f {
					o.between += cost(io)
					bound := (largest/(quantum*o.l.weight) + 3) * sum * (reservedParts + 1)
					if o.served < len(o.sent) && o.l.iops.unit == 0 && o.between > bound {
						t.Fatalf("weight %d waits for %d, at most %d is due", o.l.weight, o.between, bound)
					}
					continue
				}
				if o.sent[o.served] != io {
					t.Fatal("a request is served out of order")
				}
				o.served++
				o.between = 0
			}
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			o := all[rapid.IntRange(0, len(all)-1).Draw(t, "who")]
			size := rapid.Int64Range(1, 16).Draw(t, "size") * 4096
			for range rapid.SampledFrom([]int{0, 1, 5, 12, 500}).Draw(t, "sends") {
				io := &domain.IO{Op: domain.OpRead, Len: size}
				if o.served == len(o.sent) {
					o.between = 0
				}
				o.sent = append(o.sent, io)
				r.push(o.l, io)
			}
			for range rapid.IntRange(0, 12).Draw(t, "served") {
				if !r.empty() {
					serve()
				}
			}
		}
		for !r.empty() {
			serve()
		}
		for _, o := range all {
			if o.served != len(o.sent) {
				t.Fatalf("%d served of %d", o.served, len(o.sent))
			}
		}
	})
}

// TestWorkConserving proves Q5 of any history: while a request waits the device has one, and each
// ends once, whoever comes and goes, whatever they are owed, and however long requests take.
func TestWorkConserving(t *testing.T) {
	waited := int64(0)
	rapid.Check(t, func(r *rapid.T) {
		m := newModel(t, time.Duration(rapid.IntRange(100, 3000).Draw(r, "us"))*time.Microsecond)
		var hosts []*host
		for range rapid.IntRange(1, 4).Draw(r, "volumes") {
			hosts = append(hosts, m.host(0, rapid.Int64Range(1, 32).Draw(r, "size")*4096, Share{
				IOPS:   rapid.Int64Range(0, 2000).Draw(r, "iops"),
				Weight: rapid.Int64Range(1, 100).Draw(r, "weight"),
			}))
		}
		for range rapid.IntRange(1, 20).Draw(r, "steps") {
			h := hosts[rapid.IntRange(0, len(hosts)-1).Draw(r, "who")]
			h.depth = rapid.IntRange(0, 200).Draw(r, "depth")
			m.during(time.Duration(rapid.IntRange(0, 50).Draw(r, "ms"))*time.Millisecond, h)
			m.idle()
		}
		for _, h := range hosts {
			h.depth = 0
		}
		m.w.pass(time.Hour)
		for i, h := range hosts {
			if h.out != 0 {
				r.Fatalf("%d requests of volume %d have not ended: %+v", h.out, i, m.s.Reading())
			}
			waited += h.flow.Delayed()
		}
		if x := m.s.Reading(); x.Flight != 0 || x.Waiting != 0 || t.Failed() {
			r.Fatalf("at rest %+v", x)
		}
	})
	if waited == 0 {
		t.Error("nothing waited: the test tests nothing")
	}
}

// TestAlone proves that a volume is not held back for others that are not there: before they come,
// and from a second after they went.
func TestAlone(t *testing.T) {
	m := newModel(t, time.Millisecond)
	a, b := m.host(500, 4096, Share{}), m.host(1, 4096, Share{})
	m.during(5*time.Second, a)
	if n := a.flow.Delayed(); n != 0 {
		t.Fatalf("%d requests of a lone volume waited", n)
	}
	m.during(5*time.Second, a, b)
	before := a.flow.Delayed()
	if before == 0 {
		t.Fatal("nothing waits although two volumes share the device")
	}
	b.depth = 0
	m.w.pass(2 * time.Second)
	before = a.flow.Delayed()
	m.w.pass(5 * time.Second)
	if n := a.flow.Delayed(); n != before {
		t.Errorf("%d more waited, alone again", n-before)
	}
	if r := m.s.Reading(); r.Flight != 500 || r.Waiting != 0 {
		t.Errorf("%+v", r)
	}
}

// TestWindow proves that the window follows what requests take: small on a slow device, so that who
// comes waits behind few, and wide on a fast one, so that it is kept busy; and that it has ends.
func TestWindow(t *testing.T) {
	for name, c := range map[string]struct {
		per, long time.Duration
		low, high int64
	}{
		"slow": {time.Millisecond, time.Second, windowMin, 2*windowMin + 2},
		"fast": {10 * time.Microsecond, 600 * time.Millisecond, 150, windowMax},
		"ram":  {7 * time.Microsecond, 400 * time.Millisecond, windowMax, windowMax},
	} {
		m := newModel(t, c.per)
		m.during(c.long, m.host(400, 4096, Share{}), m.host(400, 4096, Share{}))
		if n := m.s.Reading().Window; n < c.low || n > c.high {
			t.Errorf("%s: window %d, not %d to %d", name, n, c.low, c.high)
		}
		m.idle()
	}
}

// TestWindowByBase proves that a device on which a request takes long also with few under way, as
// one with a slow flush, gets all the depth that does not make it worse; that one which only queues
// does not; that a base is taken anew; and that nothing grows for which nobody waits.
func TestWindowByBase(t *testing.T) {
	now := time.Unix(1000, 0)
	w := window{target: targetFlash, size: windowFirst}
	run := func(takes func(size int64) time.Duration) (dips int) {
		for end := now.Add(time.Minute); now.Before(end); {
			was, took := w.back, takes(w.size)
			now = now.Add(took)
			if w.after(now, took, true); was == 0 && w.back > 0 {
				dips++
			}
		}
		return dips
	}
	flushes := func(int64) time.Duration { return 5 * time.Millisecond }
	queues := func(size int64) time.Duration { return time.Duration(size) * time.Millisecond }
	if n := run(flushes); w.size < windowMax*7/8 && w.back == 0 || n < 5 || n > 7 {
		t.Errorf("a slow flush: %+v, the base was taken %d times a minute", w, n)
	}
	if run(queues); w.size > baseTimes*windowMin && w.back == 0 {
		t.Errorf("a device that queues: %+v", w)
	}
	if run(flushes); w.size < windowMax*7/8 && w.back == 0 {
		t.Errorf("a slow flush again: %+v", w)
	}
	w = window{target: targetFlash, size: 100, since: now}
	if w.after(now, time.Millisecond, false); w.size != 100 {
		t.Errorf("a window of 100 that nobody needs is now %d", w.size)
	}
}

// TestFlushIsFree proves that a flush neither waits nor counts.
func TestFlushIsFree(t *testing.T) {
	m := newModel(t, time.Millisecond)
	m.during(time.Second, m.host(100, 4096, Share{}), m.host(100, 4096, Share{}))
	f := m.s.Flow(func(*domain.IO) { t.Error("a flush waited") })
	flush := &domain.IO{Op: domain.OpFlush}
	before := m.s.Reading()
	if before.Waiting == 0 || !f.Admit(flush) || m.s.Reading() != before {
		t.Errorf("%+v, then %+v", before, m.s.Reading())
	}
	f.Done(flush)
	if m.s.Reading() != before {
		t.Errorf("%+v, then %+v", before, m.s.Reading())
	}
}

// TestSetShare proves that a new share judges what waits already.
func TestSetShare(t *testing.T) {
	m := newModel(t, time.Millisecond)
	noisy, quiet := m.host(64, 4096, Share{Weight: 100}), m.host(64, 4096, Share{Weight: 1})
	m.during(2*time.Second, noisy, quiet)
	quiet.flow.SetShare(Share{IOPS: 800, Weight: 1})
	if n, _ := m.during(2*time.Second, noisy, quiet); n[1] < 1570 {
		t.Errorf("%d requests in 2 s, 800 a second are reserved", n[1])
	}
	if x := quiet.flow.Share(); x.IOPS != 800 {
		t.Errorf("%+v", x)
	}
}

// busy gives a scheduler with so many requests of hosts under way, and what ends one.
func busy(n int) (*Scheduler, func()) {
	s := NewScheduler(System(), false)
	f := s.Flow(nil)
	io := &domain.IO{Op: domain.OpRead, Len: 4096}
	for range n {
		f.Admit(io)
	}
	return s, func() { f.Done(io) }
}

// TestOwnWorkRests proves Q7: beside hosts each class of a device's own work has its part of the
// time, which is never nothing and less the less urgent it is, and without hosts all of it.
func TestOwnWorkRests(t *testing.T) {
	for _, c := range []struct {
		class Class
		hosts int
		part  int // of how many
	}{
		{Destage, 40, 2},
		{Clean, 40, 4},
		{Scrub, 40, 16},
		{Destage, 16, 1},
		{Clean, 8, 1},
		{Scrub, 2, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, _ := busy(c.hosts)
			const turns, long = 50, 2 * time.Millisecond
			began := time.Now()
			for range turns {
				s.Begin(c.class, nil)
				<-time.After(long)
				s.End(c.class)
			}
			want := time.Duration(turns*c.part-c.part+1) * long
			if took := time.Since(began); took != want {
				t.Errorf("%s beside %d requests: %s, want %s", c.class, c.hosts, took, want)
			}
			if n := s.Reading().Rested[c.class]; n > 0 != (c.part > 1) {
				t.Errorf("%s rested %d times", c.class, n)
			}
		})
	}
}

// TestOwnWorkRestsNotLong proves that a turn which took very long does not hold the next one back
// by as much.
func TestOwnWorkRestsNotLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := busy(40)
		s.Begin(Scrub, nil)
		<-time.After(time.Minute)
		s.End(Scrub)
		if d := s.Begin(Scrub, nil); d != restMax {
			t.Errorf("it rested for %s", d)
		}
	})
}

// TestOwnWorkWakes proves that work which rests goes on as soon as hosts leave room, or when it has
// become urgent, and that what is urgent does not rest at all.
func TestOwnWorkWakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, end := busy(40)
		var urgent atomic.Bool
		turn := func(long time.Duration) time.Duration {
			d := s.Begin(Clean, urgent.Load)
			<-time.After(long)
			s.End(Clean)
			return d
		}
		turn(20 * time.Millisecond)
		wait := time.AfterFunc(7*time.Millisecond, func() {
			for range 32 {
				end()
			}
		})
		defer wait.Stop()
		if d := turn(20 * time.Millisecond); d != 7*time.Millisecond {
			t.Errorf("hosts left room after 7 ms, it went on after %s", d)
		}
		s, _ = busy(40)
		turn(20 * time.Millisecond)
		again := time.AfterFunc(3*time.Millisecond, func() {
			urgent.Store(true)
			s.Rouse(Clean)
		})
		defer again.Stop()
		if d := turn(20 * time.Millisecond); d != 3*time.Millisecond {
			t.Errorf("it was urgent after 3 ms and went on after %s", d)
		}
		if d := turn(20 * time.Millisecond); d != 0 {
			t.Errorf("it is urgent and rested for %s", d)
		}
	})
}

// TestOwnWorkInOrder proves that without hosts too the more urgent work goes first, and the other
// as soon as that has ended.
func TestOwnWorkInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := busy(0)
		s.Begin(Scrub, nil)
		<-time.After(time.Millisecond)
		s.End(Scrub)
		s.Begin(Destage, nil)
		var order []Class
		done := make(chan struct{})
		var rested time.Duration
		go func() {
			rested = s.Begin(Scrub, nil)
			order = append(order, Scrub)
			s.End(Scrub)
			close(done)
		}()
		synctest.Wait()
		<-time.After(5 * time.Millisecond)
		order = append(order, Destage)
		s.End(Destage)
		<-done
		if !slices.Equal(order, []Class{Destage, Scrub}) {
			t.Errorf("%v", order)
		}
		if rested != 5*time.Millisecond {
			t.Errorf("destaging took 5 ms, the scrub rested for %s", rested)
		}
	})
}

// TestManyGoroutines proves that no request is forgotten and none runs twice, however requests that
// come and end at the same time meet: as long as one waits somebody will run it.
func TestManyGoroutines(t *testing.T) {
	s := NewScheduler(System(), false)
	const flows, depth, each = 4, 100, 3000
	device := make(chan func(), flows*depth)
	var users, workers sync.WaitGroup
	for range 3 {
		workers.Go(func() {
			for end := range device {
				end()
			}
		})
	}
	for range flows {
		ended := make(chan *domain.IO, depth)
		var f *Flow
		run := func(io *domain.IO) {
			device <- func() {
				f.Done(io)
				ended <- io
			}
		}
		f = s.Flow(run)
		users.Go(func() {
			seen, out := 0, 0
			for i := range each {
				io := &domain.IO{Op: domain.OpRead, Len: 4096, Off: int64(i)}
				if out++; f.Admit(io) {
					run(io)
				}
				for out == depth || i == each-1 && out > 0 {
					<-ended
					seen++
					out--
				}
			}
			if seen != each {
				t.Errorf("%d of %d ended", seen, each)
			}
		})
	}
	users.Wait()
	close(device)
	workers.Wait()
	if r := s.Reading(); r.Flight != 0 || r.Waiting != 0 {
		t.Errorf("at rest %+v", r)
	}
}

// TestPassAllocatesNothing proves the price of a scheduler on the way of every request, waiting
// ones included.
func TestPassAllocatesNothing(t *testing.T) {
	m := newModel(t, time.Millisecond)
	f := m.s.Flow(func(*domain.IO) {})
	io := &domain.IO{Op: domain.OpWrite, Len: 4096}
	if n := testing.AllocsPerRun(1000, func() {
		if f.Admit(io) {
			f.Done(io)
		}
	}); n != 0 {
		t.Errorf("%g allocations for one that passes", n)
	}
	a, b := m.host(100, 4096, Share{IOPS: 10}), m.host(100, 4096, Share{})
	m.during(time.Second, a, b)
	before := a.flow.Delayed()
	if n := testing.AllocsPerRun(10, func() { m.w.pass(time.Second) }); n > 10 {
		t.Errorf("%g allocations for a thousand that wait", n)
	}
	if a.flow.Delayed() < before+1000 {
		t.Error("too few waited: the test tests nothing")
	}
}

// BenchmarkPass tells what a scheduler costs a request that need not wait: on one goroutine, and on
// all cores, where its counter goes from one to the other.
func BenchmarkPass(b *testing.B) {
	b.Run("one", func(b *testing.B) {
		f := NewScheduler(System(), false).Flow(nil)
		io := &domain.IO{Op: domain.OpWrite, Len: 4096}
		for b.Loop() {
			f.Admit(io)
			f.Done(io)
		}
	})
	b.Run("all", func(b *testing.B) {
		f := NewScheduler(System(), false).Flow(nil)
		b.RunParallel(func(p *testing.PB) {
			io := &domain.IO{Op: domain.OpWrite, Len: 4096}
			for p.Next() {
				f.Admit(io)
				f.Done(io)
			}
		})
	})
}
