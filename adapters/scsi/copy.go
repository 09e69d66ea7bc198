package scsi

import (
	"weft/domain"
)

// Limits of EXTENDED COPY.
const (
	copyTargetsMax  = 8
	copySegmentsMax = 64
	copySegmentMax  = int64(16 * domain.MiB) // bytes of one segment
	copyResultsMax  = 64
	copyListMax     = 8192 // bytes of descriptors
)

// copyResult is what RECEIVE COPY RESULTS answers for a list identifier.
type copyResult struct {
	nexus    *nexus
	list     byte
	failed   bool
	segments uint16
	bytes    uint64
	sense    [senseMax]byte
	length   int
}

// segment is one block-to-block descriptor: which targets, and where.
type segment struct {
	from, to         int
	blocks           uint64
	fromLBA, destLBA uint64
}

// copyList is a parsed parameter list of EXTENDED COPY (LID1).
type copyList struct {
	id       byte
	keep     bool
	targets  [][16]byte
	segments []segment
}

// parseCopy reads the parameter list of EXTENDED COPY.
func parseCopy(p []byte) (copyList, outcome) {
	var c copyList
	if len(p) == 0 {
		return c, good
	}
	if len(p) < 16 {
		return c, badLength
	}
	c.id = p[0]
	usage := p[1] >> 3 & 3
	if usage == 1 || usage == 3 && c.id != 0 {
		return c, badParameter
	}
	c.keep = usage != 3
	targets, segments, inline := int(get16(p[2:])), int(get32(p[8:])&0x7fffffff), get32(p[12:])
	if inline != 0 {
		return c, badParameter
	}
	if targets+segments > copyListMax {
		return c, badLength
	}
	if targets%32 != 0 || targets/32 > copyTargetsMax {
		return c, check(keyIllegal, 0x26, 0x06) // too many target descriptors
	}
	if len(p) < 16+targets+segments {
		return c, badLength
	}
	for i := 0; i < targets; i += 32 {
		id, o := parseTarget(p[16+i : 16+i+32])
		if o != good {
			return c, o
		}
		c.targets = append(c.targets, id)
	}
	return c.parseSegments(p[16+targets : 16+targets+segments])
}

// parseTarget reads an identification descriptor that names a block device by NAA 6.
func parseTarget(d []byte) (id [16]byte, o outcome) {
	if d[0] != 0xe4 {
		return id, check(keyIllegal, 0x26, 0x07) // unsupported target descriptor type
	}
	nul, device := d[1]&0x20 != 0, d[1]&0x1f
	if device != 0 {
		return id, badParameter
	}
	if nul {
		return id, good
	}
	if d[4]&0x0f != 1 || d[5]&0x0f != 3 || d[7] != 16 {
		return id, check(keyIllegal, 0x26, 0x07)
	}
	copy(id[:], d[8:24])
	return id, good
}

func (c copyList) parseSegments(p []byte) (copyList, outcome) {
	for len(p) > 0 {
		if len(p) < 4 {
			return c, badLength
		}
		if p[0] != 0x02 {
			return c, check(keyIllegal, 0x26, 0x09) // unsupported segment descriptor type
		}
		if get16(p[2:]) != 0x18 || len(p) < 28 {
			return c, badParameter
		}
		if len(c.segments) == copySegmentsMax {
			return c, check(keyIllegal, 0x26, 0x08) // too many segment descriptors
		}
		s := segment{
			from: int(get16(p[4:])), to: int(get16(p[6:])), blocks: uint64(get16(p[10:])),
			fromLBA: get64(p[12:]), destLBA: get64(p[20:]),
		}
		if s.from >= len(c.targets) || s.to >= len(c.targets) {
			return c, check(keyCopy, 0x00, 0x00)
		}
		c.segments = append(c.segments, s)
		p = p[28:]
	}
	return c, good
}

// doCopy serves EXTENDED COPY (LID1) by reading and writing: the blocks move inside the cluster,
// not through the host.
func doCopy(t *task) outcome {
	p := t.call.Out()
	if len(p) < t.command.allocation(t.cdb) {
		return badLength
	}
	c, o := parseCopy(p)
	if o != good {
		return o
	}
	if o := t.writable(); o != good {
		return o
	}
	disks := make([]Disk, len(c.targets))
	for i, id := range c.targets {
		if disks[i] = t.reach(id); disks[i] == nil {
			return check(keyCopy, 0x0d, 0x02) // COPY ABORTED, target not reachable
		}
	}
	result := copyResult{nexus: t.nexus, list: c.id}
	for _, s := range c.segments {
		n, o := t.transfer(disks[s.from], disks[s.to], s)
		result.bytes += n
		if o != good {
			result.failed = true
			result.length = o.sense(result.sense[:], false)
			t.unit.keep(result, c.keep)
			return o
		}
		result.segments++
	}
	t.unit.keep(result, c.keep)
	return good
}

// reach finds the disk that an identifier names.
func (t *task) reach(id [16]byte) Disk {
	if id == naa(t.info.ID) {
		return t.unit.disk
	}
	if t.unit.find == nil {
		return nil
	}
	return t.unit.find(id)
}

// transfer copies one segment and tells how many bytes moved.
func (t *task) transfer(from, to Disk, s segment) (uint64, outcome) {
	source, dest := from.Info(), to.Info()
	bs := int64(source.LogicalBlock)
	if dest.LogicalBlock != source.LogicalBlock || int64(s.blocks)*bs > copySegmentMax {
		return 0, badParameter
	}
	if !fits(source, s.fromLBA, s.blocks) || !fits(dest, s.destLBA, s.blocks) {
		return 0, check(keyCopy, 0x00, 0x00)
	}
	if dest.ReadOnly {
		return 0, protected
	}
	held := scratch()
	defer scratches.Put(held)
	moved, total := int64(0), int64(s.blocks)*bs
	w := make(waiter, 1)
	for moved < total && !t.stopped() {
		buf := (*held)[:min(total-moved, transferMax)]
		io := &domain.IO{Op: domain.OpRead, Len: int64(len(buf)), Buf: buf, To: w}
		io.Off = int64(s.fromLBA)*bs + moved
		from.Submit(io)
		<-w
		if io.Err == nil {
			io.Op, io.Off = domain.OpWrite, int64(s.destLBA)*bs+moved
			to.Submit(io)
			<-w
		}
		if io.Err != nil {
			return uint64(moved), t.failed(io)
		}
		moved += int64(len(buf))
	}
	return uint64(moved), good
}

func fits(info domain.DiskInfo, lba, blocks uint64) bool {
	c := uint64(info.Size) / uint64(info.LogicalBlock)
	return lba <= c && blocks <= c-lba
}

// keep holds a result for RECEIVE COPY RESULTS; the oldest makes room.
func (u *Unit) keep(r copyResult, wanted bool) {
	if !wanted {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for i, old := range u.mu.copies {
		if old.nexus == r.nexus && old.list == r.list {
			u.mu.copies[i] = r
			return
		}
	}
	if len(u.mu.copies) == copyResultsMax {
		u.mu.copies = append(u.mu.copies[:0], u.mu.copies[1:]...)
	}
	u.mu.copies = append(u.mu.copies, r)
}

// kept finds the result of a list identifier. forget drops it, as a fetched failure is not kept.
func (t *task) kept(forget bool) (copyResult, bool) {
	u := t.unit
	u.mu.Lock()
	defer u.mu.Unlock()
	for i, r := range u.mu.copies {
		if r.nexus == t.nexus && r.list == t.cdb[2] {
			if forget {
				u.mu.copies = append(u.mu.copies[:i], u.mu.copies[i+1:]...)
			}
			return r, true
		}
	}
	return copyResult{}, false
}

// doCopyStatus serves RECEIVE COPY RESULTS, copy status.
func doCopyStatus(t *task) outcome {
	r, ok := t.kept(false)
	if !ok {
		return badField
	}
	state := byte(1) // ended without errors
	if r.failed {
		state = 2
	}
	b := []byte{0, 0, 0, 8, state}
	b = put16(b, r.segments)
	b = append(b, 0) // bytes
	b = put32(b, uint32(min(r.bytes, 0xffffffff)))
	return t.reply(b, t.command.allocation(t.cdb))
}

// doCopyFailure serves RECEIVE COPY RESULTS, failed segment details.
func doCopyFailure(t *task) outcome {
	r, ok := t.kept(true)
	if !ok {
		return badField
	}
	b := make([]byte, 60, 60+r.length)
	if r.failed {
		b[56] = statusCheck
		copy(b[58:], put16(nil, uint16(r.length)))
		b = append(b, r.sense[:r.length]...)
	}
	copy(b, put32(nil, uint32(len(b)-4)))
	return t.reply(b, t.command.allocation(t.cdb))
}

// doCopyParameters serves RECEIVE COPY RESULTS, operating parameters.
func doCopyParameters(t *task) outcome {
	b := []byte{0, 0, 0, 0, 0x01, 0, 0, 0} // SNLID
	b = put16(b, copyTargetsMax)
	b = put16(b, copySegmentsMax)
	b = put32(b, copyListMax)
	b = put32(b, uint32(copySegmentMax))
	b = put32(b, 0)                                    // inline data
	b = put32(b, 0)                                    // held data
	b = put32(b, 0)                                    // stream device transfer
	b = put16(b, 0)                                    //
	b = put16(b, 64)                                   // concurrent copies
	b = append(b, 64, 9, 0, 0, 0, 0, 0, 2, 0x02, 0xe4) // granularities, types supported
	copy(b, put32(nil, uint32(len(b)-4)))
	return t.reply(b, t.command.allocation(t.cdb))
}

// copyPage is page 8F: what third party copy can do here.
func (*task) copyPage() []byte {
	describe := func(b []byte, kind uint16, body []byte) []byte {
		for len(body)%4 != 0 {
			body = append(body, 0)
		}
		b = put16(b, kind)
		b = put16(b, uint16(len(body)))
		return append(b, body...)
	}
	b := describe(nil, 0x0001, []byte{8, 0x83, 1, 0x00, 0x84, 3, 0x00, 0x03, 0x04})
	parameters := append(make([]byte, 8), 0, 0)
	parameters = parameters[:8]
	copy(parameters[4:], put16(nil, copyTargetsMax))
	copy(parameters[6:], put16(nil, copySegmentsMax))
	parameters = put32(parameters, copyListMax)
	parameters = append(put32(parameters, 0), make([]byte, 12)...)
	b = describe(b, 0x0004, parameters)
	b = describe(b, 0x0008, []byte{2, 0x02, 0xe4})
	general := put32(nil, 64)
	general = put32(general, 64)
	general = put32(general, uint32(copySegmentMax))
	general = append(general, 9, 9)
	return describe(b, 0x8001, append(general, make([]byte, 18)...))
}
