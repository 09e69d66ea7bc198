package domain

import (
	"fmt"
	"strconv"
	"strings"
)

// Bytes is a size or an amount of data.
type Bytes int64

// Binary multiples of a byte.
const (
	KiB Bytes = 1 << 10
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
	TiB Bytes = 1 << 40
)

// The fixed sizes of the data plane.
const (
	// BlockSize is the unit of versioning.
	BlockSize Bytes = 4 * KiB
	// ExtentSize is one leaf of an engine's index; a record never crosses an extent.
	ExtentSize Bytes = 4 * MiB
	// BlocksPerExtent counts the blocks of an extent.
	BlocksPerExtent = int(ExtentSize / BlockSize)
	// SliceSize is the unit of coherency, epoch, placement and migration.
	SliceSize = GiB
	// RecordMax is the most data one record holds: one atomic write.
	RecordMax = MiB
	// VolumeMax is the largest volume.
	VolumeMax = 256 * TiB
	// VolumeMin is the smallest volume, and every volume's size is a multiple of it.
	VolumeMin = ExtentSize
)

// String gives the largest binary unit that divides the amount, such as "10GiB".
func (b Bytes) String() string {
	units := []struct {
		n    Bytes
		name string
	}{{TiB, "TiB"}, {GiB, "GiB"}, {MiB, "MiB"}, {KiB, "KiB"}}
	for _, u := range units {
		if b != 0 && b%u.n == 0 {
			return strconv.FormatInt(int64(b/u.n), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10) + "B"
}

// ParseBytes reads a size such as "10GiB", "512MiB", "4096" or "1.5TiB". Units are binary and
// spelled KiB, MiB, GiB, TiB, or just K, M, G, T; a bare number is bytes. It returns an error of
// kind Invalid for anything else, for a negative amount, and for one beyond 63 bits.
func ParseBytes(s string) (Bytes, error) {
	text, unit := strings.TrimSpace(s), Bytes(1)
	for suffix, n := range map[string]Bytes{"K": KiB, "M": MiB, "G": GiB, "T": TiB} {
		for _, form := range []string{suffix + "iB", suffix} {
			if rest, ok := strings.CutSuffix(text, form); ok {
				text, unit = strings.TrimSpace(rest), n
			}
		}
	}
	if unit == 1 {
		text = strings.TrimSpace(strings.TrimSuffix(text, "B"))
	}
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		if n < 0 || n > int64(1<<62)/int64(unit) {
			return 0, Errorf(Invalid, "size %q is out of range", clip(s))
		}
		return Bytes(n) * unit, nil
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || unit == 1 || !(f >= 0 && f < float64(1<<62)/float64(unit)) {
		return 0, Errorf(Invalid, "%q is not a size; write for example 10GiB", clip(s))
	}
	return Bytes(f * float64(unit)), nil
}

// Timeline is one unbroken history of the event log. Only recovery and restore raise it.
type Timeline uint16

// Position is a place in the whole event log: timeline << 48 | n. It never repeats and never
// changes. Zero is the place before the first event. In JSON it is a decimal string.
type Position uint64

// PositionOf puts a position together. n is below 2^48.
func PositionOf(t Timeline, n uint64) Position { return Position(uint64(t)<<48 | n) }

// Timeline gives the history the position belongs to.
func (p Position) Timeline() Timeline { return Timeline(p >> 48) }

// N counts the events up to and with this one in the history that survived.
func (p Position) N() uint64 { return uint64(p) & (1<<48 - 1) }

// String gives the decimal form.
func (p Position) String() string { return strconv.FormatUint(uint64(p), 10) }

// ParsePosition reads the decimal form.
func ParsePosition(s string) (Position, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, Errorf(Invalid, "%q is not a position", clip(s))
	}
	return Position(n), nil
}

// Revision is a place in one stream, counted from 0. NoRevision means the stream has no event.
type Revision int64

// NoRevision is the revision of a stream without events.
const NoRevision Revision = -1

// Epoch fences a slice: the Position of the last event that touched it.
type Epoch uint64

// NodeNumber is a node's short number, unique in the cluster while the node is known.
type NodeNumber uint16

// Version orders the writes of a slice over all nodes: by epoch, then seq, then node. Equal
// versions mean the same record with the same data. The zero value is below every version.
type Version struct {
	Epoch Epoch
	Seq   uint64 // below 2^48
	Node  NodeNumber
}

// Compare gives -1, 0 or 1.
func (v Version) Compare(w Version) int {
	switch {
	case v.Epoch != w.Epoch:
		return order(uint64(v.Epoch), uint64(w.Epoch))
	case v.Seq != w.Seq:
		return order(v.Seq, w.Seq)
	default:
		return order(uint64(v.Node), uint64(w.Node))
	}
}

func order(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// String gives "epoch.seq.node".
func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Epoch, v.Seq, v.Node) }

// RequestID names one request of a gateway, so that a repeated one is recognised. Equality of
// requests ignores Attempt.
type RequestID struct {
	Gateway     NodeNumber
	Incarnation uint64 // below 2^48
	Counter     uint64 // below 2^56
	Attempt     uint8
}
