package scsi

import (
	"encoding/binary"
	"sync"
	"sync/atomic"

	"weft/domain"
)

// tasksKept bounds the tasks that wait in the pool for their next use.
const tasksKept = 1024

// task is one command in the logical unit. Its owner is the goroutine that runs it, then the disk,
// then the goroutine that completes it.
type task struct {
	io      domain.IO
	call    Call
	cdb     []byte
	unit    *Unit
	nexus   *nexus
	command *command
	info    domain.DiskInfo
	lba     uint64
	blocks  uint64
	n       int // bytes of data-in
	aborted atomic.Uint32
	sense   [senseMax]byte
	wait    waiter // for commands of several steps

	// Guarded by nexus.mu while the task runs, by the pool's lock while it does not.
	before, after *task
	drains        []*drain
}

// waiter is the completer of a goroutine that waits for its request. It holds one completion, so
// Complete never blocks.
type waiter chan struct{}

// Complete implements domain.Completer.
func (w waiter) Complete(*domain.IO) { w <- struct{}{} }

// taskPool keeps idle tasks, chained through after.
type taskPool struct {
	sync.Mutex
	free *task
	n    int
}

func (p *taskPool) get() *task {
	p.Lock()
	defer p.Unlock()
	t := p.free
	if t == nil {
		return &task{}
	}
	p.free, t.after = t.after, nil
	p.n--
	return t
}

func (p *taskPool) put(t *task) {
	t.io = domain.IO{}
	t.call, t.cdb, t.nexus, t.command = nil, nil, nil, nil
	t.aborted.Store(0)
	p.Lock()
	defer p.Unlock()
	if p.n < tasksKept {
		t.after, p.free = p.free, t
		p.n++
	}
}

// Submit implements Nexus.
func (n *nexus) Submit(call Call) {
	u := n.unit
	t := u.tasks.get()
	t.unit, t.nexus, t.call, t.cdb = u, n, call, call.CDB()
	t.n = 0
	t.info = u.disk.Info()
	if size := int64(t.info.Size); size != u.size.Load() {
		u.grown(size)
	}
	t.command = u.table.find(t.cdb)
	if t.command == nil {
		t.command = u.table.unknown(t.cdb)
	}
	n.enter(t)
	if o := t.admit(); o != good {
		t.finish(o)
		return
	}
	c := t.command
	switch {
	case c.start != nil:
		c.start(t)
	case !c.slow:
		t.finish(c.do(t))
	case !u.spawn(func() { t.finish(c.do(t)) }):
		t.finish(check(keyIllegal, 0x25, 0x00))
	}
}

// admit makes the checks that come before those of the CDB: a reset in between, unit attention,
// reservations, sanitize, access state.
func (t *task) admit() outcome {
	n, c := t.nexus, t.command
	if t.unit.gone.Load() {
		return check(keyIllegal, 0x25, 0x00)
	}
	if t.call.Generation() != n.generation.Load() {
		return outcome{status: statusTaskAborted}
	}
	if !c.quiet {
		if a, ok := n.next(); ok {
			return check(keyAttention, a.asc, a.ascq)
		}
	}
	if h := t.unit.holder.Load(); h != nil && h != n && !c.unreserved {
		return conflict
	}
	if c.class != free && !t.unit.pr.Load().allows(n.initiator, n.port, c.class) {
		return conflict
	}
	if c.class == free {
		return good
	}
	if o := t.unit.erase.busy(); o != good && (c.op != 0x48 || !t.unit.erase.stuck()) {
		return o
	}
	switch state, _ := t.unit.group(n.port); state {
	case Standby:
		return check(keyNotReady, 0x04, 0x0b)
	case Unavailable:
		return check(keyNotReady, 0x04, 0x0c)
	case Transitioning:
		return check(keyNotReady, 0x04, 0x0a)
	case Offline:
		return check(keyNotReady, 0x04, 0x12)
	case Optimized, NonOptimized: // both serve
	}
	return good
}

// finish ends the command (S2) and gives the task back.
func (t *task) finish(o outcome) {
	if s := t.aborted.Load(); s != 0 {
		o = outcome{status: byte(s)}
	}
	n := t.n
	if o.status != statusGood && o.status != statusConditionMet {
		n = 0
	}
	length := o.sense(t.sense[:], t.unit.dsense.Load())
	call, u := t.call, t.unit
	t.nexus.leave(t)
	call.Done(o.status, n, t.sense[:length])
	u.tasks.put(t)
}

// stopped tells a command of several steps to end early.
func (t *task) stopped() bool { return t.aborted.Load() != 0 }

// run sends one request to the disk and waits for its end.
func (t *task) run(io *domain.IO) outcome {
	if t.wait == nil {
		t.wait = make(waiter, 1)
	}
	io.To = t.wait
	t.unit.disk.Submit(io)
	<-t.wait
	return t.failed(io)
}

func (t *task) failed(io *domain.IO) outcome {
	if io.Err == nil {
		return good
	}
	return failed(io, t.lba, t.nexus.alone())
}

// begin sends the task's own request to the disk; Complete ends the command.
func (t *task) begin(op domain.Op, buf []byte) {
	bs := int64(t.info.LogicalBlock)
	t.io.Op, t.io.Off, t.io.Len = op, int64(t.lba)*bs, int64(t.blocks)*bs
	t.io.Buf, t.io.To, t.io.More = buf, t, t.call.More()
	t.unit.disk.Submit(&t.io)
}

// Complete implements domain.Completer for the fast path: it ends the command on the disk's
// goroutine.
func (t *task) Complete(io *domain.IO) { t.finish(t.failed(io)) }

// reply copies parameter data into the call's buffer, cut to the allocation length.
func (t *task) reply(data []byte, allocation int) outcome {
	n := min(len(data), allocation)
	if n > 0 {
		copy(t.call.In(n), data)
	}
	t.n = n
	return good
}

// ranged reads the range of a CDB and makes the checks of every ranged command, in their order:
// protection field, range, length, write protection. most is in blocks.
func (t *task) ranged(most int64) outcome {
	t.lba, t.blocks = t.command.extent(t.cdb)
	if t.command.protect && t.cdb[1]>>5 != 0 {
		return badField
	}
	if o := t.inside(); o != good {
		return o
	}
	if t.blocks > uint64(most) {
		return badField
	}
	return t.writable()
}

func (t *task) inside() outcome {
	if c := t.capacity(); t.lba > c || t.blocks > c-t.lba {
		return badRange
	}
	return good
}

func (t *task) writable() outcome {
	if t.command.class == out && (t.info.ReadOnly || t.unit.swp.Load()) {
		return protected
	}
	return good
}

// capacity is the size of the disk in blocks.
func (t *task) capacity() uint64 {
	return uint64(t.info.Size) / uint64(t.info.LogicalBlock)
}

// blocksOf tells how many blocks of the disk make a number of bytes.
func (t *task) blocksOf(n int64) int64 { return n / int64(t.info.LogicalBlock) }

// startRead serves READ of every size.
func startRead(t *task) {
	if o := t.ranged(t.blocksOf(transferLimit)); o != good || t.blocks == 0 {
		t.finish(o)
		return
	}
	t.n = int(t.blocks) * t.info.LogicalBlock
	t.move(domain.OpRead, t.call.In(t.n))
}

// startWrite serves WRITE of every size. When the initiator sent less than the CDB says, the whole
// blocks of what it sent are written and no more.
func startWrite(t *task) {
	o := t.ranged(t.blocksOf(transferLimit))
	if o == good {
		o = t.shorten()
	}
	if o != good || t.blocks == 0 {
		t.finish(o)
		return
	}
	t.io.FUA = t.cdb[0] != 0x0a && t.cdb[1]&0x08 != 0
	t.move(domain.OpWrite, t.call.Out())
}

// move sends the range to the disk as one request, or, for an initiator that does not keep to the
// advertised maximum, piece by piece.
func (t *task) move(op domain.Op, buf []byte) {
	if int64(len(buf)) <= transferMax {
		t.begin(op, buf)
	} else if !t.unit.spawn(func() { t.finish(t.pieces(op, buf)) }) {
		t.finish(check(keyIllegal, 0x25, 0x00))
	}
}

func (t *task) pieces(op domain.Op, buf []byte) outcome {
	off := int64(t.lba) * int64(t.info.LogicalBlock)
	for len(buf) > 0 && !t.stopped() {
		n := min(int64(len(buf)), transferMax)
		io := &domain.IO{Op: op, Off: off, Len: n, Buf: buf[:n], FUA: t.io.FUA}
		if o := t.run(io); o != good {
			return o
		}
		off, buf = off+n, buf[n:]
	}
	return good
}

// shorten fits the range to the data that came. A part of a block cannot be written.
func (t *task) shorten() outcome {
	bs := t.info.LogicalBlock
	have := len(t.call.Out())
	if have >= int(t.blocks)*bs {
		return good
	}
	if have%bs != 0 {
		return badUnit
	}
	t.blocks = uint64(have / bs)
	return good
}

// startFlush serves SYNCHRONIZE CACHE.
func startFlush(t *task) {
	if o := t.ranged(1 << 62); o != good {
		t.finish(o)
		return
	}
	t.io.Op, t.io.To = domain.OpFlush, t
	t.unit.disk.Submit(&t.io)
}

// put16, put32 and put64 append big-endian numbers.
func put16(b []byte, v uint16) []byte { return binary.BigEndian.AppendUint16(b, v) }
func put32(b []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(b, v) }
func put64(b []byte, v uint64) []byte { return binary.BigEndian.AppendUint64(b, v) }
func get16(b []byte) uint16           { return binary.BigEndian.Uint16(b) }
func get32(b []byte) uint32           { return binary.BigEndian.Uint32(b) }
func get64(b []byte) uint64           { return binary.BigEndian.Uint64(b) }
