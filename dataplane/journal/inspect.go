package journal

import (
	"fmt"

	"weft/backends"
	"weft/dataplane/segment"
	"weft/domain"
)

// Contents is what stands in a node's NVRAM.
type Contents struct {
	Cluster domain.ClusterID
	Node    domain.NodeID
	Size    int64
	Shares  []ShareContents
}

// ShareContents is what stands in the share of one device.
type ShareContents struct {
	Device      domain.DeviceID
	Offset      int64 // in the region
	Size        int64
	ID          uint64 // by which the device's anchor names it; 0: none was made, or Problem says why
	Incarnation uint32
	Slots       int // in all
	Used        []SlotContents
	Problem     string // of the share as a whole
}

// SlotContents is what stands in a slot that is in use.
type SlotContents struct {
	No       int
	Lane     uint8
	Sequence uint64
	Sealed   bool
	Records  int   // that verify
	Blocks   int64 // of their data
	Outdone  int   // records of replicas of which not all blocks, or none, took them
	Damaged  []string
}

// Inspect reads a node's NVRAM, whoever it belongs to, and changes nothing. Nobody may use it
// meanwhile. The error is Corrupt, or NotFound where no region begins.
func Inspect(dev backends.ByteDevice) (Contents, error) {
	mem, path := dev.Bytes(), dev.Geometry().Path
	head, found, ours := newest(mem)
	switch {
	case !found && ours:
		return Contents{}, domain.Errorf(domain.Corrupt, "%s: the table of shares is damaged", path)
	case !found:
		return Contents{}, domain.Errorf(domain.NotFound, "%s: no NVRAM of a node begins there", path)
	}
	c := Contents{Cluster: head.cluster, Node: head.node, Size: int64(len(mem))}
	for _, s := range head.shares {
		c.Shares = append(c.Shares, inspectShare(dev, s))
	}
	return c, nil
}

func inspectShare(dev backends.ByteDevice, of share) ShareContents {
	c := ShareContents{Device: of.device, Offset: of.off, Size: of.size}
	s, err := Open(&part{dev, of.off, of.size})
	if err != nil {
		c.Problem = err.Error()
		return c
	}
	h := s.Header()
	c.ID, c.Incarnation, c.Slots = h.ID, h.Incarnation, s.Slots()
	for no := range s.Slots() {
		x := SlotContents{No: no}
		bad := func(d Damage) { x.Damaged = append(x.Damaged, d.String()) }
		var sl Slot
		used := s.Read(no, &sl, bad)
		x.Lane, x.Sequence, x.Sealed = sl.Lane, sl.Sequence, sl.Sealed
		if used {
			s.Each(&sl, func(en *segment.Entry, raw []byte, place uint32) {
				if x.Records++; en.Outcome() != segment.OutcomeApplied {
					x.Outdone++
				}
				if en.Kind != segment.KindData {
					return
				}
				x.Blocks += int64(en.Count)
				for i := range en.Count {
					if segment.Checksum(s.At(place+uint32(i), 1)) != en.Further(raw, i) {
						x.Damaged = append(x.Damaged, fmt.Sprintf("data of block %d of branch %d in slot %d",
							en.Block+uint64(i), en.Branch, no))
					}
				}
			}, nil)
		}
		if used || len(x.Damaged) > 0 {
			c.Used = append(c.Used, x)
		}
	}
	return c
}
