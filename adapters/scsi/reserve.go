package scsi

import (
	"bytes"
	"strings"

	"weft/domain"
)

// doReserve serves RESERVE(6) and (10): the whole unit for one nexus, until RELEASE, nexus loss or
// a reset.
func doReserve(t *task) outcome {
	if t.cdb[1]&0x13 != 0 {
		return badField // third party and extent reservations are obsolete
	}
	h := t.unit.holder.Load()
	if h != t.nexus && (h != nil || !t.unit.holder.CompareAndSwap(nil, t.nexus)) {
		return conflict
	}
	return good
}

// doRelease serves RELEASE(6) and (10). One that holds nothing releases nothing, and that is good.
func doRelease(t *task) outcome {
	t.unit.holder.CompareAndSwap(t.nexus, nil)
	return good
}

// doReserveIn serves PERSISTENT RESERVE IN.
func doReserveIn(t *task) outcome {
	r := t.unit.pr.Load()
	b := put32(nil, r.Generation)
	b = put32(b, 0)
	switch t.cdb[1] & 0x1f {
	case 0:
		for _, g := range r.Registrations {
			b = put64(b, g.Key)
		}
		copy(b[4:], put32(nil, uint32(len(b)-8)))
	case 1:
		if r.Type != 0 {
			key := r.Holder.Key
			if all(r.Type) {
				key = 0
			}
			b = put64(b, key)
			b = append(b, 0, 0, 0, 0, 0, r.Type, 0, 0)
			copy(b[4:], put32(nil, 16))
		}
	case 2:
		// SIP_C, ATP_C, PTPL_C; TMV, ALLOW COMMANDS none, PTPL_A: state always survives.
		b = []byte{0, 8, 0x0d, 0x81, reportableTypes, reportableTypesHigh, 0, 0}
	case 3:
		for _, g := range r.Registrations {
			b = append(b, fullStatus(r, g)...)
		}
		copy(b[4:], put32(nil, uint32(len(b)-8)))
	}
	return t.reply(b, t.command.allocation(t.cdb))
}

// fullStatus builds one descriptor of READ FULL STATUS.
func fullStatus(r *Reservations, g Registration) []byte {
	b := put64(nil, g.Key)
	flags, kind := byte(0), byte(0)
	if g.Port == 0 {
		flags |= 0x02 // ALL_TG_PT
	}
	if r.holds(g) {
		flags, kind = flags|0x01, r.Type
	}
	b = append(b, 0, 0, 0, 0, flags, kind, 0, 0, 0, 0)
	b = put16(b, g.Port)
	id := transportID(g.Initiator)
	b = put32(b, uint32(len(id)))
	return append(b, id...)
}

// transportID builds an iSCSI TransportID in the form that names the initiator port.
func transportID(initiator string) []byte {
	format := byte(0x05)
	if strings.Contains(initiator, ",i,") {
		format |= 0x40
	}
	n := name(initiator)
	for len(n) < 20 {
		n = append(n, 0)
	}
	b := []byte{format, 0}
	b = put16(b, uint16(len(n)))
	return append(b, n...)
}

// parseTransportID reads one iSCSI TransportID and gives the bytes that follow it.
func parseTransportID(p []byte) (initiator string, rest []byte, ok bool) {
	if len(p) < 4 || p[0]&0x0f != 0x05 {
		return "", nil, false
	}
	n := int(get16(p[2:]))
	if n < 20 || n%4 != 0 || len(p) < 4+n {
		return "", nil, false
	}
	text, _, ended := bytes.Cut(p[4:4+n], []byte{0})
	if !ended || len(text) == 0 || len(text) > 240 {
		return "", nil, false
	}
	port := strings.Contains(string(text), ",i,0x")
	if port != (p[0]>>6 == 1) {
		return "", nil, false
	}
	return string(text), p[4+n:], true
}

// parseReserveOut reads CDB and parameter list of PERSISTENT RESERVE OUT.
func parseReserveOut(cdb, p []byte) (request, outcome) {
	q := request{action: cdb[1] & 0x1f, kind: cdb[2] & 0x0f}
	switch q.action {
	case actReserve, actRelease, actPreempt, actPreemptAbort:
		if cdb[2]>>4 != persistentScopeUnitOnly || !known(q.kind) {
			return q, badField
		}
	}
	if len(p) < 24 {
		return q, badLength
	}
	q.key, q.newKey = get64(p), get64(p[8:])
	if q.action == actMove {
		return parseMove(q, p)
	}
	q.allPorts = p[20]&0x04 != 0
	if p[20]&0x08 == 0 { // no SPEC_I_PT
		if len(p) != 24 {
			return q, badLength
		}
		return q, good
	}
	if q.action != actRegister || len(p) < 28 {
		return q, badParameter
	}
	list := p[28:]
	if int(get32(p[24:])) != len(list) {
		return q, badLength
	}
	for len(list) > 0 {
		id, rest, ok := parseTransportID(list)
		if !ok || len(q.others) >= registrationMax {
			return q, badParameter
		}
		q.others = append(q.others, Registration{Initiator: id})
		list = rest
	}
	return q, good
}

// parseMove reads the parameter list of REGISTER AND MOVE.
func parseMove(q request, p []byte) (request, outcome) {
	q.unregMove = p[17]&0x02 != 0
	id, rest, ok := parseTransportID(p[24:])
	if !ok || len(rest) != 0 || int(get32(p[20:])) != len(p)-24 {
		return q, badParameter
	}
	q.moveTo = Registration{Initiator: id, Port: get16(p[18:])}
	return q, good
}

// doReserveOut serves PERSISTENT RESERVE OUT. The answer leaves when the store keeps the new state
// on every node and commands that it forbids have ended.
func doReserveOut(t *task) outcome {
	p := t.call.Out()
	if len(p) < t.command.allocation(t.cdb) {
		return badLength
	}
	q, o := parseReserveOut(t.cdb, p)
	if o != good {
		return o
	}
	n, u := t.nexus, t.unit
	q.from = Registration{Initiator: n.initiator, Port: n.port}
	for i := range q.others {
		q.others[i].Port = n.port
	}
	if state, _ := u.group(n.port); state == Unavailable || state == Offline {
		return check(keyNotReady, 0x04, 0x0c)
	}
	u.prMu.Lock()
	defer u.prMu.Unlock()
	old := u.pr.Load()
	next, e, o := old.step(q)
	if o != good {
		return o
	}
	if err := u.store.Save(u.id, *next); err != nil {
		return failed(&domain.IO{Op: domain.OpWrite, Err: err}, 0, true)
	}
	u.pr.Store(next)
	u.settle(n, q, e)
	return good
}

// settle does what a change of reservations asks for: aborts, drains, attentions.
func (u *Unit) settle(self *nexus, q request, e effect) {
	others := u.others(self)
	if q.action == actPreemptAbort {
		var lost []*nexus
		for _, n := range others {
			for _, g := range e.lost {
				if n.is(g) {
					lost = append(lost, n)
				}
			}
		}
		u.drain(lost, statusTaskAborted)
	}
	if e.drain {
		u.drain(others, 0)
	}
	for _, w := range e.notices {
		for _, n := range others {
			if n.is(w.to) {
				n.Attention(w.asc, w.ascq)
			}
		}
	}
}

// is tells whether a registration is of this nexus.
func (n *nexus) is(g Registration) bool {
	return n.initiator == g.Initiator && (g.Port == 0 || n.port == g.Port)
}
