package engine

import (
	"weft/backends"
	"weft/dataplane/segment"
)

// part is a piece of a chunk's payload that is written from its owner's memory.
type part struct {
	at   int // in the payload
	data []byte
}

// partMin is from how many bytes on the data of a record that may be lent is not copied.
const partMin = 32 << 10

// pieces lists what is to be written: the image, and instead of its gaps the parts that stand
// elsewhere.
func (c *chunk) pieces(list [][]byte, image []byte) [][]byte {
	at, head := 0, c.head.HeaderBytes()
	for _, p := range c.parts {
		if from, to := at, head+p.at; to > from {
			list = append(list, image[from:to])
		}
		list = append(list, p.data)
		at = head + p.at + len(p.data)
	}
	if at < len(image) {
		list = append(list, image[at:])
	}
	return list
}

// trickle writes an image and the parts that stand elsewhere, not durably, at most so many bytes at
// once. After an error some of it may stand there.
func (c *chunk) trickle(d backends.Device, image []byte, off int64, most int) error {
	c.vector = c.pieces(c.vector[:0], image)
	defer func() { clear(c.vector[:cap(c.vector)]) }()
	for list := c.vector; len(list) > 0; {
		n, left := 0, most
		for n < len(list) && len(list[n]) < left {
			left -= len(list[n])
			n++
		}
		if n == len(list) { // it is less than the most
			return writeParts(d, list, off, false)
		}
		last := list[n]
		list[n] = last[:left]
		if err := writeParts(d, list[:n+1], off, false); err != nil {
			return err
		}
		if list[n] = last[left:]; len(list[n]) == 0 {
			n++
		}
		list, off = list[n:], off+int64(most)
	}
	return nil
}

// writeParts writes buffers one behind the other, durably with fua.
func writeParts(d backends.Device, list [][]byte, off int64, fua bool) error {
	if len(list) == 1 {
		return d.WriteAt(list[0], off, fua)
	}
	return backends.WriteV(d, list, off, fua)
}

// partMin gives from how many bytes on data is lent.
func (e *Engine) partMin() int {
	if e.lendFrom > 0 {
		return e.lendFrom
	}
	return partMin
}

// fill takes the payload of a record into the chunk: a copy, or the owner's memory where it is
// lent, worth it, and the device can. What is lent is written before the record's outcome is told,
// also when the chunk is written a second time, and is not looked at afterwards. Its checksums were
// taken when it was appended: an owner that changes it before gets a block that reads as corrupt.
// may says whether memory may be lent at all: what will be encrypted is copied.
func (e *Engine) fill(c *chunk, r *Record, n int, may bool) {
	data := r.Data[:n]
	from := e.partMin()
	_, can := e.dev.(backends.VectorWriter)
	c.lend(data, may && can && r.Lent && n >= from && backends.Aligned(data, backends.Align))
}

// lend adds whole blocks to the payload: a copy, or the memory itself, which then belongs to the
// chunk until it is written. Neighbours in memory become one part.
func (c *chunk) lend(data []byte, lent bool) {
	if lent {
		c.part(data)
	} else {
		copy(c.buf[segment.HeaderMax+c.payload:], data)
	}
	c.payload += len(data)
}

// part notes memory that is to be written at the end of the payload.
func (c *chunk) part(data []byte) {
	if n := len(c.parts); n > 0 {
		p := &c.parts[n-1]
		if p.at+len(p.data) == c.payload && follows(p.data, data) {
			p.data = p.data[:len(p.data)+len(data)]
			return
		}
	}
	c.parts = append(c.parts, part{c.payload, data})
}

// follows tells whether q stands right behind p, in one buffer.
func follows(p, q []byte) bool {
	return cap(p) >= len(p)+len(q) && &p[:len(p)+1][len(p)] == &q[0]
}

// write puts the sealed chunk on the device, durably with fua.
func (l *lane) write(c *chunk, fua bool) error {
	if c.err != nil {
		return c.err
	}
	b := c.buf[segment.HeaderMax-c.head.HeaderBytes():][:c.head.Bytes()]
	l.e.stats.chunks.Add(1)
	l.e.stats.logBytes.Add(int64(len(b)))
	l.e.maint.note(int64(len(b)))
	return c.send(l.e.dev, b, c.off, fua)
}

// send writes an image and the parts that stand elsewhere at once, durably with fua.
func (c *chunk) send(d backends.Device, image []byte, off int64, fua bool) error {
	c.vector = c.pieces(c.vector[:0], image)
	err := writeParts(d, c.vector, off, fua)
	clear(c.vector[:cap(c.vector)])
	return err
}
