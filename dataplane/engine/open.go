package engine

import (
	"crypto/rand"

	"weft/backends"
	"weft/dataplane/segment"
	"weft/domain"
)

// errNoSegment says that no segment is free for this stream now, or that the engine stopped.
var errNoSegment = domain.Errorf(domain.Unavailable, "no free segment")

// openSegment takes a free segment and makes its header durable before anything else stands there.
func (e *Engine) openSegment(stream segment.Stream, lane uint8) (*openSegment, error) {
	id, sg := e.space.take(stream, lane)
	if sg == nil {
		return nil, errNoSegment
	}
	return e.begin(id, sg, stream, lane)
}

// openAhead opens a segment that a lane will need soon; nil where that has to wait, or fails.
func (e *Engine) openAhead(lane uint8) *openSegment {
	id, sg := e.space.takeAhead(lane, len(e.lanes))
	if sg == nil {
		return nil
	}
	o, err := e.begin(id, sg, segment.StreamLog, lane)
	if err != nil {
		e.report(Fact{What: "write-error", Detail: "header: " + err.Error()})
	}
	return o
}

// begin makes the header of a segment durable that is to be opened.
func (e *Engine) begin(id uint32, sg *seg, stream segment.Stream, lane uint8,
) (*openSegment, error) {
	h := segment.Header{
		Segment: id, Sequence: sg.seq, Stream: stream, Lane: lane, Incarnation: e.incarnation,
		Device: e.super.Device, Anchor: e.anchorSeq.Load(),
	}
	_, _ = rand.Read(h.Salt[:]) // never fails: it ends the process instead
	b := backends.AlignedBuffer(segment.Sector)
	h.Encode(b)
	if err := e.dev.WriteAt(b, e.space.off(id), e.fua); err != nil {
		e.space.set(sg, segBad)
		e.faults.Add(1) // it may have been the flush behind the write that failed
		return nil, err
	}
	lf := &life{base: e.space.off(id), seq: sg.seq, salt: h.Salt}
	sg.life.Store(lf)
	o := &openSegment{id: id, sg: sg, life: lf, seq: sg.seq, used: segment.Sector}
	o.footer.Grow(int(e.footers[stream].Load()))
	return o, nil
}

// closeSegment lets a segment take no more chunks. The footer follows when the last chunk in flight
// has its outcome.
func (e *Engine) closeSegment(o *openSegment) {
	o.mu.Lock()
	o.closing = true
	o.inflight++ // the caller's own share, given back below
	o.mu.Unlock()
	e.settle(o)
}

// settle gives back one share of a segment; the last one of a closing segment writes the footer
// and hands the segment to the cleaner. A footer proves that every chunk before it was durable, so
// it is written only when no chunk failed.
func (e *Engine) settle(o *openSegment) {
	o.mu.Lock()
	o.inflight--
	last := o.closing && o.inflight == 0
	bad := o.bad
	o.mu.Unlock()
	if !last {
		return
	}
	if bad || e.failed.Load() {
		e.space.set(o.sg, segBad)
		return
	}
	if e.nv == nil || o.sg.stream != segment.StreamLog {
		e.foot(o)
		return
	}
	e.behind.Go(func() { e.foot(o) }) // the destager has more to do
}

// foot writes the footer of a segment whose chunks are all durable, and hands it to the cleaner.
func (e *Engine) foot(o *openSegment) {
	e.footers[o.sg.stream].Store(int64(o.footer.Body()))
	b := backends.AlignedBuffer(o.footer.Size(0))
	b = o.footer.Encode(b, o.seq, e.incarnation)
	end := e.space.off(o.id) + e.space.size
	if err := e.dev.WriteAt(b, end-int64(len(b)), false); err != nil {
		e.report(Fact{What: "write-error", Detail: "footer: " + err.Error()})
	}
	e.space.set(o.sg, segSealed)
}
