package engine

import (
	"context"

	"weft/dataplane/segment"
)

// Of an encrypted block a right checksum says that it is what somebody wrote; that this was us only
// its tag says, which stands in its entry. So the scrub reads such blocks segment by segment,
// beside their entries, and each once; in the journal entries are at hand. What stands in a segment
// that is not sealed yet, or whose entries do not lead to it, is held to its checksum alone, as is
// all of a volume whose key is not here.

const forged = "its checksum is right and its tag is not: it was forged"

// proof is what the tag of a block is checked by.
type proof struct {
	key  *volumeKey
	life *life
	head [segment.SealedBytes]byte // of its entry
	tag  [segment.TagBytes]byte
	lie  string // what is wrong with the entry already
}

// waits tells whether a block of a branch is checked with its segment. The lane's mutex is held.
func (p *scrubPass) waits(br *branch, loc segment.Loc) bool {
	if br.key == nil {
		return false
	}
	_, st, _ := p.e.space.life(p.e.space.id(loc))
	return st == segSealed || st == segBad
}

// seal lists block i of an entry, which lives in a segment, if it has to have a tag or says so.
func (p *scrubPass) seal(id uint32, br *branch, en *segment.Entry, entry []byte, i int,
	loc segment.Loc,
) {
	sealed := en.Flags&segment.FlagEncrypted != 0
	if br.key == nil && !sealed {
		return
	}
	b := scrubBlock{
		f: br.fam, ext: uint32(en.Block / segment.LeafBlocks),
		at: int(en.Block%segment.LeafBlocks) + i, loc: loc,
	}
	switch lf := p.e.space.mu.segs[id].life.Load(); {
	case br.key == nil:
		b.proof = &proof{life: lf, lie: "its entry says encrypted, its volume is not"}
	case !sealed:
		b.proof = &proof{life: lf, lie: "its entry says that it is not encrypted, its volume is"}
	case br.key.secret == nil:
	case lf == nil:
		b.proof = &proof{lie: "the salt of its key cannot be read"}
	default:
		b.proof = &proof{key: br.key, life: lf}
		copy(b.proof.head[:], entry)
		copy(b.proof.tag[:], segment.Tag(entry, i))
	}
	p.seals = append(p.seals, b)
}

// prove gives what is wrong with a block whose checksum is right; "" is nothing. It opens it.
func (p *scrubPass) prove(b scrubBlock, stored []byte) string {
	switch pr := b.proof; {
	case pr == nil:
		return ""
	case pr.key == nil:
		return pr.lie
	default:
		a := p.e.cipherOf(pr.key, pr.life)
		if !p.pad.open(a, pr.life, b.loc.Off(), stored[:b.loc.Stored()], pr.tag[:], pr.head[:]) {
			return forged
		}
		return ""
	}
}

// unnamed holds what waited for a segment to its checksums, as far as no entry leads to it.
func (p *scrubPass) unnamed(ctx context.Context, id uint32) error {
	done := map[scrubBlock]bool{}
	for _, b := range p.seals {
		b.proof = nil
		done[b] = true
	}
	for _, f := range p.e.families() {
		for _, ext := range p.e.extentsOf(f) {
			var left []scrubBlock
			list, _, _ := p.live(f, ext, int64(id))
			for _, b := range list {
				if !done[b] {
					left = append(left, b)
				}
			}
			if err := p.bursts(ctx, left); err != nil {
				return err
			}
		}
	}
	return nil
}

// inJournal gives what is wrong with a block of the journal that the index names; "" is nothing.
// The lane's mutex is held.
func (p *scrubPass) inJournal(br *branch, loc segment.Loc) string {
	n := p.e.nv
	at := n.place(loc)
	block := n.share.At(at, 1)
	if !loc.Matches(block) {
		return "its bytes do not match its checksum"
	}
	lf, wrong := n.slotAt(loc).life, ""
	if br.key == nil || br.key.secret == nil || lf == nil {
		return ""
	}
	n.entryOf(loc, func(_ *segment.Entry, raw []byte, i int) {
		copy(p.buf, block)
		if !n.unseal(&p.pad, br.key, lf, raw, i, at, p.buf[:segment.BlockSize]) {
			wrong = forged
		}
	})
	return wrong
}
