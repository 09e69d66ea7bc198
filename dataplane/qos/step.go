package qos

import (
	"slices"
	"time"

	"weft/domain"
)

// WeightDefault is the weight of a volume that was given none.
const WeightDefault = 50

// Limits of sharing.
const (
	// creditMax is how far a volume may run ahead of its reserved rate, in time: that makes good what
	// it lost by waiting, and is all that a pause earns.
	creditMax = 100 * time.Millisecond
	// reservedParts are served by reservation for each one that is not, while others wait.
	reservedParts = 7
	// debtMax is the most that reservations take from a volume's later shares: four of the largest
	// records.
	debtMax = 4 * (1<<20 + costOp) / costBytes
	// costBytes are worth one unit of cost; a request costs as much as costOp bytes besides its own.
	costBytes = 128
	costOp    = 16 << 10
	// quantum is what a turn of the round gives for each point of weight: two requests of 4 KiB at
	// the default weight.
	quantum = 8
)

// Share is what a volume is owed of its device while that is short. Zero fields owe nothing.
type Share struct {
	IOPS   int64 // requests a second to reserve
	Bytes  int64 // bytes read and written a second to reserve
	Weight int64 // of what is not reserved; 0: WeightDefault
}

// fifo is requests that wait, in order. It takes memory for those that wait at once, also where
// there is always one.
type fifo struct {
	list []*domain.IO // from head on
	head int
}

func (q *fifo) len() int { return len(q.list) - q.head }

func (q *fifo) first() *domain.IO { return q.list[q.head] }

func (q *fifo) push(io *domain.IO) {
	if len(q.list) == cap(q.list) && q.head > len(q.list)/2 {
		n := copy(q.list, q.list[q.head:])
		clear(q.list[n:])
		q.list, q.head = q.list[:n], 0
	}
	q.list = append(q.list, io)
}

func (q *fifo) pop() *domain.IO {
	io := q.list[q.head]
	q.list[q.head] = nil
	if q.head++; q.head == len(q.list) {
		q.list, q.head = q.list[:0], 0
	}
	return io
}

// line is a volume's requests that wait for their device, and what it is owed.
type line struct {
	owner      *Flow
	weight     int64
	iops, rate pace // of its reservation; they count whatever was served, by right or by share
	deficit    int64
	served     int64 // the last of its requests, as the round counts them
	queue      fifo
}

func (l *line) set(s Share) {
	l.weight = s.Weight
	if l.weight <= 0 {
		l.weight = WeightDefault
	}
	l.iops.set(s.IOPS)
	l.rate.setBytes(s.Bytes)
}

// overdue tells since when the volume is owed a request; false when it has what is reserved.
func (l *line) overdue(now time.Time) (time.Time, bool) {
	var since time.Time
	owed := false
	for _, p := range []*pace{&l.iops, &l.rate} {
		if p.unit == 0 || p.wait(now, creditMax) > 0 {
			continue
		}
		if !owed || p.due.Before(since) {
			since, owed = p.due, true
		}
	}
	return since, owed
}

// cost gives what a request is worth, in units of costBytes.
func cost(io *domain.IO) int64 { return (costOp + transfer(io)) / costBytes }

// transfer gives the bytes that a request moves; those of a range are none.
func transfer(io *domain.IO) int64 {
	if io.Op == domain.OpRead || io.Op == domain.OpWrite || io.Op == domain.OpCompareWrite {
		return io.Len
	}
	return 0
}

// round is everything that waits for one device.
//
// Invariant: a line stands in lines once while it has requests, and not otherwise.
type round struct {
	lines   []*line
	at      int   // whose turn it is
	granted bool  // it has its quantum of this turn
	served  int64 // requests
	surplus int64 // cost that went by reservation, less reservedParts times what shares got of it
}

func (r *round) empty() bool { return len(r.lines) == 0 }

func (r *round) waiting() int {
	n := 0
	for _, l := range r.lines {
		n += l.queue.len()
	}
	return n
}

// push lets a request wait behind those of its volume.
func (r *round) push(l *line, io *domain.IO) {
	if l.queue.len() == 0 {
		r.lines = append(r.lines, l)
	}
	l.queue.push(io)
}

// next takes the request that goes first, of a round that is not empty.
func (r *round) next(now time.Time) (*Flow, *domain.IO) {
	i := r.reserved(now)
	switch {
	case i < 0:
		r.surplus = 0
		i = r.weighted()
	case len(r.lines) > 1 && r.surplus > 0: // Q4
		i = r.weighted()
		r.surplus -= reservedParts * cost(r.lines[i].queue.first())
	case len(r.lines) > 1:
		r.surplus += cost(r.lines[i].queue.first())
	}
	l := r.lines[i]
	io := l.queue.pop()
	r.served++
	l.served = r.served
	l.iops.charge(now, 1)
	l.rate.charge(now, float64(transfer(io))/unitBytes)
	l.deficit = max(l.deficit-cost(io), -debtMax)
	if l.queue.len() == 0 {
		l.deficit = min(l.deficit, 0) // Q6
		r.remove(i)
	}
	return l.owner, io
}

// reserved gives the line that is the longest below its reserved rate, of those alike the
// one whose last request is the longest ago; -1 where none is (Q2).
func (r *round) reserved(now time.Time) int {
	best, since := -1, time.Time{}
	for i, l := range r.lines {
		at, owed := l.overdue(now)
		if owed && (best < 0 || at.Before(since) ||
			at.Equal(since) && l.served < r.lines[best].served) {
			best, since = i, at
		}
	}
	return best
}

// weighted gives the line whose turn it is (Q3). Where a whole round allows nobody a request, the
// rounds that the nearest one still needs are given to all at once.
func (r *round) weighted() int {
	for {
		for range r.lines {
			l := r.lines[r.at]
			if !r.granted {
				l.deficit += quantum * l.weight
				r.granted = true
			}
			if l.deficit >= cost(l.queue.first()) {
				return r.at
			}
			r.at, r.granted = (r.at+1)%len(r.lines), false
		}
		least := int64(-1)
		for _, l := range r.lines {
			q := quantum * l.weight
			if n := (cost(l.queue.first()) - l.deficit + q - 1) / q; least < 0 || n < least {
				least = n
			}
		}
		for _, l := range r.lines {
			l.deficit += (least - 1) * quantum * l.weight
		}
	}
}

func (r *round) remove(i int) {
	r.lines = slices.Delete(r.lines, i, i+1)
	switch {
	case i < r.at:
		r.at--
	case i == r.at:
		r.granted = false
	}
	if r.at >= len(r.lines) {
		r.at = 0
	}
}

// Limits of a window.
const (
	windowMin   = 8 // fewer and no medium is kept busy
	windowFirst = 64
	windowMax   = 256
	// baseFor is how long a base holds, and baseOf how many requests it is the mean of.
	baseFor = 10 * time.Second
	baseOf  = 4
	// baseTimes its base is what a request may take where that is more than the medium's target.
	baseTimes = 2
)

// window is how many requests may be under way at once while volumes share a device. It follows
// what they take, beyond the target of the medium in relation to the base: what one takes with
// windowMin under way, for which the window is small for a few requests now and then. Without that
// a device whose flush alone takes longer than the target would get no depth for a group commit.
type window struct {
	target time.Duration
	size   int64
	base   time.Duration
	since  time.Time     // when the base was taken
	back   int64         // the size before the base is taken anew; 0: it is not
	taken  int           // requests of the new base so far
	sum    time.Duration // that they took
}

// after fits the window to a request that began while it held and took so long; more tells that
// somebody waits.
func (w *window) after(now time.Time, took time.Duration, more bool) {
	switch {
	case w.back > 0:
		w.sum += took
		if w.taken++; w.taken == baseOf {
			w.base, w.since = w.sum/baseOf, now
			w.size, w.back = w.back, 0
		}
	case more && now.Sub(w.since) > baseFor:
		w.back, w.size, w.sum, w.taken = w.size, windowMin, 0, 0
	case took > max(w.target, baseTimes*w.base):
		w.size = max(w.size-max(w.size/8, 1), windowMin)
	case more:
		w.size = min(w.size+1, windowMax)
	}
}

// Class is a kind of a device's own work, the more urgent ones first.
type Class int

// The classes of work.
const (
	Destage Class = iota // from the journal to the log
	Clean                // moving what lives
	Scrub                // reading what lives
	Migrate              // copying a family to another device, on both
	classes
)

// String names the class as metrics do.
func (c Class) String() string {
	switch c {
	case Destage:
		return "destage"
	case Clean:
		return "clean"
	case Scrub:
		return "scrub"
	case Migrate:
		return "migrate"
	case classes:
	}
	return "unknown"
}

// restMax is the longest that work of a device has to wait because of hosts.
const restMax = 100 * time.Millisecond

// room is what hosts have to leave of a device for a class of its own work to go at once, and how
// long the work rests otherwise.
type room struct {
	hosts int64 // the most requests of hosts under way
	rest  int   // times as long as its last turn took: it has 1 of rest+1 parts of the time
}

func rooms(c Class) room {
	return [classes]room{Destage: {16, 1}, Clean: {8, 3}, Scrub: {2, 15}, Migrate: {4, 3}}[c]
}

// duty is what a scheduler knows of one class.
type duty struct {
	waiting, running bool
	began, ended     time.Time     // its last turn
	took             time.Duration // what that took
	rested           int64         // turns that had to wait
}

// duties are those of a device, by class.
type duties [classes]duty

// hold gives how long a class of work is still held back at most, with so many requests of hosts
// under way and waiting (Q7).
func (d *duties) hold(c Class, now time.Time, hosts int64) time.Duration {
	busy := hosts > rooms(c).hosts
	for above := range c {
		busy = busy || d[above].waiting || d[above].running
	}
	if !busy {
		return 0
	}
	rest := min(time.Duration(rooms(c).rest)*d[c].took, restMax)
	return max(d[c].ended.Add(rest).Sub(now), 0)
}

func (d *duties) begin(c Class, now time.Time) {
	d[c].waiting, d[c].running, d[c].began = false, true, now
}

func (d *duties) end(c Class, now time.Time) {
	d[c].running, d[c].ended, d[c].took = false, now, now.Sub(d[c].began)
}
