package qos

import (
	"testing"
	"time"

	"weft/domain"
)

// model is a device that serves one request after the other, each for as long as its cost says, and
// takes as many at once as it is given.
type model struct {
	t     *testing.T
	w     *world
	s     *Scheduler
	per   time.Duration // that a request of 4 KiB takes
	queue []pass        // from head on
	head  int
	free  time.Time // when all it has is served
	timer Timer

	hungry  time.Time // when it ran out of requests while some waited; zero: it did not
	starved int       // how often time went by so
}

// pass is a request on the device.
type pass struct {
	h    *host
	io   *domain.IO
	done time.Time
}

func newModel(t *testing.T, per time.Duration) *model {
	w := newWorld()
	return &model{t: t, w: w, s: NewScheduler(w.clock(), false), per: per}
}

// takes gives how long the device serves a request.
func (m *model) takes(io *domain.IO) time.Duration {
	const block = (costOp + 4096) / costBytes
	return m.per * time.Duration(cost(io)) / block
}

func (m *model) start(h *host, io *domain.IO) {
	now := m.w.clock().Now()
	if !m.hungry.IsZero() && now.After(m.hungry) {
		m.starved++
	}
	m.hungry = time.Time{}
	if m.free.Before(now) {
		m.free = now
	}
	m.free = m.free.Add(m.takes(io))
	m.queue = append(m.queue, pass{h, io, m.free})
	if len(m.queue)-m.head == 1 {
		m.arm(m.free.Sub(now))
	}
}

func (m *model) arm(d time.Duration) {
	if m.timer == nil {
		m.timer = m.w.clock().AfterFunc(d, m.end)
		return
	}
	m.timer.Reset(d)
}

// end completes the request that was served, and begins with the next.
func (m *model) end() {
	p := m.queue[m.head]
	m.queue[m.head] = pass{}
	if m.head++; m.head >= len(m.queue)/2 {
		m.queue, m.head = append(m.queue[:0], m.queue[m.head:]...), 0
	}
	if len(m.queue) > 0 {
		m.arm(m.queue[m.head].done.Sub(p.done))
	}
	p.h.end(p.io)
	if len(m.queue) == 0 && m.s.Reading().Waiting > 0 {
		m.hungry = p.done
	}
}

// idle fails the test if the device ever rested while a request waited for it.
func (m *model) idle() {
	m.t.Helper()
	r := m.s.Reading()
	if m.starved > 0 || len(m.queue) == 0 && r.Waiting > 0 {
		m.t.Errorf("the device rested %d times while requests waited; %+v", m.starved, r)
	}
}

// host keeps so many requests of one size under way to its volume.
type host struct {
	m     *model
	gate  *Gate
	flow  *Flow
	size  int64
	depth int
	out   int
	ended int64 // requests
	cost  int64 // of them
	spare []*domain.IO
}

func (m *model) host(depth int, size int64, x Share) *host {
	h := &host{m: m, size: size, depth: depth}
	h.gate = New(m.w.clock(), h.admitted)
	h.flow = m.s.Flow(h.run)
	h.flow.SetShare(x)
	return h
}

func (h *host) run(io *domain.IO) { h.m.start(h, io) }

func (h *host) admitted(io *domain.IO) {
	if h.flow.Admit(io) {
		h.run(io)
	}
}

// fill submits what is missing.
func (h *host) fill() {
	for h.out < h.depth {
		if len(h.spare) == 0 {
			h.spare = append(h.spare, &domain.IO{Op: domain.OpRead, Len: h.size})
		}
		last := len(h.spare) - 1
		io := h.spare[last]
		h.spare = h.spare[:last]
		h.out++
		if h.gate.Admit(io) {
			h.admitted(io)
		}
	}
}

func (h *host) end(io *domain.IO) {
	h.ended++
	h.cost += cost(io)
	h.out--
	h.flow.Done(io)
	h.spare = append(h.spare, io)
	h.fill()
}

// during gives how many requests, and what cost, a host is served in so long.
func (m *model) during(d time.Duration, hosts ...*host) (ended, costs []int64) {
	for _, h := range hosts {
		ended, costs = append(ended, -h.ended), append(costs, -h.cost)
		h.fill()
	}
	m.w.pass(d)
	for i, h := range hosts {
		ended[i] += h.ended
		costs[i] += h.cost
	}
	return ended, costs
}
