package scsi

import (
	"sync"
	"sync/atomic"

	"weft/domain"
)

// eraseStep is how much of the disk one request of an erasure covers, in bytes.
const eraseStep = int64(16 * domain.GiB)

// eraser is the state of SANITIZE: at most one runs, and it ends only by itself. The command that
// began it may end before, by task management or with its session.
type eraser struct {
	quiet  atomic.Int32 // 0 while there is nothing to tell: spares the fast path the lock
	mu     sync.Mutex
	active bool
	failed bool
	owner  *task // the command that ends with the erasure
	done   int64
	total  int64
}

// busy gives the sense that commands meet while an erasure runs, and after one that failed.
func (e *eraser) busy() outcome {
	if e.quiet.Load() == 0 {
		return good
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.failed {
		return check(keyMedium, 0x31, 0x03)
	}
	if !e.active {
		return good
	}
	o := check(keyNotReady, 0x04, 0x1b)
	o.hasProgress = true
	o.progress = uint16(min(e.done*65536/max(e.total, 1), 65535))
	return o
}

// begin claims the erasure for a command, which ends with it, or at once when it is nil. It tells
// whether no other erasure runs.
func (e *eraser) begin(total int64, owner *task) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.active {
		return false
	}
	e.active, e.failed, e.done, e.total, e.owner = true, false, 0, total, owner
	e.quiet.Store(1)
	return true
}

// letGo ends the command that waits for the erasure, if it is the one that is meant; the erasure
// goes on.
func (e *eraser) letGo(meant func(t *task) bool) {
	if e.quiet.Load() == 0 {
		return
	}
	e.mu.Lock()
	t := e.owner
	if t != nil && meant(t) {
		e.owner = nil
	} else {
		t = nil
	}
	e.mu.Unlock()
	if t != nil {
		t.finish(outcome{status: statusTaskAborted})
	}
}

func (e *eraser) move(n int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.done += n
}

// end closes the erasure and the command that waits for it.
func (e *eraser) end(o outcome) {
	e.mu.Lock()
	t := e.owner
	e.owner = nil
	e.active, e.failed = false, o != good
	if o == good {
		e.quiet.Store(0)
	}
	e.mu.Unlock()
	if t != nil {
		t.finish(o)
	}
}

// stuck tells that the last erasure failed, which only SANITIZE itself ends.
func (e *eraser) stuck() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.failed
}

// The service actions of SANITIZE.
const (
	eraseOverwrite = 0x01
	eraseBlocks    = 0x02
	eraseCrypto    = 0x03
	eraseLeave     = 0x1f // EXIT FAILURE MODE
)

// startSanitize serves SANITIZE. Every kind but OVERWRITE gives the space back, after which all
// reads zero. Without IMMED the command ends with the erasure.
func startSanitize(t *task) {
	action, immediate := t.cdb[1]&0x1f, t.cdb[1]&0x80 != 0
	block, o := t.erasure(action)
	if o == good {
		o = t.writable()
	}
	u := t.unit
	if o == good && action == eraseLeave {
		u.erase.end(good)
	}
	if o != good || action == eraseLeave {
		t.finish(o)
		return
	}
	owner, info := t, t.info
	if immediate {
		owner = nil
	}
	if !u.erase.begin(int64(info.Size), owner) {
		t.finish(u.erase.busy())
		return
	}
	if immediate {
		defer t.finish(good)
	}
	if !u.spawn(func() { u.erase.end(u.sanitize(info, block)) }) {
		u.erase.end(check(keyIllegal, 0x25, 0x00))
	}
}

// erasure checks CDB and parameter list, and gives the block to write over, nil to unmap.
func (t *task) erasure(action byte) ([]byte, outcome) {
	length, list, bs := t.command.allocation(t.cdb), t.call.Out(), t.info.LogicalBlock
	switch {
	case t.cdb[1]&0x40 != 0 || !zeros(t.cdb[2:7]):
		return nil, badField
	case action != eraseOverwrite && length != 0:
		return nil, badField
	case action != eraseOverwrite:
		return nil, good
	case length < 5 || length > bs+4:
		return nil, badField
	case len(list) < length:
		return nil, badLength
	}
	return overwritten(list, bs)
}

// overwritten reads the parameter list of OVERWRITE and gives one block of its pattern.
func overwritten(list []byte, bs int) ([]byte, outcome) {
	count, n := list[0]&0x1f, int(get16(list[2:]))
	if count == 0 || n == 0 || n > bs || n != len(list)-4 || list[0]&0x60 != 0 {
		return nil, badParameter
	}
	block := make([]byte, bs)
	for i := range block {
		block[i] = list[4+i%n]
		if list[0]&0x80 != 0 && count%2 == 0 { // INVERT: every pass turns the bits round
			block[i] ^= 0xff
		}
	}
	return block, good
}

// sanitize erases the disk. A nil block unmaps, another is written all over.
func (u *Unit) sanitize(info domain.DiskInfo, block []byte) outcome {
	// Commands that were admitted before the erasure began end before it does its first step.
	u.drain(u.others(nil), 0)
	w := make(waiter, 1)
	size, step := int64(info.Size), eraseStep
	io := &domain.IO{Op: domain.OpUnmap, To: w}
	if block != nil && !zeros(block) {
		held := scratch()
		defer scratches.Put(held)
		for n := 0; n < len(*held); n += len(block) {
			copy((*held)[n:], block)
		}
		io.Op, io.Buf, step = domain.OpWrite, *held, int64(len(*held))
	}
	for off := int64(0); off < size; off += step {
		io.Off, io.Len, io.Err = off, min(step, size-off), nil
		if io.Op == domain.OpWrite {
			io.Buf = io.Buf[:io.Len]
		}
		u.disk.Submit(io)
		<-w
		if io.Err != nil {
			return failed(io, uint64(off)/uint64(info.LogicalBlock), true)
		}
		u.erase.move(io.Len)
	}
	return good
}
