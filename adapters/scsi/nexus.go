package scsi

import (
	"sync"
	"sync/atomic"
)

// nexus is one I_T_L nexus: its unit attentions and its running tasks.
type nexus struct {
	unit      *Unit
	initiator string
	target    string
	port      uint16

	generation atomic.Uint64 // raised by resets; an older call must not start (S3)
	pending    atomic.Int32  // attentions queued: spares the fast path the lock

	mu struct {
		sync.Mutex
		attentions []attention
		first      *task // running tasks, doubly linked
		running    int
		closed     bool
	}
}

type attention struct{ asc, ascq byte }

// drain waits until a set of tasks has ended.
type drain struct {
	left atomic.Int64
	done func()
}

func (d *drain) minus(n int64) {
	if d.left.Add(-n) == 0 {
		d.done()
	}
}

var _ Nexus = (*nexus)(nil)

// Expect implements Nexus.
func (n *nexus) Expect(cdb []byte) (out, in int, generation uint64) {
	generation = n.generation.Load()
	if len(cdb) < 16 {
		return 0, 0, generation
	}
	c := n.unit.table.find(cdb)
	if c == nil {
		return 0, 0, generation
	}
	out, in = c.length(cdb, n.unit.disk.Info().LogicalBlock)
	return out, in, generation
}

// Attention implements Nexus. The queue is bounded and holds no duplicates; when it is full the
// oldest is lost, as the newest tells the initiator to look again anyway.
func (n *nexus) Attention(asc, ascq byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	a := attention{asc, ascq}
	for _, old := range n.mu.attentions {
		if old == a {
			return
		}
	}
	if len(n.mu.attentions) == attentionMax {
		n.mu.attentions = append(n.mu.attentions[:0], n.mu.attentions[1:]...)
	}
	// Resets come before all else, so that the initiator learns first that its state is gone.
	if asc == 0x29 {
		n.mu.attentions = append([]attention{a}, n.mu.attentions...)
	} else {
		n.mu.attentions = append(n.mu.attentions, a)
	}
	n.pending.Store(int32(len(n.mu.attentions)))
}

// next takes the first unit attention from the queue.
func (n *nexus) next() (attention, bool) {
	if n.pending.Load() == 0 {
		return attention{}, false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.mu.attentions) == 0 {
		return attention{}, false
	}
	a := n.mu.attentions[0]
	n.mu.attentions = n.mu.attentions[1:]
	n.pending.Store(int32(len(n.mu.attentions)))
	return a, true
}

// enter puts a task on the list of running ones.
func (n *nexus) enter(t *task) {
	n.mu.Lock()
	t.after = n.mu.first
	if t.after != nil {
		t.after.before = t
	}
	n.mu.first = t
	n.mu.running++
	n.mu.Unlock()
}

// leave takes a task off the list and tells those that waited for it.
func (n *nexus) leave(t *task) {
	n.mu.Lock()
	if t.before != nil {
		t.before.after = t.after
	} else {
		n.mu.first = t.after
	}
	if t.after != nil {
		t.after.before = t.before
	}
	t.before, t.after = nil, nil
	n.mu.running--
	waits := t.drains
	t.drains = nil
	last := n.mu.closed && n.mu.running == 0
	n.mu.Unlock()
	if last {
		n.unit.forget(n)
	}
	for _, d := range waits {
		d.minus(1)
	}
}

// alone tells that at most one command of this nexus is running.
func (n *nexus) alone() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.mu.running <= 1
}

// join makes a drain wait for the running media commands of a nexus, and marks them aborted with a
// status when it is not zero.
func (n *nexus) join(d *drain, status byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if status != 0 {
		n.generation.Add(1)
	}
	for t := n.mu.first; t != nil; t = t.after {
		if !t.command.media {
			continue
		}
		if status != 0 {
			t.aborted.Store(uint32(status))
		}
		d.left.Add(1)
		t.drains = append(t.drains, d)
	}
}

// drain waits until the running media commands of some nexuses have ended. With a status other than
// zero they are aborted and report it.
func (u *Unit) drain(nexuses []*nexus, status byte) {
	gone := make(chan struct{})
	u.drainThen(nexuses, status, func() { close(gone) })
	<-gone
}

func (*Unit) drainThen(nexuses []*nexus, status byte, done func()) {
	d := &drain{done: done}
	d.left.Store(1)
	for _, n := range nexuses {
		n.join(d, status)
	}
	d.minus(1)
}

// Abort implements Nexus. A request that the disk has is waited for; commands of several steps stop
// before the next one.
func (n *nexus) Abort(call Call) {
	n.mu.Lock()
	for t := n.mu.first; t != nil; t = t.after {
		if t.call == call {
			t.aborted.Store(statusTaskAborted)
		}
	}
	n.mu.Unlock()
	n.unit.erase.letGo(func(t *task) bool { return t.nexus == n && t.stopped() })
}

// Reset implements Nexus.
func (n *nexus) Reset(function int, done func()) {
	u := n.unit
	if function == ResetUnit {
		u.holder.Store(nil)
		u.dsense.Store(false)
		u.swp.Store(false)
		u.attention(nil, 0x29, 0x03)
	}
	u.erase.letGo(func(t *task) bool {
		t.aborted.Store(statusTaskAborted)
		return true
	})
	u.drainThen(u.others(nil), statusTaskAborted, done)
}

// Close implements Nexus. The nexus stays known to drains until its last command has ended: a write
// of a lost session is still waited for by a reset of another one.
func (n *nexus) Close() {
	u := n.unit
	u.holder.CompareAndSwap(n, nil)
	n.mu.Lock()
	n.mu.closed = true
	n.generation.Add(1)
	for t := n.mu.first; t != nil; t = t.after {
		t.aborted.Store(statusTaskAborted)
	}
	last := n.mu.running == 0
	n.mu.Unlock()
	if last {
		u.forget(n)
	}
	u.erase.letGo(func(t *task) bool { return t.nexus == n })
}

func (u *Unit) forget(n *nexus) {
	u.mu.Lock()
	delete(u.mu.nexuses, n)
	u.mu.Unlock()
}
