package scsi

import (
	"slices"
)

// Registration is one I_T nexus that registered a reservation key.
type Registration struct {
	Initiator string // initiator port name
	Port      uint16 // relative target port; 0 stands for all of them
	Key       uint64
}

// Reservations are the persistent reservations of one volume: an immutable value. Every change
// makes a new one.
type Reservations struct {
	Generation    uint32
	Registrations []Registration
	// Type is that of the reservation, 0 when there is none.
	Type byte
	// Holder is the registration that holds it. The all-registrants types have no single holder.
	Holder Registration
}

// The types of persistent reservations.
const (
	writeExclusive          = 1
	exclusiveAccess         = 3
	writeExclusiveOnly      = 5 // registrants only
	exclusiveAccessOnly     = 6
	writeExclusiveAll       = 7 // all registrants
	exclusiveAccessAll      = 8
	reportableTypes         = 0xea // types 1, 3, 5, 6, 7 as a mask
	reportableTypesHigh     = 0x01 // type 8
	persistentScopeUnitOnly = 0
)

func known(kind byte) bool {
	switch kind {
	case writeExclusive, exclusiveAccess, writeExclusiveOnly, exclusiveAccessOnly,
		writeExclusiveAll, exclusiveAccessAll:
		return true
	}
	return false
}

func all(kind byte) bool { return kind == writeExclusiveAll || kind == exclusiveAccessAll }

// open tells a type that lets every registrant in.
func open(kind byte) bool {
	return all(kind) || kind == writeExclusiveOnly || kind == exclusiveAccessOnly
}

// find gives the index of a nexus's registration, -1 without one.
func (r *Reservations) find(initiator string, port uint16) int {
	return slices.IndexFunc(r.Registrations, func(g Registration) bool {
		return g.Initiator == initiator && (g.Port == port || g.Port == 0)
	})
}

// same tells that two registrations are of one nexus, whatever their keys.
func (g Registration) same(h Registration) bool {
	return g.Initiator == h.Initiator && g.Port == h.Port
}

// holds tells whether a registration holds the reservation.
func (r *Reservations) holds(g Registration) bool {
	return r.Type != 0 && (all(r.Type) || r.Holder.same(g))
}

// allows tells whether a nexus may run a command of a class.
func (r *Reservations) allows(initiator string, port uint16, c class) bool {
	if c == old {
		return len(r.Registrations) == 0
	}
	if r.Type == 0 || c == free || c == prOut || c == tur {
		return true
	}
	if c == in && (r.Type == writeExclusive || r.Type == writeExclusiveOnly ||
		r.Type == writeExclusiveAll) {
		return true
	}
	i := r.find(initiator, port)
	if i < 0 {
		return false
	}
	return open(r.Type) || r.holds(r.Registrations[i])
}

// clone copies the value so that it may be changed.
func (r *Reservations) clone() *Reservations {
	c := *r
	c.Registrations = slices.Clone(r.Registrations)
	return &c
}

// request is one PERSISTENT RESERVE OUT after parsing.
type request struct {
	action    byte
	kind      byte
	key       uint64
	newKey    uint64
	from      Registration   // initiator and port of the nexus that asks
	allPorts  bool           // ALL_TG_PT
	others    []Registration // SPEC_I_PT: initiators that are registered along
	moveTo    Registration   // REGISTER AND MOVE
	unregMove bool           // UNREG
}

// notice is a unit attention that a change owes to a nexus.
type notice struct {
	to        Registration
	asc, ascq byte
}

// effect is what a change of reservations asks for besides the new state.
type effect struct {
	notices []notice
	lost    []Registration // nexuses that were preempted
	drain   bool           // commands of others must end before the answer
}

// The service actions of PERSISTENT RESERVE OUT.
const (
	actRegister = iota
	actReserve
	actRelease
	actClear
	actPreempt
	actPreemptAbort
	actIgnore
	actMove
)

// step gives the state after a request. It is pure; the receiver is not changed.
func (r *Reservations) step(q request) (*Reservations, effect, outcome) {
	i := r.find(q.from.Initiator, q.from.Port)
	registered := i >= 0
	switch {
	case q.action == actIgnore:
	case q.action == actRegister && !registered:
		if q.key != 0 {
			return r, effect{}, conflict
		}
	case !registered || r.Registrations[i].Key != q.key:
		return r, effect{}, conflict
	}
	next := r.clone()
	switch q.action {
	case actRegister, actIgnore:
		return next.register(q, i)
	case actReserve:
		return next.reserve(q, i)
	case actRelease:
		return next.release(q, i)
	case actClear:
		return next.clear(i)
	case actPreempt, actPreemptAbort:
		return next.preempt(q, i)
	}
	return next.move(q, i)
}

func (r *Reservations) register(q request, i int) (*Reservations, effect, outcome) {
	var e effect
	if q.newKey == 0 {
		if i < 0 {
			return r, e, good
		}
		r.Generation++
		gone := r.Registrations[i]
		r.Registrations = slices.Delete(r.Registrations, i, i+1)
		return r, r.orphan(gone), good
	}
	wanted := append([]Registration{q.from}, q.others...)
	for _, g := range wanted {
		g.Key = q.newKey
		at := r.find(g.Initiator, g.Port)
		if at < 0 {
			if q.allPorts {
				g.Port = 0
			}
			r.Registrations = append(r.Registrations, g)
			continue
		}
		if r.Holder.same(r.Registrations[at]) {
			r.Holder.Key = g.Key
		}
		r.Registrations[at].Key = g.Key
	}
	if len(r.Registrations) > registrationMax {
		return r, e, noResources
	}
	r.Generation++
	return r, e, good
}

// orphan ends the reservation when the registration that left was its last holder.
func (r *Reservations) orphan(gone Registration) effect {
	var e effect
	if r.Type == 0 || all(r.Type) && len(r.Registrations) > 0 || !all(r.Type) &&
		!r.Holder.same(gone) {
		return e
	}
	if open(r.Type) {
		e.notices = r.tell(gone, 0x04)
	}
	r.Type, r.Holder = 0, Registration{}
	return e
}

// tell makes a notice, PARAMETERS CHANGED with a qualifier, for every registration but one.
func (r *Reservations) tell(except Registration, ascq byte) []notice {
	var n []notice
	for _, g := range r.Registrations {
		if !g.same(except) {
			n = append(n, notice{g, 0x2a, ascq})
		}
	}
	return n
}

func (r *Reservations) reserve(q request, i int) (*Reservations, effect, outcome) {
	self := r.Registrations[i]
	if r.Type != 0 {
		if r.holds(self) && r.Type == q.kind {
			return r, effect{}, good
		}
		return r, effect{}, conflict
	}
	r.Type, r.Holder = q.kind, self
	return r, effect{drain: true}, good
}

func (r *Reservations) release(q request, i int) (*Reservations, effect, outcome) {
	self := r.Registrations[i]
	if !r.holds(self) {
		return r, effect{}, good
	}
	if r.Type != q.kind {
		return r, effect{}, badRelease
	}
	var e effect
	if open(r.Type) {
		e.notices = r.tell(self, 0x04)
	}
	r.Type, r.Holder = 0, Registration{}
	return r, e, good
}

func (r *Reservations) clear(i int) (*Reservations, effect, outcome) {
	e := effect{notices: r.tell(r.Registrations[i], 0x03)}
	r.Generation++
	r.Registrations, r.Type, r.Holder = nil, 0, Registration{}
	return r, e, good
}

func (r *Reservations) preempt(q request, i int) (*Reservations, effect, outcome) {
	self := r.Registrations[i]
	holderKey := r.Type != 0 && !all(r.Type) && r.Holder.Key == q.newKey
	takeAll := all(r.Type) && q.newKey == 0
	if q.newKey == 0 && !takeAll {
		return r, effect{}, badParameter
	}
	was := r.Type
	e := effect{drain: true}
	kept := r.Registrations[:0:0]
	matched := false
	for _, g := range r.Registrations {
		hit := takeAll || g.Key == q.newKey
		matched = matched || hit
		if hit && !g.same(self) {
			e.lost = append(e.lost, g)
			e.notices = append(e.notices, notice{g, 0x2a, 0x05})
		} else {
			kept = append(kept, g)
		}
	}
	if !matched {
		return r, effect{}, conflict
	}
	r.Registrations = kept
	r.Generation++
	if holderKey || takeAll {
		r.Type, r.Holder = q.kind, self
		if was != q.kind && open(was) {
			e.notices = append(e.notices, r.tell(self, 0x04)...)
		}
	}
	return r, e, good
}

func (r *Reservations) move(q request, i int) (*Reservations, effect, outcome) {
	self := r.Registrations[i]
	if r.Type == 0 || all(r.Type) || !r.Holder.same(self) {
		return r, effect{}, conflict
	}
	if q.newKey == 0 || q.moveTo.same(self) {
		return r, effect{}, badParameter
	}
	target := q.moveTo
	target.Key = q.newKey
	if at := r.find(target.Initiator, target.Port); at >= 0 {
		r.Registrations[at].Key = target.Key
		target = r.Registrations[at]
	} else {
		r.Registrations = append(r.Registrations, target)
	}
	r.Holder = target
	if q.unregMove {
		r.Registrations = slices.DeleteFunc(r.Registrations, self.same)
	}
	if len(r.Registrations) > registrationMax {
		return r, effect{}, noResources
	}
	r.Generation++
	return r, effect{drain: true}, good
}
