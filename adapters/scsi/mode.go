package scsi

import (
	"weft/domain"
)

// modePage is one mode page: its current bytes, and which of its bits may be changed.
type modePage struct{ current, changeable []byte }

// modePages builds the pages in ascending order. They are small and seldom asked for.
func (t *task) modePages() []modePage {
	u := t.unit
	recovery := make([]byte, 12)
	copy(recovery, []byte{0x01, 0x0a, 0xc0}) // AWRE, ARRE
	caching := make([]byte, 20)
	copy(caching, []byte{0x08, 0x12})
	if t.info.Volatile {
		caching[2] = 0x04 // WCE
	}
	control := make([]byte, 12)
	copy(control, []byte{0x0a, 0x0a, 0x02, 0x10, 0x00, 0x40}) // GLTSD, reordering, TAS
	if u.dsense.Load() {
		control[2] |= 0x04
	}
	if u.swp.Load() {
		control[4] |= 0x08
	}
	mayControl := make([]byte, 12)
	mayControl[2], mayControl[4] = 0x04, 0x08
	extension := make([]byte, 32)
	copy(extension, []byte{0x4a, 0x01, 0x00, 0x1c})
	exceptions := make([]byte, 12)
	copy(exceptions, []byte{0x1c, 0x0a, 0x08}) // DEXCPT
	return []modePage{
		{recovery, make([]byte, 12)},
		{caching, make([]byte, 20)},
		{control, mayControl},
		{extension, make([]byte, 32)},
		{exceptions, make([]byte, 12)},
	}
}

// code gives page and subpage code.
func (p modePage) code() (page, sub byte) {
	if p.current[0]&0x40 != 0 {
		return p.current[0] & 0x3f, p.current[1]
	}
	return p.current[0] & 0x3f, 0
}

// head gives the length of the page's header.
func (p modePage) head() int {
	if p.current[0]&0x40 != 0 {
		return 4
	}
	return 2
}

// doModeSense serves MODE SENSE(6) and (10).
func doModeSense(t *task) outcome {
	control, code, sub := t.cdb[2]>>6, t.cdb[2]&0x3f, t.cdb[3]
	if control == 3 {
		return check(keyIllegal, 0x39, 0x00) // nothing is saved
	}
	var pages []byte
	for _, p := range t.modePages() {
		c, s := p.code()
		if code != 0x3f && c != code || sub != 0xff && s != sub {
			continue
		}
		if control == 1 {
			h := p.head()
			pages = append(pages, p.current[:h]...)
			pages = append(pages, p.changeable[h:]...)
		} else {
			pages = append(pages, p.current...)
		}
	}
	if len(pages) == 0 {
		return badField
	}
	return t.reply(t.modeHeader(pages), t.command.allocation(t.cdb))
}

// modeHeader puts header and block descriptor before the pages.
func (t *task) modeHeader(pages []byte) []byte {
	var desc []byte
	long := t.cdb[0] == 0x5a && t.cdb[1]&0x10 != 0
	switch {
	case t.cdb[1]&0x08 != 0: // DBD
	case long:
		desc = put64(nil, t.capacity())
		desc = put32(desc, 0)
		desc = put32(desc, uint32(t.info.LogicalBlock))
	default:
		desc = put32(nil, uint32(min(t.capacity(), 0xffffffff)))
		desc = put32(desc, uint32(t.info.LogicalBlock))
	}
	specific := byte(0x10) // DPOFUA
	if t.info.ReadOnly || t.unit.swp.Load() {
		specific |= 0x80
	}
	var b []byte
	if t.cdb[0] == 0x1a {
		b = []byte{byte(3 + len(desc) + len(pages)), 0, specific, byte(len(desc))}
	} else {
		b = put16(nil, uint16(6+len(desc)+len(pages)))
		b = append(b, 0, specific, 0, 0)
		if long {
			b[4] = 0x01
		}
		b = put16(b, uint16(len(desc)))
	}
	return append(append(b, desc...), pages...)
}

// doModeSelect serves MODE SELECT(6) and (10).
func doModeSelect(t *task) outcome {
	format, save := t.cdb[1]&0x10 != 0, t.cdb[1]&0x01 != 0
	if !format || save {
		return badField
	}
	p := t.call.Out()
	n := t.command.allocation(t.cdb)
	if len(p) < n {
		return badLength
	}
	if n == 0 {
		return good
	}
	pages, o := selected(p, t.cdb[0] == 0x55)
	if o != good {
		return o
	}
	return t.change(pages)
}

// selected strips header and block descriptors off a mode parameter list.
func selected(p []byte, ten bool) ([]byte, outcome) {
	head := 4
	if ten {
		head = 8
	}
	if len(p) < head {
		return nil, badLength
	}
	var desc int
	if ten {
		desc = int(get16(p[6:]))
	} else {
		desc = int(p[3])
	}
	if len(p) < head+desc {
		return nil, badLength
	}
	return p[head+desc:], good
}

// change applies mode pages, all or none: only changeable bits may differ.
func (t *task) change(list []byte) outcome {
	known := t.modePages()
	dsense, swp := t.unit.dsense.Load(), t.unit.swp.Load()
	for len(list) > 0 {
		i := match(known, list)
		if i < 0 {
			return badParameter
		}
		p := known[i]
		if len(list) < len(p.current) {
			return badLength
		}
		got := list[:len(p.current)]
		list = list[len(got):]
		h := p.head()
		for j := h; j < len(got); j++ {
			if (got[j]^p.current[j])&^p.changeable[j] != 0 {
				return badParameter
			}
		}
		if c, s := p.code(); c == 0x0a && s == 0 {
			dsense, swp = got[2]&0x04 != 0, got[4]&0x08 != 0
		}
	}
	u := t.unit
	changed := u.dsense.Swap(dsense) != dsense
	changed = u.swp.Swap(swp) != swp || changed
	if changed {
		u.attention(t.nexus, 0x2a, 0x01)
	}
	return good
}

// match finds the page that a parameter list begins with, -1 when there is none of that code and
// length.
func match(known []modePage, list []byte) int {
	for i, p := range known {
		h := p.head()
		if len(list) < h || list[0]&0x7f != p.current[0]&0x7f {
			continue
		}
		same := true
		for j := 1; j < h; j++ {
			same = same && list[j] == p.current[j]
		}
		if same {
			return i
		}
	}
	return -1
}

// doLogSense serves LOG SENSE.
func doLogSense(t *task) outcome {
	code, sub := t.cdb[2]&0x3f, t.cdb[3]
	if sub != 0 || t.cdb[1]&0x01 != 0 {
		return badField
	}
	var body []byte
	switch code {
	case 0x00:
		body = []byte{0x00, 0x0c, 0x15, 0x19, 0x2f}
	case 0x0c:
		body = t.used()
	case 0x15: // background scan: none runs
		body = append([]byte{0, 0, 0x03, 12}, make([]byte, 12)...)
	case 0x19:
		body = append([]byte{0, 1, 0x03, 64}, make([]byte, 64)...)
	case 0x2f:
		body = []byte{0, 0, 0x03, 4, 0, 0, 0, 0}
	default:
		return badField
	}
	b := []byte{code, 0}
	b = put16(b, uint16(len(body)))
	return t.reply(append(b, body...), t.command.allocation(t.cdb))
}

// used is the body of log page 0C: the volume's size as what is available, in the units of the
// threshold exponent.
func (t *task) used() []byte {
	total := uint32(int64(t.info.Size) / int64(domain.GiB))
	b := []byte{0x00, 0x01, 0x03, 8}
	b = put32(b, total)
	return append(b, 0x01, 0, 0, 0) // dedicated to this unit
}
