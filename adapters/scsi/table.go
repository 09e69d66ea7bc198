package scsi

// class says how reservations treat a command.
type class byte

const (
	free class = iota // never in conflict
	in                // reads the medium or state
	out               // changes the medium
	prOut
	old // RESERVE(6) and RELEASE(6)
	tur
)

// moves says what data a CDB carries.
type moves byte

const (
	nothing   moves = iota
	dataIn          // blocks to the initiator
	dataOut         // blocks from it
	checkData       // VERIFY: by BYTCHK
	pattern         // WRITE SAME: one block unless NDOB
	pairs           // COMPARE AND WRITE: two blocks per block
	answer          // parameter data
	list            // parameter list
)

// command is one row of the table: all that is known of an operation code, or of one of its
// service actions.
type command struct {
	op         byte
	sa         int16 // service action, none when negative
	size       byte  // of the CDB
	class      class
	moves      moves
	quiet      bool // does not report unit attentions
	unreserved bool // RESERVE(6) of another nexus does not stop it
	protect    bool // byte 1 bits 7..5 are a protection field, which must be zero
	media      bool // resets and preemptions wait for it
	slow       bool
	start      func(t *task)         // ends the task itself
	do         func(t *task) outcome // inline, or in a goroutine when slow
	usage      []byte                // bits of bytes 1.. that are looked at
}

const none = int16(-1)

// table finds commands by operation code and service action.
type table struct {
	rows  []command
	plain [256]*command
	acts  [256][]*command
	other command
}

func newTable() *table {
	t := &table{}
	t.other = command{sa: none, class: free, do: func(*task) outcome { return badOpcode }}
	t.rows = append(t.rows, mediaRows()...)
	t.rows = append(t.rows, controlRows()...)
	for i := range t.rows {
		c := &t.rows[i]
		if c.sa == none {
			t.plain[c.op] = c
		} else {
			t.acts[c.op] = append(t.acts[c.op], c)
		}
	}
	return t
}

// find gives the row of a CDB, nil when the operation code or the service action is unknown.
func (t *table) find(cdb []byte) *command {
	if c := t.plain[cdb[0]]; c != nil {
		return c
	}
	for _, c := range t.acts[cdb[0]] {
		if c.sa == int16(cdb[1]&0x1f) {
			return c
		}
	}
	return nil
}

// unknown gives a row that refuses: an unknown service action of a known code is a bad field.
func (t *table) unknown(cdb []byte) *command {
	if len(t.acts[cdb[0]]) == 0 {
		return &t.other
	}
	return &command{
		op: cdb[0], sa: none, class: free, do: func(*task) outcome { return badField },
	}
}

// extent reads the block range of a CDB.
func (c *command) extent(cdb []byte) (lba, blocks uint64) {
	switch {
	case c.moves == pairs:
		return get64(cdb[2:]), uint64(cdb[13])
	case c.op == 0x9c:
		return get64(cdb[2:]), uint64(get16(cdb[12:]))
	case c.size == 6:
		lba = uint64(get32(cdb)) & 0x1fffff
		if cdb[4] == 0 {
			return lba, 256
		}
		return lba, uint64(cdb[4])
	case c.size == 10:
		return uint64(get32(cdb[2:])), uint64(get16(cdb[7:]))
	case c.size == 12:
		return uint64(get32(cdb[2:])), uint64(get32(cdb[6:]))
	}
	return get64(cdb[2:]), uint64(get32(cdb[10:]))
}

// allocation reads the allocation or parameter list length of a CDB.
func (c *command) allocation(cdb []byte) int {
	switch {
	case c.op == 0x12 || c.op == 0x48:
		n := 3
		if c.op == 0x48 {
			n = 7
		}
		return int(get16(cdb[n:]))
	case c.op == 0x5f:
		return clip(get32(cdb[5:]))
	case c.size == 6:
		return int(cdb[4])
	case c.size == 10:
		return int(get16(cdb[7:]))
	case c.size == 12:
		return clip(get32(cdb[6:]))
	}
	return clip(get32(cdb[10:]))
}

// clip keeps a length from the wire within what an int and a buffer may hold. The bound is above
// both answerMax and parameterMax, so that a longer list is still seen to be too long.
func clip(n uint32) int { return int(min(n, 1<<20)) }

// length tells how many bytes a CDB moves. A transfer over the limit moves nothing: it is refused.
func (c *command) length(cdb []byte, bs int) (toUnit, toHost int) {
	switch c.moves {
	case answer:
		return 0, min(c.allocation(cdb), answerMax)
	case list:
		n := c.allocation(cdb)
		if n > parameterMax {
			return 0, 0
		}
		return n, 0
	case nothing:
		return 0, 0
	case dataIn, dataOut, checkData, pattern, pairs: // counted in blocks, below
	}
	_, blocks := c.extent(cdb)
	switch c.moves {
	case pattern:
		if c.op == 0x93 && cdb[1]&0x01 != 0 {
			return 0, 0
		}
		return bs, 0
	case pairs:
		return 2 * bs * int(blocks), 0
	case checkData:
		switch cdb[1] >> 1 & 3 {
		case 0, 2:
			return 0, 0
		case 3:
			return bs, 0
		}
	case dataIn, dataOut: // every block, below
	case nothing, answer, list: // done above
	}
	if blocks > uint64(c.most())/uint64(bs) {
		return 0, 0
	}
	if c.moves == dataIn {
		return 0, int(blocks) * bs
	}
	return int(blocks) * bs, 0
}

// most is the most bytes that a command moves.
func (c *command) most() int64 {
	if c.protect && c.start != nil && c.op != 0x9c || c.size == 6 {
		return transferLimit
	}
	return transferMax
}
