package segment

import (
	"fmt"
	"time"
)

const scrubMagic = 0x42524353 // "SCRB"

// ScrubOff is where the two copies of the scrub's mark stand, behind the ring of anchors. They are
// written in turn, so one is whole whenever the power goes.
const (
	ScrubOff    = 0x180000
	ScrubCopies = 2
)

// ScrubMark says how far the scrub of a device has come. Losing it costs a new pass, nothing else.
type ScrubMark struct {
	Seq      uint64 // raised by each write; the higher one wins
	Pass     uint64 // counts from 1
	Stage    uint8  // what is checked now; 0: no pass is under way
	Family   uint32 // stage ScrubExtents goes on here
	Extent   uint32
	Segment  uint32    // stage ScrubSegments goes on here
	Started  time.Time // of the pass; seconds
	Finished time.Time // of the last pass that came to its end; zero: none did
	Checked  uint64    // bytes, by this pass so far or by the last one
	Damaged  uint64    // places found damaged, likewise
}

// The stages of a pass, in order.
const (
	ScrubFrame    uint8 = 1 // superblocks, anchor, root
	ScrubExtents  uint8 = 2 // live blocks and the images of leaves
	ScrubSegments uint8 = 3 // headers of segments and chunks, footers
)

// Encode fills one sector.
func (m *ScrubMark) Encode(b []byte) {
	clear(b[:Sector])
	le.PutUint32(b[0:], scrubMagic)
	b[4] = m.Stage
	le.PutUint64(b[8:], m.Seq)
	le.PutUint64(b[16:], m.Pass)
	le.PutUint32(b[24:], m.Family)
	le.PutUint32(b[28:], m.Extent)
	le.PutUint32(b[32:], m.Segment)
	le.PutUint64(b[40:], unix(m.Started))
	le.PutUint64(b[48:], unix(m.Finished))
	le.PutUint64(b[56:], m.Checked)
	le.PutUint64(b[64:], m.Damaged)
	le.PutUint32(b[Sector-4:], Checksum(b[:Sector-4]))
}

func unix(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(t.Unix())
}

func fromUnix(n uint64) time.Time {
	if n == 0 || n > 1<<40 {
		return time.Time{}
	}
	return time.Unix(int64(n), 0).UTC()
}

// DecodeScrubMark reads and checks one sector.
func DecodeScrubMark(b []byte) (*ScrubMark, error) {
	if len(b) < Sector || le.Uint32(b) != scrubMagic {
		return nil, fmt.Errorf("scrub mark: no magic: %w", ErrBad)
	}
	if le.Uint32(b[Sector-4:]) != Checksum(b[:Sector-4]) {
		return nil, fmt.Errorf("scrub mark: checksum: %w", ErrBad)
	}
	m := &ScrubMark{
		Stage: b[4], Seq: le.Uint64(b[8:]), Pass: le.Uint64(b[16:]), Family: le.Uint32(b[24:]),
		Extent: le.Uint32(b[28:]), Segment: le.Uint32(b[32:]), Started: fromUnix(le.Uint64(b[40:])),
		Finished: fromUnix(le.Uint64(b[48:])), Checked: le.Uint64(b[56:]), Damaged: le.Uint64(b[64:]),
	}
	if m.Stage > ScrubSegments {
		return nil, fmt.Errorf("scrub mark: stage %d: %w", m.Stage, ErrBad)
	}
	return m, nil
}
