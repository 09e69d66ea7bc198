package iscsi

// The task management functions.
const (
	abortTask = iota + 1
	abortTaskSet
	clearACA
	clearTasks
	resetLogicalUnit
	resetWarm
	resetCold
	reassign
)

// The responses to them.
const (
	functionDone       = 0
	functionNoTask     = 1
	functionNoUnit     = 2
	functionNoReassign = 4
	functionUnknown    = 5
)

// function is one task management function that waits for what it ends (T2).
type function struct {
	tag  uint32
	left int  // guarded by session.mu
	last bool // the session ends with the answer
}

// taskFunction serves a Task Management Function Request.
func (c *session) taskFunction() error {
	h := c.header
	if _, err := c.readData(nil); err != nil {
		return err
	}
	c.server.count.functions.Add(1)
	code := int(h[1] & 0x7f)
	f := &function{tag: h.tag(), left: 1}
	_, missing := c.unit(h.lun()).(absent)
	switch {
	case code == abortTask:
		if !c.abort(f, h.get(20)) {
			c.answerFunction(f.tag, functionNoTask)
			return nil
		}
	case code == reassign:
		c.answerFunction(f.tag, functionNoReassign)
		return nil
	case code < abortTask || code == clearACA || code > reassign:
		c.answerFunction(f.tag, functionUnknown)
		return nil
	case code <= resetLogicalUnit && missing:
		c.answerFunction(f.tag, functionNoUnit)
		return nil
	case code <= resetLogicalUnit:
		c.reset(f, code, h.lun())
	default:
		c.resetTarget(f, code)
	}
	c.mu.Lock()
	c.less(f)
	c.mu.Unlock()
	return nil
}

// abort ends one task of this session. It tells whether there was one that was not answered yet.
func (c *session) abort(f *function, tag uint32) bool {
	return c.stop(f, func(t *command) bool { return t.tag == tag })
}

// stop ends the commands that are meant without an answer, at once or when their unit is done with
// them. It runs on the reader goroutine, the only one that uses commands again: a command that ends
// meanwhile is not mistaken for another one. It tells whether there was any.
func (c *session) stop(f *function, meant func(t *command) bool) bool {
	c.mu.Lock()
	found := false
	var left []*command
	for _, t := range c.mu.tasks {
		if t.phase == answered || !meant(t) {
			continue
		}
		found = true
		if t.phase != running {
			c.discard(t)
			continue
		}
		t.muted = true
		t.waits = append(t.waits, f)
		f.left++
		left = append(left, t)
	}
	units := make([]Nexus, len(left))
	for i, t := range left {
		units[i] = t.nexus
	}
	c.mu.Unlock()
	for i, t := range left {
		units[i].Abort(t)
	}
	return found
}

// reset ends this session's tasks of one unit, and with all but ABORT TASK SET everybody's.
func (c *session) reset(f *function, code int, lun []byte) {
	n := c.unit(lun)
	c.stop(f, func(t *command) bool { return t.nexus == n })
	if code == abortTaskSet {
		return
	}
	c.mu.Lock()
	f.left++
	c.mu.Unlock()
	switch code {
	case clearTasks:
		n.Reset(clearTaskSet, func() { c.lessLocked(f) })
	case resetLogicalUnit:
		n.Reset(resetUnit, func() { c.lessLocked(f) })
	}
}

// resetTarget resets every unit of the target. A cold reset also ends all its sessions, this one
// after the answer.
func (c *session) resetTarget(f *function, code int) {
	units := *c.units.Load()
	c.stop(f, func(*command) bool { return true })
	c.mu.Lock()
	f.left += len(units)
	c.mu.Unlock()
	if code == resetCold {
		f.last = true
		for _, other := range c.server.peers(c.target) {
			if other != c {
				other.kill()
			}
		}
	}
	for _, n := range units {
		n.Reset(resetUnit, func() { c.lessLocked(f) })
	}
}

func (c *session) lessLocked(f *function) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.less(f)
}

// less counts down what a function waits for and answers it in the end. c.mu is held.
func (c *session) less(f *function) {
	f.left--
	if f.left == 0 {
		p := functionAnswer(f.tag, functionDone)
		p.last = f.last
		c.queue(p)
	}
}

func (c *session) answerFunction(tag uint32, response byte) {
	c.send(functionAnswer(tag, response))
}

func functionAnswer(tag uint32, response byte) *packet {
	p := &packet{status: true}
	p.header[0], p.header[1], p.header[2] = opTaskDone, flagFinal, response
	p.header.put(16, tag)
	return p
}
