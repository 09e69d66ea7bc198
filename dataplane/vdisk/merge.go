package vdisk

import (
	"weft/backends"
	"weft/dataplane/engine"
	"weft/dataplane/segment"
	"weft/domain"
)

// outcome carries a record's outcome to a goroutine that waits for it.
type outcome chan error

// Appended implements engine.Appender.
func (c outcome) Appended(_ *engine.Record, err error) { c <- err }

// merge writes a range whose ends may cover blocks in part. Per piece of at most one record it
// holds the blocks, reads the ends, lays the data over them and writes one record: so the sectors
// of one command change together, and two hosts that write two sectors of one block both survive.
func (d *Disk) merge(off, n int64, p []byte) error {
	for n > 0 {
		start := off / segment.BlockSize * segment.BlockSize
		piece := cut(off, n, d.at.Load().record-(off-start))
		if err := d.mergePiece(off, p[:piece]); err != nil {
			return err
		}
		p, off, n = p[piece:], off+piece, n-piece
	}
	return nil
}

func (d *Disk) mergePiece(off int64, p []byte) error {
	first := off / segment.BlockSize
	count := int((off+int64(len(p))+segment.BlockSize-1)/segment.BlockSize - first)
	h, err := d.at.Load().Volume.Hold(uint64(first), count)
	if err != nil {
		return err
	}
	buf := backends.AlignedBuffer(count * segment.BlockSize)
	err = d.ends(uint64(first), count, off, len(p), buf)
	if err != nil {
		h.Release()
		return err
	}
	copy(buf[off-first*segment.BlockSize:], p)
	return d.put(h, first, buf)
}

// ends reads the first and the last block where the range covers them in part.
func (d *Disk) ends(first uint64, count int, off int64, n int, buf []byte) error {
	if off%segment.BlockSize != 0 {
		if err := d.at.Load().Volume.Read(first, 1, buf[:segment.BlockSize]); err != nil {
			return err
		}
	}
	end := off + int64(n)
	if end%segment.BlockSize != 0 && (count > 1 || off%segment.BlockSize == 0) {
		last := buf[(count-1)*segment.BlockSize:]
		return d.at.Load().Volume.Read(first+uint64(count)-1, 1, last)
	}
	return nil
}

// put writes a held range as one record and lets the hold go once the record has its place.
func (d *Disk) put(h *engine.Hold, first int64, buf []byte) error {
	done := make(outcome, 1)
	r := &engine.Record{To: done}
	d.fill(r, segment.KindData, first*segment.BlockSize, int64(len(buf)), buf)
	h.Append(r)
	h.Release()
	return <-done
}

// compareWrite compares and writes under one hold. A range that crosses an extent is refused: front
// ends offer one block.
func (d *Disk) compareWrite(io *domain.IO) error {
	first := io.Off / segment.BlockSize
	end := io.Off + io.Len
	count := int((end+segment.BlockSize-1)/segment.BlockSize - first)
	if io.Len == 0 {
		return nil
	}
	oneExtent := first/segment.LeafBlocks == (end-1)/int64(domain.ExtentSize)
	if int64(count)*segment.BlockSize > d.at.Load().record || !oneExtent {
		return domain.Errorf(domain.TooLarge, "compare and write of %d bytes", io.Len)
	}
	h, err := d.at.Load().Volume.Hold(uint64(first), count)
	if err != nil {
		return err
	}
	buf := backends.AlignedBuffer(count * segment.BlockSize)
	if err := d.at.Load().Volume.Read(uint64(first), count, buf); err != nil {
		h.Release()
		return err
	}
	at := buf[io.Off-first*segment.BlockSize:][:io.Len]
	for i, b := range io.Cmp[:io.Len] {
		if at[i] != b {
			h.Release()
			io.Mismatch = int64(i)
			return domain.Errorf(domain.Miscompare, "byte %d differs", i)
		}
	}
	copy(at, io.Buf)
	return d.put(h, first, buf)
}

// ranged zeroes or unmaps: whole blocks by range records, ragged ends by writing zeros.
func (d *Disk) ranged(io *domain.IO, kind segment.Kind) error {
	off, end := io.Off, io.Off+io.Len
	first := (off + segment.BlockSize - 1) / segment.BlockSize * segment.BlockSize
	last := end / segment.BlockSize * segment.BlockSize
	if first >= last {
		return d.zeros(off, end)
	}
	if err := d.zeros(off, first); err != nil {
		return err
	}
	if err := d.zeros(last, end); err != nil {
		return err
	}
	// All pieces are under way before the first is waited for: one group commit takes many.
	var waits []outcome
	for at := first; at < last; {
		n := cut(at, last-at, int64(domain.ExtentSize))
		done := make(outcome, 1)
		r := &engine.Record{To: done}
		d.fill(r, kind, at, n, nil)
		d.at.Load().Volume.Append(r)
		waits = append(waits, done)
		at += n
	}
	var err error
	for _, w := range waits {
		if e := <-w; e != nil && err == nil {
			err = e
		}
	}
	return err
}

// zeros writes zeros over part of a block, or over parts of two.
func (d *Disk) zeros(from, to int64) error {
	if from >= to {
		return nil
	}
	return d.merge(from, to-from, make([]byte, to-from))
}

// Extents appends how n bytes from off on are allocated. Both are cut to whole blocks outwards; it
// answers from memory.
func (d *Disk) Extents(off, n int64, dst []domain.Extent) ([]domain.Extent, error) {
	size := int64(d.at.Load().Volume.Size())
	if off < 0 || n < 0 || off > size || n > size-off {
		return dst, domain.Errorf(domain.OutOfRange, "extents of %d bytes at %d", n, off)
	}
	end, start := off+n, len(dst)
	for at := off / segment.BlockSize * segment.BlockSize; at < end; {
		count := cut(at, (end-at+segment.BlockSize-1)/segment.BlockSize*segment.BlockSize,
			int64(domain.ExtentSize)) / segment.BlockSize
		var err error
		dst, err = d.at.Load().Volume.Extents(uint64(at/segment.BlockSize), int(count), dst)
		if err != nil {
			return dst, err
		}
		at += count * segment.BlockSize
	}
	trim(dst[min(start, len(dst)):], off, end)
	return dst, nil
}

// trim cuts the first and last extent to the range asked for.
func trim(x []domain.Extent, off, end int64) {
	if len(x) == 0 {
		return
	}
	if d := off - x[0].Off; d > 0 {
		x[0].Off, x[0].Len = off, x[0].Len-d
	}
	last := &x[len(x)-1]
	last.Len = min(last.Len, end-last.Off)
}
