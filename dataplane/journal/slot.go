package journal

import (
	"fmt"

	"weft/dataplane/checksum"
	"weft/dataplane/segment"
)

// Slot is a slot in use: between Open and Free, or one that Read found. Its counters are as of the
// last Put. It belongs to one owner at a time.
type Slot struct {
	No       int // in the share
	Lane     uint8
	Sequence uint64 // of its life: rises over the share, never used twice
	Entries  int    // commit words stored
	Sealed   bool
	// Salt begins the keys of what is encrypted here; zero: nothing is. It is durable before the slot
	// takes a record.
	Salt segment.Salt

	used    int // bytes of entries
	blocks  int // of payload
	scratch [24]byte
}

// Sealer copies the data of a record while it is put, closed where the entry says that.
type Sealer interface {
	// Seal writes data, or its cipher text, to dst, as long, which begins at a place of the share. It
	// notes the checksums of its blocks in the entry, by segment.PutSum, or with tags by
	// segment.PutSeal.
	Seal(entry []byte, place uint32, dst, data []byte)
}

// The commit page. Every field is a word of its own, little endian.
//
//	header  0 state 8 | 8 sequence 8 | 16 lane 8 | 24 seal 8 | 32 salt 16 | .. 64, then a second copy
//	word    CRC-32C 4 | bytes of the entry / 4  2 | its offset / 4  2
const (
	stateOff    = 0
	sequenceOff = 8
	laneOff     = 16
	sealOff     = 24
	saltOff     = 32
)

// Open begins a slot's life: the commit page zero and durable first, then the header, its state
// words last.
func (s *Share) Open(sl *Slot, no int, lane uint8, sequence uint64, salt segment.Salt) {
	*sl = Slot{No: no, Lane: lane, Sequence: sequence, Salt: salt}
	at := s.slot(no)
	for off := int64(0); off < page; off += 8 {
		s.store(at+off, 0)
	}
	s.dev.Persist(at, page)
	for c := at; c < at+wordsOff; c += slotHeader {
		s.store(c+sequenceOff, sequence)
		s.store(c+laneOff, uint64(lane))
		s.store(c+saltOff, le.Uint64(salt[:]))
		s.store(c+saltOff+8, le.Uint64(salt[8:]))
	}
	s.dev.Persist(at, wordsOff)
	state := s.state(no, lane, sequence, salt)
	for c := at; c < at+wordsOff; c += slotHeader {
		s.store(c+stateOff, state)
	}
	s.dev.Persist(at, wordsOff)
}

// Free ends a slot's life: from here on nothing of it counts. What it held must be durable
// elsewhere.
func (s *Share) Free(no int) {
	at := s.slot(no)
	for c := at; c < at+wordsOff; c += slotHeader {
		s.store(c+stateOff, 0)
	}
	s.dev.Persist(at, wordsOff)
}

// Seal states that the slot has all the words it will have. Durable on return.
func (s *Share) Seal(sl *Slot) {
	at := s.slot(sl.No)
	seal := s.seal(sl)
	for c := at; c < at+wordsOff; c += slotHeader {
		s.store(c+sealOff, seal)
	}
	s.dev.Persist(at, wordsOff)
	sl.Sealed = true
}

// Fits tells whether the slot takes one more record with so many bytes of entry and blocks of
// payload.
func (s *Share) Fits(sl *Slot, entry, blocks int) bool {
	return !sl.Sealed && sl.Entries < EntriesMax && sl.used+entry <= s.entries &&
		sl.blocks+blocks <= s.SlotBlocks()
}

// Put stores a record, which fits: its entry, whose Off it sets, its mask and further CRCs as
// segment.Entry's PutMask and Encode take them, and its data. A mask is read where the outcome is
// mixed. A sealer copies the data and gives the CRCs; without one they are those of the entry, and
// the data is stored as it is. The record is there, durably as the memory is, when Put returns; a
// crash before leaves nothing of it. It gives the place of the first block, in blocks of the
// share's memory.
func (s *Share) Put(sl *Slot, en *segment.Entry, kept *segment.Mask, further []uint32, data []byte,
	by Sealer,
) uint32 {
	place := s.place(sl.No, sl.blocks)
	en.Off = uint32(sl.blocks * segment.BlockUnits)
	at := s.slot(sl.No)
	n := en.Size()
	entry := at + page + int64(sl.used)
	b := s.mem[entry : entry+int64(n)]
	en.Encode(b, further)
	if en.Outcome() == segment.OutcomeMixed {
		en.PutMask(b, kept)
	}
	if len(data) > 0 {
		off := int64(place) * segment.BlockSize
		if by != nil {
			by.Seal(b, place, s.mem[off:off+int64(len(data))], data)
		} else {
			copy(s.mem[off:], data)
		}
		s.dev.Persist(off, int64(len(data)))
	}
	s.dev.Persist(entry, int64(n))
	w := at + wordsOff + int64(sl.Entries)*8
	s.store(w, s.commit(sl, sl.Entries, sl.used, n))
	s.dev.Persist(w, 8)
	sl.Entries++
	sl.used += n
	sl.blocks += len(data) / segment.BlockSize
	return place
}

// place gives block i of a slot's payload in blocks of the memory.
func (s *Share) place(no, i int) uint32 {
	off := s.slot(no) + page + int64(s.entries)
	return uint32(off/segment.BlockSize) + uint32(i)
}

// SlotOf gives the slot that a place lies in.
func (s *Share) SlotOf(place uint32) int {
	return int((int64(place)*segment.BlockSize - headerMax) / int64(slotBytes(int(s.head.Payload))))
}

// Blocks gives how many places there are: every place is below.
func (s *Share) Blocks() uint32 { return uint32(len(s.mem) / segment.BlockSize) }

// At gives the bytes of n blocks from a place on: a view of the memory, which does not change until
// the slot is free.
func (s *Share) At(place uint32, n int) []byte {
	off := int64(place) * segment.BlockSize
	return s.mem[off : off+int64(n)*segment.BlockSize]
}

// Start gives the place of a slot's first block.
func (s *Share) Start(no int) uint32 { return s.place(no, 0) }

// state is the word that makes a header count. Without a salt it is as version 1 had it.
func (s *Share) state(no int, lane uint8, sequence uint64, salt segment.Salt) uint64 {
	var b [24]byte
	le.PutUint64(b[0:], uint64(no))
	le.PutUint64(b[8:], sequence)
	b[16] = lane
	crc := checksum.Update(s.salt, b[:])
	if salt != (segment.Salt{}) {
		crc = checksum.Update(crc, salt[:])
	}
	return uint64(crc)<<32 | 1
}

// seal is the word that tells the number of entries.
func (s *Share) seal(sl *Slot) uint64 {
	var b [24]byte
	le.PutUint64(b[0:], uint64(sl.No))
	le.PutUint64(b[8:], sl.Sequence)
	le.PutUint32(b[16:], uint32(sl.Entries))
	b[20] = 1
	return uint64(checksum.Update(s.salt, b[:]))<<32 | uint64(sl.Entries+1)
}

// commit is the word of entry i of a slot, whose bytes are in memory already.
func (s *Share) commit(sl *Slot, i, at, n int) uint64 {
	b := &sl.scratch // on the stack it would escape: one allocation for every record
	low := uint32(n/4)<<16 | uint32(at/4)
	le.PutUint64(b[0:], sl.Sequence)
	le.PutUint32(b[8:], uint32(i))
	le.PutUint32(b[12:], low)
	le.PutUint32(b[16:], uint32(sl.No))
	le.PutUint32(b[20:], uint32(sl.Lane))
	off := s.slot(sl.No) + page + int64(at)
	crc := checksum.Update(s.salt, b[:])
	return uint64(checksum.Update(crc, s.mem[off:off+int64(n)]))<<32 | uint64(low)
}

// Damage is something in a slot that was there and does not verify.
type Damage struct {
	Slot, Entry int // Entry -1: the slot's header, and all that it held
}

// String says what it is.
func (d Damage) String() string {
	if d.Entry < 0 {
		return fmt.Sprintf("header of NVRAM slot %d", d.Slot)
	}
	return fmt.Sprintf("record %d of NVRAM slot %d", d.Entry, d.Slot)
}

// Read tells what a slot holds after a start: false when it is free. A slot that was open when the
// power went counts the words that are there. Damage is told to bad; the slot is as good as the
// rest of it.
func (s *Share) Read(no int, sl *Slot, bad func(Damage)) bool {
	*sl = Slot{No: no}
	at := s.slot(no)
	any, good := false, false
	for c := at; c < at+wordsOff && !good; c += slotHeader {
		state, seq, lane := s.word(c+stateOff), s.word(c+sequenceOff), s.word(c+laneOff)
		any = any || state != 0
		salt := segment.Salt(s.mem[c+saltOff:])
		if good = state != 0 && lane <= 255 && state == s.state(no, uint8(lane), seq, salt); good {
			sl.Sequence, sl.Lane, sl.Salt = seq, uint8(lane), salt
		}
	}
	if !good {
		if any {
			bad(Damage{no, -1})
		}
		return false
	}
	for c := at; c < at+wordsOff && !sl.Sealed; c += slotHeader {
		seal := s.word(c + sealOff)
		sl.Entries = int(uint32(seal)) - 1
		sl.Sealed = seal != 0 && sl.Entries >= 0 && sl.Entries <= EntriesMax && seal == s.seal(sl)
	}
	if !sl.Sealed {
		sl.Entries = 0
		for i := range EntriesMax {
			if s.word(at+wordsOff+int64(i)*8) != 0 {
				sl.Entries = i + 1
			}
		}
	}
	s.Each(sl, nil, bad)
	return true
}

// Each calls fn with every record of a slot that verifies, in the order in which they were put: its
// entry, the entry's bytes, and the place of its first block. It tells what does not verify to bad.
// Either may be nil. The bytes are a view of the memory. Several may read one slot at once, if none
// puts or seals meanwhile.
func (s *Share) Each(of *Slot, fn func(en *segment.Entry, raw []byte, place uint32),
	bad func(Damage),
) {
	own := *of // with a scratch of its own
	sl := &own
	at := s.slot(sl.No)
	var en segment.Entry
	for i := range sl.Entries {
		w := s.word(at + wordsOff + int64(i)*8)
		off, n := int(uint16(w))*4, int(uint16(w>>16))*4
		ok := off+n <= s.entries && n >= segment.EntrySettled && w == s.commit(sl, i, off, n)
		raw := s.mem[at+page : at+page+int64(s.entries)]
		if ok {
			raw = raw[off : off+n]
			_, err := segment.DecodeEntry(raw, 0, &en)
			ok = err == nil && s.inside(&en)
		}
		switch {
		case !ok && bad != nil:
			bad(Damage{sl.No, i})
		case ok && fn != nil:
			fn(&en, raw, s.place(sl.No, int(en.Off)/segment.BlockUnits))
		}
	}
}

// inside tells whether an entry's data lies in its slot.
func (s *Share) inside(en *segment.Entry) bool {
	return en.Kind != segment.KindData ||
		int(en.Off)/segment.BlockUnits+en.Count <= s.SlotBlocks()
}
