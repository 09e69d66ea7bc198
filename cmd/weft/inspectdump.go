package main

import (
	"context"
	"fmt"
	"strconv"

	"weft/adapters/cli"
	"weft/dataplane/fsck"
	"weft/dataplane/segment"
	"weft/domain"
)

// inspectSegment is `weft inspect segment DEVICE N`.
func inspectSegment(ctx context.Context, path string, n uint32, entries bool) (
	cli.SegmentDump, error,
) {
	dev, err := openReading(ctx, path)
	if err != nil {
		return cli.SegmentDump{}, domain.Wrap(err, "inspect", path)
	}
	defer func() { _ = dev.Close() }() // nothing was written
	g := dev.Geometry()
	s, err := fsck.DumpSegment(dev, g.Size, fsck.Options{Boundary: g.Boundary}, n)
	if err != nil {
		return cli.SegmentDump{}, domain.Wrap(err, "", path)
	}
	d := cli.SegmentDump{
		Path: path, ID: s.ID, Offset: s.Off, Size: domain.Bytes(s.Size), State: s.State,
		Sequence: s.Sequence, Stream: s.Stream, Lane: int(s.Lane), Chunks: []cli.DumpChunk{},
		Gaps: []cli.DumpGap{}, Problems: problemDocs(s.Problems),
	}
	if h := s.Header; h != nil {
		d.Header = &cli.DumpHeader{
			Segment: h.Segment, Device: h.Device.String(), Sequence: h.Sequence,
			Incarnation: h.Incarnation, Anchor: h.Anchor,
		}
	}
	if f := s.Footer; f != nil {
		d.Footer = &cli.DumpFooter{
			Chunks: int(f.Chunks), Sequence: f.Sequence, Incarnation: f.Incarnation,
			Bytes: domain.Bytes(f.Bytes), Agrees: s.Agrees,
		}
	}
	for i := range s.Chunks {
		d.Chunks = append(d.Chunks, chunkDoc(&s.Chunks[i], entries))
	}
	for _, g := range s.Gaps {
		d.Gaps = append(d.Gaps, cli.DumpGap{Offset: g.Off, Size: domain.Bytes(g.Len), What: g.What})
	}
	return d, nil
}

func chunkDoc(c *fsck.ChunkDump, entries bool) cli.DumpChunk {
	d := cli.DumpChunk{
		Offset: c.Off, Incarnation: c.Incarnation, LSN: c.LSN, PrevLSN: c.PrevLSN,
		FlushMark: c.FlushMark, Encrypted: c.Sealed, HeaderBytes: domain.Bytes(c.HeaderBytes()),
		Payload: domain.Bytes(c.PayloadBytes), Count: int(c.Entries), CRC: crcText(c.CRC),
		HeaderOK: c.Header, PayloadOK: c.Whole, InFooter: c.InFooter,
	}
	if !entries {
		return d
	}
	for i := range c.List {
		e := &c.List[i]
		x := cli.DumpEntry{
			Kind: e.Kind.String(), Branch: e.Branch, Block: e.Block, Count: uint64(e.Len()),
			Version: e.Version.String(), Generation: e.Gen, Era: e.Era, LSN: e.LSN,
			Units: int(e.Units), Compressed: e.Packed(), Encrypted: e.Flags&segment.FlagEncrypted != 0,
			Moved: e.Flags&segment.FlagMoved != 0, CRC: crcText(e.CRC), OK: e.Sound,
		}
		if e.Units > 0 {
			x.Offset = c.Payload + int64(e.Off)*segment.Unit
		}
		d.Entries = append(d.Entries, x)
	}
	return d
}

func crcText(crc uint32) string { return fmt.Sprintf("%08x", crc) }

// inspectExtents is `weft inspect index DEVICE --volume V`.
func inspectExtents(ctx context.Context, path string, q cli.ExtentQuery) (
	cli.DeviceExtents, error,
) {
	of := fsck.ExtentQuery{From: q.From, Blocks: q.Blocks, Limit: q.Limit}
	if n, err := strconv.ParseUint(q.Of, 10, 32); err == nil && n > 0 {
		of.Branch = uint32(n)
	} else if of.Volume, err = domain.ParseUUID(q.Of); err != nil {
		return cli.DeviceExtents{}, &domain.Error{
			Op: "inspect", Kind: domain.Invalid,
			Msg:    strconv.Quote(q.Of) + " is neither an id nor the number of a branch",
			Remedy: "a device knows no names: weft inspect index DEVICE lists the ids and branches it has",
		}
	}
	dev, err := openReading(ctx, path)
	if err != nil {
		return cli.DeviceExtents{}, domain.Wrap(err, "inspect", path)
	}
	defer func() { _ = dev.Close() }() // nothing was written
	g := dev.Geometry()
	r, err := fsck.ReadExtents(dev, g.Size, fsck.Options{Boundary: g.Boundary}, of)
	if err != nil {
		return cli.DeviceExtents{}, domain.Wrap(err, "", path)
	}
	x := cli.DeviceExtents{
		Path: path, Branch: r.Branch.ID, Volume: idText(r.Branch.Volume.UUID),
		Snapshot: idText(r.Branch.Snapshot.UUID), Size: domain.Bytes(r.Branch.Size),
		Extents: []cli.DeviceExtent{}, Next: r.Next, Problems: problemDocs(r.Problems),
	}
	for _, e := range r.List {
		d := cli.DeviceExtent{
			Block: e.Block, Blocks: e.Blocks, Kind: e.Kind, Branch: e.Branch, Segment: e.Segment,
			Offset: e.Off, Length: domain.Bytes(e.Bytes), Compressed: e.Packed,
		}
		if e.Kind == fsck.ExtentData {
			d.CRC = crcText(e.CRC)
		}
		x.Extents = append(x.Extents, d)
	}
	return x, nil
}
