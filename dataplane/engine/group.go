package engine

import (
	"slices"
	"sync"
	"time"

	"weft/dataplane/qos"
	"weft/dataplane/segment"
	"weft/domain"
)

// sent is a chunk that a lane writes for the destager, who tells its outcome.
type sent struct {
	l *lane
	c *chunk
}

// group is chunks of the destager that one flush makes durable, while the destager prepares the
// next ones. Groups become durable in their order.
type group struct {
	chunks  []sent                   // in the order of each lane
	writes  sync.WaitGroup           // until each is on the device, or failed
	durable chan struct{}            // closed when the flush behind them has ended; nil: there is none
	faults  uint64                   // of the engine, when the group began
	last    [segment.LanesMax]uint64 // LSN that each lane gave last; 0: none

	// Of the batch that ends with the group:
	slots  []*nvSlot     // free when it is durable
	ended  []*heldRecord // let go then
	began  time.Duration // of the clock
	rested time.Duration
}

// The segments of a group stay unsealed until it is durable, out of the cleaner's reach, so it is a
// small part of a small device.
const (
	groupMax  = 16 // chunks
	groupMin  = 2
	groupPart = 64 // of a device
	groupsOut = 3  // under way where writers wait for room: they are in nobody's way there
	groupsFew = 2  // elsewhere: the device has work while the next one is prepared
)

// groupSize gives the most chunks of a group.
func (e *Engine) groupSize() int {
	n := e.space.capacity / groupPart / int64(e.payloadMax())
	return int(min(max(n, groupMin), groupMax))
}

// group gives an empty one.
func (n *nvram) group() *group {
	b := &n.batch
	k := len(b.spare)
	if k == 0 {
		return &group{}
	}
	g := b.spare[k-1]
	b.spare = b.spare[:k-1]
	return g
}

// depart hands the chunks of a group to their lanes, behind those before it.
func (n *nvram) depart(g *group, chunks []sent, began time.Duration) error {
	b, out := &n.batch, groupsFew
	if n.urgent() {
		out = groupsOut
	}
	if err := n.land(out - 1); err != nil {
		return err
	}
	g.faults = n.e.faults.Load()
	if len(chunks) > 0 { // the turn of each is its own, or others would rest for all of them at once
		n.endTurn()
		b.rested += n.e.sched.Begin(qos.Destage, n.urgent)
		b.turn = true
	}
	g.began, g.rested = began, b.rested
	b.away = append(b.away, g)
	var err error
	for _, s := range chunks {
		if err = n.send(s.l, s.c, g); err != nil {
			break
		}
	}
	if n.e.fua && len(g.chunks) > 0 { // what was sent enters the index, whatever became of others
		before := b.flushed
		g.durable = make(chan struct{})
		b.flushed = g.durable
		go n.flush(g, before)
	}
	return err
}

// flush makes a group durable as soon as it is written and the one before it is durable, while the
// destager is at the next one. What fails is known from then on to all that relies on flushes.
func (n *nvram) flush(g *group, before <-chan struct{}) {
	defer close(g.durable)
	g.writes.Wait()
	if before != nil {
		<-before
	}
	e := n.e
	if e.failed.Load() {
		return
	}
	if err := e.dev.Flush(background); err != nil {
		e.faults.Add(1)
		e.report(Fact{What: "write-error", Detail: "flush: " + err.Error()})
	}
}

// land waits until no more than so many groups are under way. An error leaves the engine out of
// service; whatever happens, who waits for a chunk gets an outcome.
func (n *nvram) land(left int) (err error) {
	b := &n.batch
	for len(b.away) > left {
		g := b.away[0]
		b.away = slices.Delete(b.away, 0, 1)
		if failed := n.settle(g); err == nil {
			err = failed
		}
		if err == nil {
			err = n.release(g)
		}
		clear(g.chunks)
		clear(g.slots)
		clear(g.ended)
		*g = group{chunks: g.chunks[:0], slots: g.slots[:0], ended: g.ended[:0]}
		b.spare = append(b.spare, g)
	}
	if len(b.away) == 0 {
		n.endTurn()
	}
	return err
}

// endTurn ends the destager's turn on the device, if it has one.
func (n *nvram) endTurn() {
	if n.batch.turn {
		n.batch.turn = false
		n.e.sched.End(qos.Destage)
	}
}

// settle waits until a group is written and flushed, and lets it into the index. If its flush
// failed, or anything that may have been one since the group began, all of it is written once more,
// durably, in other segments. An error leaves the engine out of service.
func (n *nvram) settle(g *group) error {
	e := n.e
	g.writes.Wait()
	if g.durable != nil {
		<-g.durable
	}
	again := e.fua && e.faults.Load() != g.faults
	var failed error
	for _, s := range g.chunks {
		err := s.c.err
		if err == nil && again && !e.failed.Load() {
			err = s.l.elsewhere(s.c)
		}
		if err != nil {
			e.fail(err)
			failed = err
		}
		s.l.finish(s.c, err)
	}
	if failed == nil && e.failed.Load() {
		failed = domain.Errorf(domain.Unavailable, "device failed")
	}
	return failed
}

// send puts a chunk of a group in its lane's queue.
func (n *nvram) send(l *lane, c *chunk, g *group) error {
	l.lock()
	defer l.mu.Unlock()
	if err := l.dead(); err != nil {
		return err
	}
	g.chunks = append(g.chunks, sent{l, c})
	at, data := 0, 0
	for i := range c.recs {
		p := &c.recs[i]
		l.mu.lsn++
		p.lsn = l.mu.lsn
		segment.PutLSN(c.entries[at:], p.lsn)
		switch {
		case p.whole:
			at += p.size
			if p.kind == segment.KindData {
				data += p.count
			}
		case p.kind == segment.KindData:
			at += segment.EntrySettled + 4*(p.count-1) + p.tags
			data += p.count
		default:
			at += segment.EntrySettled
		}
	}
	c.full, c.group = true, &g.writes
	g.writes.Add(1)
	g.last[l.no] = l.mu.lsn
	l.line(c)
	n.e.stats.destaged.Add(int64(data) * segment.BlockSize)
	return nil
}

// release frees the slots of a group, the oldest first: a crash between two must not leave an older
// record of a lane without the later ones.
func (n *nvram) release(g *group) error {
	for i, l := range n.e.lanes { // a branch's record may be under way before the last chunk
		if err := l.reach(g.last[i]); err != nil {
			return err
		}
	}
	if len(g.slots) == 0 {
		return nil
	}
	n.letEnd(g.ended)
	for _, sl := range g.slots {
		if left := sl.live.Load(); left != 0 {
			return domain.Errorf(domain.Internal, "%d bytes of NVRAM slot %d are neither destaged nor dead",
				left, sl.No)
		}
		if left := sl.held.Load(); left != 0 {
			return domain.Errorf(domain.Internal,
				"%d records of replicas in NVRAM slot %d were not destaged", left, sl.No)
		}
		n.share.Free(sl.No)
	}
	n.mu.Lock()
	n.mu.queue = slices.DeleteFunc(n.mu.queue, func(o *nvSlot) bool {
		return slices.Contains(g.slots, o)
	})
	for _, sl := range g.slots {
		sl.away = false
		clear(sl.leaves)
		n.mu.free = append(n.mu.free, sl.No)
	}
	freed := int64(len(g.slots))
	n.mu.away -= freed
	n.mu.Unlock()
	n.used.Add(-freed)
	n.e.stats.destages.Add(1)
	n.paced(g)
	n.freed.Broadcast()
	for _, l := range n.e.lanes {
		l.mu.Lock()   // whoever saw no free slot under it waits by now
		l.mu.Unlock() //nolint:staticcheck // an empty section is the point
		l.room.Broadcast()
	}
	return nil
}

// paced tells the controller how long the room of a group took to come back: since the room before
// it did, if that was later than the batch began. Where writers wait it does not rest.
func (n *nvram) paced(g *group) {
	size := int64(len(g.slots)) * int64(n.share.SlotBlocks()) * segment.BlockSize
	n.pace.Lock()
	defer n.pace.Unlock()
	now := n.clock.Now()
	took := max(now-max(g.began, n.pace.last)-g.rested, 0)
	n.pace.state, n.pace.last = n.pace.state.Destaged(size, took), now
}
