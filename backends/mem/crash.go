package mem

import (
	"fmt"
	"math/rand/v2"

	"weft/backends"
)

// OpKind says what an operation of the history was.
type OpKind uint8

// The kinds of operations.
const (
	OpWrite OpKind = iota + 1
	OpFlush
	OpDiscard
	OpFlip // made by FlipBit
)

// String names the kind.
func (k OpKind) String() string {
	switch k {
	case OpWrite:
		return "write"
	case OpFlush:
		return "flush"
	case OpDiscard:
		return "discard"
	case OpFlip:
		return "flip"
	}
	return fmt.Sprintf("op(%d)", uint8(k))
}

// Op is one operation as the device took it. Off and Len are bytes. Data belongs to the history and
// must not be changed.
type Op struct {
	Kind     OpKind
	FUA      bool
	Off, Len int64
	Data     []byte

	// begun counts the operations that the device had taken when the call came in. Invariant: at
	// most its own index; less only where calls overlap.
	begun int
}

// String gives one line, such as "write 4096 at 8192 fua".
func (o Op) String() string {
	if o.Kind == OpFlush {
		return "flush"
	}
	s := fmt.Sprintf("%v %d at %d", o.Kind, o.Len, o.Off)
	if o.FUA {
		s += " fua"
	}
	return s
}

// apply does the operation whole.
func (o *Op) apply(to *pages) {
	switch o.Kind {
	case OpWrite:
		to.write(o.Data, o.Off)
	case OpDiscard:
		to.fill(o.Off, o.Len, discarded)
	case OpFlip:
		to.own(o.Off/pageSize, false)[o.Off%pageSize] ^= o.Data[0]
	case OpFlush:
	}
}

// applySector does the operation for its i-th logical block only.
func (o *Op) applySector(to *pages, i, block int) {
	off := int64(i * block)
	if o.Kind == OpDiscard {
		to.fill(o.Off+off, int64(block), discarded)
		return
	}
	to.write(o.Data[off:off+int64(block)], o.Off+off)
}

// history is guarded by its device's lock. ops is append-only.
type history struct {
	base pages
	ops  []Op
	lead int         // the most by which an operation's index exceeds its begun
	walk *Enumerator // where the last CrashImage stood, so that a walk forward is cheap
}

// record adds an operation. The lock is held.
func (d *Device) record(begun int64, op Op) {
	h := d.mu.history
	op.begun = min(int(begun), len(h.ops)) // the call may be older than the history
	h.lead = max(h.lead, len(h.ops)-op.begun)
	h.ops = append(h.ops, op)
	d.recorded.Store(int64(len(h.ops)))
}

// StartHistory takes the present content as durable, forgets what was recorded, and records from
// here on. A crash image starts without history; this is how it gets one for a second crash.
func (d *Device) StartHistory() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.history = &history{base: d.mu.content.clone()}
	d.recorded.Store(0)
}

// Ops counts the recorded operations; 0 without history.
func (d *Device) Ops() int {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.mu.history == nil {
		return 0
	}
	return len(d.mu.history.ops)
}

// Mark gives the present point of the history, to be told later which side of it a cut lies on: a
// cut at n >= Mark() comes after all that had returned when Mark was called.
func (d *Device) Mark() int { return d.Ops() }

// History gives the recorded operations, oldest first. The slice and its data are read-only.
func (d *Device) History() []Op {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.mu.history == nil {
		return nil
	}
	return d.mu.history.ops[:len(d.mu.history.ops):len(d.mu.history.ops)]
}

// Pending is a write or a discard that a power cut may harm.
type Pending struct {
	Index    int // in the history
	Op       Op
	Sectors  int  // of one logical block each
	InFlight bool // had not returned to the caller
}

// Part says how much of a pending operation reached the medium.
type Part uint8

// The parts. The zero value is Absent.
const (
	Absent    Part = iota
	Whole          // all of it
	Torn           // the sectors before Fate.Sector new, those after it old
	Scattered      // each sector new or old by Fate.Seed, in no order
)

// Fill says what the sector holds at which a write tore.
type Fill uint8

// The fills. FillGarbage breaks the promise of Geometry.AtomicUnit, as a failing disk does: choose
// it where a checksum has to find it.
const (
	FillOld Fill = iota
	FillNew
	FillGarbage
)

// Fate is what became of a pending operation. Sector and Fill matter to Torn, Seed to Scattered and
// to the bytes of FillGarbage.
type Fate struct {
	Part   Part
	Sector int
	Fill   Fill
	Seed   uint64
}

// Chooser picks the fate of the i-th of the pending operations of a cut, oldest first. It is called
// once for each, in order.
type Chooser func(i int, p Pending) Fate

// None loses everything that is not durable.
func None(int, Pending) Fate { return Fate{} }

// All keeps everything, also what is in flight.
func All(int, Pending) Fate { return Fate{Part: Whole} }

// Mask keeps the i-th pending operation whole where bit i is set and loses the others, also those
// from the 65th on.
func Mask(bits uint64) Chooser {
	return func(i int, _ Pending) Fate {
		if i < 64 && bits>>i&1 == 1 {
			return Fate{Part: Whole}
		}
		return Fate{}
	}
}

// Random picks by chance, the same for the same seed: a quarter each absent, whole, torn and
// scattered. No sector is garbage. The chooser holds state: use a new one for each image.
func Random(seed uint64) Chooser { return random(seed, 2) }

// RandomGarbage is Random where the sector at which a write tears may be garbage.
func RandomGarbage(seed uint64) Chooser { return random(seed, 3) }

func random(seed uint64, fills int) Chooser {
	r := rand.New(rand.NewPCG(seed, 0x77656674))
	return func(_ int, p Pending) Fate {
		return Fate{
			Part:   Part(r.IntN(4)),
			Sector: r.IntN(max(p.Sectors, 1)),
			Fill:   Fill(r.IntN(fills)),
			Seed:   r.Uint64(),
		}
	}
}

// apply does as much of the pending operation as its fate says.
func (f Fate) apply(to *pages, p *Pending, block int) {
	switch f.Part {
	case Absent:
	case Whole:
		p.Op.apply(to)
	case Torn:
		k := min(max(f.Sector, 0), p.Sectors)
		for i := range k {
			p.Op.applySector(to, i, block)
		}
		if k == p.Sectors {
			return
		}
		switch f.Fill {
		case FillNew:
			p.Op.applySector(to, k, block)
		case FillGarbage:
			to.write(garbage(block, f.Seed), p.Op.Off+int64(k*block))
		case FillOld:
		}
	case Scattered:
		r := rand.New(rand.NewPCG(f.Seed, 1))
		for i := range p.Sectors {
			if r.Uint64()&1 == 1 {
				p.Op.applySector(to, i, block)
			}
		}
	}
}

func garbage(n int, seed uint64) []byte {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	p := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(p) // never fails
	return p
}

// CrashImage makes the device that a power cut at point at leaves behind: at operations had
// returned; the next one, if there is one, was under way, and so was each later one whose call had
// come in by then. It is independent of d, powered, has no
// history (see StartHistory), and may be made from a closed device. Calls with at not decreasing
// walk the history once; for all cuts see Enumerate.
//
// It panics if at lies outside 0..Ops() or nothing was recorded: a mistake of the test.
func (d *Device) CrashImage(at int, choose Chooser) *Device {
	d.mu.Lock()
	defer d.mu.Unlock()
	h := d.mu.history
	if h == nil || at < 0 || at > len(h.ops) {
		panic(fmt.Sprintf("mem: no crash image at %d: no such point in the history", at))
	}
	if h.walk == nil || h.walk.at > at {
		h.walk = h.enumerate(d)
	}
	h.walk.ops, h.walk.lead = h.ops, h.lead
	for h.walk.at < at {
		h.walk.Next()
	}
	h.walk.begin()
	return h.walk.Image(choose)
}

// Cut cuts the power now: d gives ErrClosed from here on, and the image of what it leaves behind is
// returned. It panics when nothing was recorded.
func (d *Device) Cut(choose Chooser) *Device {
	_ = d.Close() // never fails
	return d.CrashImage(d.Ops(), choose)
}

// Enumerator walks all points at which the power may be cut, from 0 to Ops() at the time Enumerate
// was called. It belongs to one goroutine; the images it makes are free.
type Enumerator struct {
	dev     *Device
	ops     []Op
	lead    int   // as in history
	at      int   // -1 before the first Next
	base    pages // all that is durable, as far as no pending operation lies below it
	tail    []int // operations since base, in order; those that are durable among them are forced
	pending []Pending
}

// Enumerate starts a walk over the history as it is now. It panics when nothing was recorded.
func (d *Device) Enumerate() *Enumerator {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.history == nil {
		panic("mem: enumerate without a history")
	}
	return d.mu.history.enumerate(d)
}

func (h *history) enumerate(d *Device) *Enumerator {
	return &Enumerator{dev: d, ops: h.ops, lead: h.lead, at: -1, base: h.base.clone()}
}

// Next moves to the next cut; false past the last one.
func (e *Enumerator) Next() bool {
	if e.at >= len(e.ops) {
		return false
	}
	if e.at >= 0 {
		e.complete(e.at)
	}
	e.at++
	e.begin()
	return true
}

// At is the number of operations that had returned.
func (e *Enumerator) At() int { return e.at }

// Pending lists what the cut may harm, oldest first. It is valid until Next.
func (e *Enumerator) Pending() []Pending { return e.pending }

// Image makes one device that the cut may leave behind. It may be called many times at one cut.
func (e *Enumerator) Image(choose Chooser) *Device {
	block := e.dev.geometry.LogicalBlock
	e.base.sum() // so that images need not, each for itself
	content := e.base.clone()
	open := e.pending
	n := 0
	for _, i := range e.tail {
		if len(open) == 0 || open[0].Index != i {
			e.ops[i].apply(&content)
			continue
		}
		choose(n, open[0]).apply(&content, &open[0], block)
		open, n = open[1:], n+1
	}
	for i := range open { // those in flight are not in the tail yet
		choose(n+i, open[i]).apply(&content, &open[i], block)
	}
	return newDevice(e.dev.geometry, content)
}

// complete takes operation i into the past.
func (e *Enumerator) complete(i int) {
	op := &e.ops[i]
	volatile := e.dev.geometry.Durability == backends.Volatile
	switch {
	case op.Kind == OpFlush && !volatile:
		for _, j := range e.tail {
			e.ops[j].apply(&e.base)
		}
		e.tail = e.tail[:0]
	case op.Kind == OpFlush:
	case e.durable(op) && len(e.tail) == 0:
		op.apply(&e.base)
	default:
		// A durable write above a pending one must be applied after it, or the pending one, chosen
		// to survive, would come back over it (M4).
		e.tail = append(e.tail, i)
	}
}

// begin gathers what is pending at the present cut.
func (e *Enumerator) begin() {
	e.pending = e.pending[:0]
	for _, i := range e.tail {
		if !e.durable(&e.ops[i]) {
			e.pending = append(e.pending, e.open(i))
		}
	}
	for i := e.at; i < len(e.ops) && i <= e.at+e.lead; i++ {
		op := &e.ops[i]
		if op.begun <= e.at && (op.Kind == OpWrite || op.Kind == OpDiscard) {
			p := e.open(i)
			p.InFlight = true
			e.pending = append(e.pending, p)
		}
	}
}

func (e *Enumerator) open(i int) Pending {
	op := e.ops[i]
	return Pending{Index: i, Op: op, Sectors: int(op.Len) / e.dev.geometry.LogicalBlock}
}

// durable tells whether a completed operation survives without a flush.
func (e *Enumerator) durable(op *Op) bool {
	switch e.dev.geometry.Durability {
	case backends.Volatile:
		return op.Kind == OpFlip
	case backends.NeedsFlush:
		return op.FUA || op.Kind == OpFlip
	case backends.PowerSafe:
		return true
	}
	return false
}
