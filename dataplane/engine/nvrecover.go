package engine

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"weft/dataplane/journal"
	"weft/dataplane/segment"
	"weft/domain"
)

// ErrJournalLost is the cause of every refusal of Open to go on without the journal that the device
// needs.
var ErrJournalLost = errors.New("the device's journal is not there")

// openJournal decides whether the journal that Open was given is the one that the device needs, and
// takes it. The newest anchor names it by its identity; its own header names the incarnation that
// used it last, which is that of the anchor, or the next where a start was cut short between the
// two. Anything else is another journal, or another state of this one.
func (e *Engine) openJournal(a *segment.Anchor) error {
	var share *journal.Share
	var err error
	if e.cfg.Journal != nil {
		share, err = journal.Open(e.cfg.Journal)
	}
	if a.Journal != 0 {
		if verdict := e.judgeJournal(a, share, err); verdict != nil {
			if !e.cfg.AcceptLoss {
				return verdict
			}
			e.lossAccepted = verdict
			share = nil
		}
	} else if err := e.mayFormat(share, err); err != nil {
		return err
	} else {
		share = nil // what it holds was destaged before the anchor gave it up
	}
	if e.cfg.Journal == nil {
		return nil
	}
	if share == nil {
		if e.cfg.DropJournal && a.Journal == 0 {
			return nil // given up already
		}
		if share, err = e.formatJournal(); err != nil {
			return err
		}
	}
	return e.takeJournal(share)
}

// judgeJournal gives what is wrong with a journal that the device needs; nil when it is the one.
func (e *Engine) judgeJournal(a *segment.Anchor, share *journal.Share, bad error) error {
	lost := func(kind domain.Kind, format string, args ...any) error {
		return &domain.Error{
			Op: "engine.Open", Kind: kind, Ref: e.dev.Geometry().Path,
			Msg: "acknowledged records may stand in the NVRAM journal only, and " +
				fmt.Sprintf(format, args...),
			Remedy: "give the device its journal back; or accept the loss, and restore what it cost",
			Err:    ErrJournalLost,
		}
	}
	switch {
	case e.cfg.Journal == nil:
		return lost(domain.Unavailable, "none is given")
	case errors.Is(bad, journal.ErrBlank):
		return lost(domain.Corrupt, "%s is empty", e.cfg.Journal.Geometry().Path)
	case bad != nil:
		return lost(domain.Corrupt, "%s: %v", e.cfg.Journal.Geometry().Path, bad)
	}
	h := share.Header()
	switch {
	case h.ID != a.Journal || h.Device != e.super.Device:
		return lost(domain.Corrupt, "%s is another one's: of device %s, id %x, not %x",
			share.Geometry().Path, h.Device, h.ID, a.Journal)
	case h.Incarnation != a.Incarnation && h.Incarnation != a.Incarnation+1:
		return lost(domain.Corrupt, "%s is of start %d, the device of start %d",
			share.Geometry().Path, h.Incarnation, a.Incarnation)
	}
	return nil
}

// mayFormat refuses memory that another device needs.
func (e *Engine) mayFormat(share *journal.Share, err error) error {
	if share == nil || err != nil || share.Header().Device == e.super.Device {
		return nil
	}
	return &domain.Error{
		Op: "engine.Open", Kind: domain.Denied, Ref: share.Geometry().Path,
		Msg:    "the NVRAM journal belongs to device " + share.Header().Device.String(),
		Remedy: "give each device a share of its own",
	}
}

// formatJournal makes an empty journal of the memory that Open was given.
func (e *Engine) formatJournal() (*journal.Share, error) {
	dev := e.cfg.Journal
	if n := journal.Fit(dev.Geometry().Size, e.payloadMax()); n < journal.SlotsMin(len(e.lanes)) {
		return nil, domain.Errorf(domain.Invalid, "%s: %s is too small a journal: %d slots fit, not %d",
			dev.Geometry().Path, domain.Bytes(dev.Geometry().Size), n, journal.SlotsMin(len(e.lanes)))
	}
	share, err := journal.Format(dev, journal.Header{
		Cluster: e.super.Cluster, Node: e.super.Node, Device: e.super.Device, ID: newJournalID(),
		Incarnation: e.incarnation, Payload: uint32(e.payloadMax()),
	})
	return share, translate(err, "engine.Open", dev.Geometry().Path)
}

// newJournalID draws a journal's identity, not 0.
func newJournalID() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails: it ends the process instead
	return binary.LittleEndian.Uint64(b[:]) | 1
}

// takeJournal begins to use a journal. Its header is written before the anchor that closes the
// recovery, so it is never behind the anchor.
func (e *Engine) takeJournal(share *journal.Share) error {
	size := max(e.dev.Geometry().Size, int64(e.super.Size))
	base := segment.RoundUp(int(size), segment.BlockSize) / segment.BlockSize
	switch {
	case share.SlotBlocks()*segment.BlockSize < e.payloadMax():
		return domain.Errorf(domain.Corrupt, "NVRAM slots of %d blocks are too small", share.SlotBlocks())
	case share.Slots() < journal.SlotsMin(len(e.lanes)):
		return domain.Errorf(domain.Corrupt, "%d NVRAM slots are too few", share.Slots())
	case int64(base)+int64(share.Blocks()) > 1<<32:
		return domain.Errorf(domain.Invalid, "%s with its journal is beyond %s", e.dev.Geometry().Path,
			domain.Bytes(segment.SizeMax))
	}
	share.Begin(e.incarnation)
	e.nv = newNVRAM(e, share, uint32(base))
	_, _ = rand.Read(e.nv.salt[:]) // never fails: it ends the process instead
	return nil
}

// replay enters all that the journal holds, on top of what the device said; n may be nil. What an
// earlier life left open takes no more records.
func (n *nvram) replay() {
	if n == nil {
		return
	}
	for i := range n.slots {
		sl := &n.slots[i]
		if !n.share.Read(i, &sl.Slot, n.damaged) {
			n.mu.free = append(n.mu.free, i)
			continue
		}
		if !sl.Sealed {
			n.share.Seal(&sl.Slot)
		}
		sl.life = n.lifeOf(&sl.Slot)
		n.mu.queue = append(n.mu.queue, sl)
		n.mu.next = max(n.mu.next, sl.Sequence+1)
	}
	slices.SortFunc(n.mu.queue, func(a, b *nvSlot) int { return cmp.Compare(a.Sequence, b.Sequence) })
	// A sequence that was given out and whose slot is free again is not known any more.
	n.mu.next = max(n.mu.next, uint64(n.e.incarnation)<<32)
	n.used.Store(int64(len(n.mu.queue)))
	for _, sl := range n.mu.queue {
		n.share.Each(&sl.Slot, func(en *segment.Entry, raw []byte, place uint32) {
			n.redo(sl, en, raw, place)
		}, nil)
	}
}

func (n *nvram) damaged(d journal.Damage) {
	n.e.report(Fact{What: "corrupt", Detail: d.String() + " does not verify"})
}

// redo enters one record of the journal.
func (n *nvram) redo(sl *nvSlot, en *segment.Entry, raw []byte, place uint32) {
	e := n.e
	b := e.branch(en.Branch)
	if b == nil || b.fam.replica == nil {
		e.raiseVersion(en.Version.Seq)
	}
	if b == nil {
		return // nobody sees it any more
	}
	l := e.laneOf(b.fam, uint32(en.Block/segment.LeafBlocks))
	if b.fam.replica != nil {
		n.check(b, en, raw, place)
		n.redoHeld(l, b, sl, en, raw, place)
		return
	}
	p := pending{br: b, kind: en.Kind, block: en.Block, count: int(en.Range)}
	switch en.Kind { //nolint:exhaustive // no other kind is put into a journal
	case segment.KindData:
		if b.key != nil && b.key.secret == nil {
			n.keyless = append(n.keyless, b)
		}
		crcs := n.check(b, en, raw, place)
		base := (uint64(n.base) + uint64(place)) * segment.BlockUnits
		l.setData(&p, base, crcs[:en.Count])
	case segment.KindZero:
		l.setRange(&p, segment.ZeroLoc)
	case segment.KindUnmap:
		l.setRange(&p, segment.HoleLoc)
	}
}

// check reports the blocks of a record whose bytes went bad, and gives the checksums of all.
func (n *nvram) check(b *branch, en *segment.Entry, raw []byte, place uint32,
) (crcs [segment.RecordBlocks]uint32) {
	for i := 0; en.Kind == segment.KindData && i < en.Count; i++ {
		crcs[i] = en.Further(raw, i)
		if segment.Checksum(n.share.At(place+uint32(i), 1)) != crcs[i] {
			n.spoiled(b, en.Block+uint64(i))
		}
	}
	return crcs
}

// locked gives why Open cannot go on: a record of a volume whose key is not there. A volume that
// was deleted before the journal let go of its records has lost its key in order; nobody needs
// those. The branches without names are swept.
func (n *nvram) locked() error {
	if n == nil {
		return nil
	}
	for _, b := range n.keyless {
		for _, other := range n.e.mu.branches {
			if !other.gone && other.key == b.key {
				return (&Volume{volume: n.e.volumeOf(other)}).locked(b.key)
			}
		}
	}
	n.keyless = nil
	return nil
}

// tellLoss reports, volume by volume, that what the journal held is gone.
func (e *Engine) tellLoss() {
	if e.lossAccepted == nil {
		return
	}
	for _, v := range e.Volumes() {
		e.report(Fact{What: "journal-lost", Volume: v.volume, Detail: e.lossAccepted.Error()})
	}
	if len(e.Volumes()) == 0 {
		e.report(Fact{What: "journal-lost", Detail: e.lossAccepted.Error()})
	}
}

// dropJournal destages all, commits that the device needs no journal any more, and makes the memory
// blank. Nobody else uses the engine yet.
func (e *Engine) dropJournal() error {
	n := e.nv
	if err := n.drain(background); err != nil {
		return err
	}
	n.stop()
	e.maint.ckpt.Lock()
	defer e.maint.ckpt.Unlock()
	for _, l := range e.lanes {
		l.mu.Lock()
	}
	e.nv = nil
	for _, l := range e.lanes {
		l.mu.Unlock()
	}
	if err := e.checkpointLocked(false); err != nil {
		return err
	}
	n.share.Wipe()
	return nil
}
