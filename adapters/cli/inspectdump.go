package cli

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"weft/domain"
)

// SegmentDump is all that stands in one segment of a device. Offsets are bytes from the start of
// the device.
type SegmentDump struct {
	Path     string          `json:"path"`
	ID       uint32          `json:"id"`
	Offset   int64           `json:"offset"`
	Size     domain.Bytes    `json:"size"`
	State    string          `json:"state"`
	Sequence uint64          `json:"sequence"`
	Stream   string          `json:"stream,omitempty"`
	Lane     int             `json:"lane"`
	Header   *DumpHeader     `json:"header"` // null: it does not verify
	Chunks   []DumpChunk     `json:"chunks"`
	Gaps     []DumpGap       `json:"gaps"`
	Footer   *DumpFooter     `json:"footer"` // null: there is none
	Problems []DeviceProblem `json:"problems"`
}

// DumpHeader is the header of a segment.
type DumpHeader struct {
	Segment     uint32 `json:"segment"`
	Device      string `json:"device"`
	Sequence    uint64 `json:"sequence"`
	Incarnation uint32 `json:"incarnation"`
	Anchor      uint64 `json:"anchor"`
}

// DumpChunk is one chunk of a segment: a group commit.
type DumpChunk struct {
	Offset      int64        `json:"offset"`
	Incarnation uint32       `json:"incarnation"`
	LSN         uint64       `json:"lsn"`
	PrevLSN     uint64       `json:"prev_lsn"`
	FlushMark   uint64       `json:"flush_mark"`
	Encrypted   bool         `json:"encrypted,omitempty"`
	HeaderBytes domain.Bytes `json:"header_bytes"`
	Payload     domain.Bytes `json:"payload_bytes"`
	Count       int          `json:"entries"`
	CRC         string       `json:"crc"`
	HeaderOK    bool         `json:"header_ok"`  // else what is told is the footer's copy
	PayloadOK   bool         `json:"payload_ok"` // it matches the checksums of its entries
	InFooter    bool         `json:"in_footer"`
	Entries     []DumpEntry  `json:"list,omitempty"`
}

// DumpEntry is one entry of a chunk.
type DumpEntry struct {
	Kind       string `json:"kind"`
	Branch     uint32 `json:"branch"`
	Block      uint64 `json:"block"`
	Count      uint64 `json:"count"`
	Version    string `json:"version"`
	Generation uint32 `json:"generation"`
	Era        uint16 `json:"era"`
	LSN        uint64 `json:"lsn"`
	Offset     int64  `json:"offset,omitempty"` // of its payload on the device
	Units      int    `json:"units"`            // of 512 bytes
	Compressed bool   `json:"compressed"`
	Encrypted  bool   `json:"encrypted"`
	Moved      bool   `json:"moved"`
	CRC        string `json:"crc"`
	OK         bool   `json:"ok"`
}

// DumpGap is a stretch of a segment without a chunk of its life.
type DumpGap struct {
	Offset int64        `json:"offset"`
	Size   domain.Bytes `json:"size"`
	What   string       `json:"what"`
}

// DumpFooter is the footer of a sealed segment.
type DumpFooter struct {
	Chunks      int          `json:"chunks"`
	Sequence    uint64       `json:"sequence"`
	Incarnation uint32       `json:"incarnation"`
	Bytes       domain.Bytes `json:"bytes"`
	Agrees      bool         `json:"agrees"` // it names the chunks that stand there, and no other
}

// ExtentQuery asks what a volume, a snapshot or a branch of a device sees.
type ExtentQuery struct {
	Of     string // id of a volume or a snapshot, or number of a branch
	From   uint64
	Blocks uint64 // 0: to the end
	Limit  int
}

// DeviceExtents is a part of the map from blocks to places.
type DeviceExtents struct {
	Path     string          `json:"path"`
	Branch   uint32          `json:"branch"`
	Volume   string          `json:"volume,omitempty"`
	Snapshot string          `json:"snapshot,omitempty"`
	Size     domain.Bytes    `json:"size"`
	Extents  []DeviceExtent  `json:"extents"`
	Next     uint64          `json:"next,omitempty"` // block to go on from; 0: that was all
	Problems []DeviceProblem `json:"problems"`
}

// DeviceExtent is a run of blocks, side by side on the device where they are data.
type DeviceExtent struct {
	Block      uint64       `json:"block"`
	Blocks     uint64       `json:"blocks"`
	Kind       string       `json:"kind"`
	Branch     uint32       `json:"branch,omitempty"` // that wrote it
	Segment    int64        `json:"segment"`          // -1: in none
	Offset     int64        `json:"offset,omitempty"` // in the segment
	Length     domain.Bytes `json:"length"`
	Compressed bool         `json:"compressed,omitempty"`
	CRC        string       `json:"crc,omitempty"`
}

func (t *tool) inspectSegment() *cobra.Command {
	short := "Show the segments of a device, or all that stands in one"
	cmd := &cobra.Command{
		Use: "segment DEVICE [N]", Short: short, Args: cobra.RangeArgs(1, 2),
		Long: `Show the segments of a device and what lives in each; with N, all that stands in segment N,
by its own bytes:

  the header   whose life of the segment this is: its sequence on the device, the stream and
               the lane that wrote it, the incarnation of the engine
  each chunk   one group commit: its LSN and that before it in the lane's log, up to where all
               was durable when it was sealed, and whether header and payload match their
               checksums
  each entry   (--entries) one record of a chunk: whose blocks, of which version, where its
               payload stands, and whether that matches
  the gaps     what no chunk of this life holds: zeros, chunks of lives before, or damage
  the footer   the copy of all chunks' headers in a sealed segment, and whether it agrees

The state is open without a footer and sealed with one; whether anything in it still lives is
the index's to say: weft inspect segment DEVICE, weft inspect index DEVICE --volume ID. What is
damaged is told with its place and passed over. A volume is known by the branch of its writes:
weft inspect index DEVICE tells which. Encrypted blocks are checked as they stand.`,
		Example: "  weft inspect segment devices/flash0.img\n" +
			"  weft inspect segment /dev/nvme1n1 12\n" +
			"  weft inspect segment /dev/nvme1n1 12 --entries -o json",
	}
	entries := cmd.Flags().Bool("entries", false, "with N: list the entries of each chunk, too")
	out := choose(cmd, "output", "o", "form of the answer", "table", "json", "yaml", "name")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 {
			if *entries {
				return domain.Errorf(domain.Invalid,
					"--entries is of one segment: weft inspect segment DEVICE N --entries")
			}
			d, err := t.p.CheckDevice(cmd.Context(), args[0], false, func(string) {})
			if err != nil {
				return err
			}
			return show(cmd.OutOrStdout(), out.value, segmentListing(d), t.colours(cmd))
		}
		n, err := strconv.ParseUint(args[1], 10, 32)
		if err != nil {
			return domain.Errorf(domain.Invalid,
				"%q is no number of a segment: weft inspect segment DEVICE lists them", args[1])
		}
		d, err := t.p.InspectSegment(cmd.Context(), args[0], uint32(n), *entries)
		if err != nil {
			return err
		}
		if out.value != "table" {
			return show(cmd.OutOrStdout(), out.value, chunkListing(d), false)
		}
		return writeDump(cmd.OutOrStdout(), d)
	}
	return cmd
}

func chunkListing(d SegmentDump) listing {
	l := listing{value: d, head: []column{
		{name: "CHUNK"},
		{name: "LSN"},
		{name: "PREV"},
		{name: "FLUSHED"},
		{name: "INCARNATION"},
		{name: "ENTRIES"},
		{name: "PAYLOAD"},
		{name: "HEADER"},
		{name: "DATA"},
		{name: "FOOTER"},
	}}
	for _, c := range d.Chunks {
		l.names = append(l.names, "chunk/"+itoa(c.Offset))
		l.rows = append(l.rows, []string{
			itoa(c.Offset), fmt.Sprint(c.LSN), fmt.Sprint(c.PrevLSN), fmt.Sprint(c.FlushMark),
			fmt.Sprint(c.Incarnation), itoa(c.Count), c.Payload.String(), fine(c.HeaderOK),
			fine(c.PayloadOK), yesNo(c.InFooter),
		})
	}
	return l
}

func entryListing(d SegmentDump) listing {
	l := listing{head: []column{
		{name: "CHUNK"},
		{name: "ENTRY"},
		{name: "KIND"},
		{name: "BRANCH"},
		{name: "BLOCK"},
		{name: "COUNT"},
		{name: "VERSION"},
		{name: "GEN"},
		{name: "ERA"},
		{name: "LSN"},
		{name: "OFFSET"},
		{name: "UNITS"},
		{name: "FLAGS"},
		{name: "CRC"},
		{name: "DATA"},
	}}
	for _, c := range d.Chunks {
		for i, e := range c.Entries {
			l.rows = append(l.rows, []string{
				itoa(c.Offset), itoa(i), e.Kind, fmt.Sprint(e.Branch), fmt.Sprint(e.Block),
				fmt.Sprint(e.Count), e.Version, fmt.Sprint(e.Generation), fmt.Sprint(e.Era),
				fmt.Sprint(e.LSN), itoa(e.Offset), itoa(e.Units), entryFlags(e), e.CRC, fine(e.OK),
			})
		}
	}
	return l
}

func entryFlags(e DumpEntry) string {
	var list []string
	for _, f := range []struct {
		set  bool
		name string
	}{{e.Compressed, "compressed"}, {e.Encrypted, "encrypted"}, {e.Moved, "moved"}} {
		if f.set {
			list = append(list, f.name)
		}
	}
	return first(strings.Join(list, ","), "-")
}

func fine(ok bool) string {
	if ok {
		return "ok"
	}
	return "damaged"
}

// writeDump tells a segment in tables: what it is, its chunks, entries, gaps and problems.
func writeDump(w io.Writer, d SegmentDump) error {
	head := listing{head: []column{{name: "FIELD"}, {name: "VALUE"}}}
	row := func(name, format string, args ...any) {
		head.rows = append(head.rows, []string{name, fmt.Sprintf(format, args...)})
	}
	row("segment", "%d, %s from %d on", d.ID, d.Size, d.Offset)
	row("state", "%s", d.State)
	row("life", "%d, stream %s, lane %d", d.Sequence, first(d.Stream, "-"), d.Lane)
	if h := d.Header; h != nil {
		row("header", "segment %d of device %s, incarnation %d, anchor %d", h.Segment, h.Device,
			h.Incarnation, h.Anchor)
	} else {
		row("header", "none that verifies")
	}
	if f := d.Footer; f != nil {
		agrees := "agrees with the chunks"
		if !f.Agrees {
			agrees = "does NOT agree with the chunks"
		}
		row("footer", "%d chunks, %s, incarnation %d: %s", f.Chunks, f.Bytes, f.Incarnation, agrees)
	} else {
		row("footer", "none")
	}
	gaps := listing{head: []column{{name: "GAP"}, {name: "SIZE"}, {name: "HOLDS"}}}
	for _, g := range d.Gaps {
		gaps.rows = append(gaps.rows, []string{itoa(g.Offset), g.Size.String(), g.What})
	}
	for i, l := range []listing{head, chunkListing(d), entryListing(d), gaps} {
		if i > 0 && len(l.rows) == 0 {
			continue
		}
		if i > 0 {
			if _, err := io.WriteString(w, "\n"); err != nil {
				return err
			}
		}
		if err := table(w, l, false, false); err != nil {
			return err
		}
	}
	_, err := io.WriteString(w, "\n"+problemLines(d.Problems))
	return err
}

func (t *tool) inspectIndex() *cobra.Command {
	short := "Show the volumes and snapshots on a device, or where the blocks of one stand"
	cmd := &cobra.Command{
		Use: "index DEVICE", Short: short, Args: cobra.ExactArgs(1),
		Long: `Show the volumes and snapshots on a device, and what each holds; with --volume, where its
blocks of 4 KiB stand, by the checkpoint and the log behind it: runs of neighbours, each with the
branch that wrote it, its segment and the offset in there, what it takes, and the checksum of
its first block as the index has it (31 bits of it, 25 where the block is compressed).

  data    it stands there: weft inspect segment DEVICE N --entries shows its record
  zero    written as zeros; it takes no room
  hole    never written, or unmapped
  nvram   its newest copy stands in the node's NVRAM only: weft inspect journal NVRAM
  lost    its place in the index is damaged; it reads as an error until it is written again

A device knows volumes by id, not by name: weft get volumes -o json tells the ids, and this
command without --volume those that are there. At most --limit runs are told at a time; where
there are more, the last line, or "next" of -o json, says from which block to go on.`,
		Example: "  weft inspect index devices/flash0.img\n" +
			"  weft inspect index devices/flash0.img --volume 1 --from 2048 --blocks 16\n" +
			"  weft inspect index /dev/nvme1n1 --volume 5b9f1c1e-5d0c-4f0e-8c7a-2f1f6f0f9a11 -o json",
	}
	var q ExtentQuery
	f := cmd.Flags()
	f.StringVar(&q.Of, "volume", "", "id of a volume or snapshot, or number of a branch")
	f.Uint64Var(&q.From, "from", 0, "with --volume: first block")
	f.Uint64Var(&q.Blocks, "blocks", 0, "with --volume: how many blocks; 0: to the end")
	f.IntVar(&q.Limit, "limit", 1000, "with --volume: most runs that are told")
	out := choose(cmd, "output", "o", "form of the answer", "table", "json", "yaml", "name")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if q.Of == "" {
			for _, name := range []string{"from", "blocks", "limit"} {
				if f.Changed(name) {
					return domain.Errorf(domain.Invalid, "--%s is of one volume: name it with --volume", name)
				}
			}
			d, err := t.p.CheckDevice(cmd.Context(), args[0], false, func(string) {})
			if err != nil {
				return err
			}
			return show(cmd.OutOrStdout(), out.value, branchListing(d), t.colours(cmd))
		}
		if q.Limit < 1 || q.Limit > math.MaxInt32 {
			return domain.Errorf(domain.Invalid, "--limit %d: at least 1 run is told", q.Limit)
		}
		x, err := t.p.InspectExtents(cmd.Context(), args[0], q)
		if err != nil {
			return err
		}
		if err := show(cmd.OutOrStdout(), out.value, extentListing(x), false); err != nil {
			return err
		}
		if out.value != "table" {
			return nil
		}
		more := problemLines(x.Problems)
		if x.Next > 0 {
			more += fmt.Sprintf("more: --volume %s --from %d\n", q.Of, x.Next)
		}
		_, err = io.WriteString(cmd.OutOrStdout(), more)
		return err
	}
	return cmd
}

func extentListing(x DeviceExtents) listing {
	l := listing{value: x, head: []column{
		{name: "BLOCK"},
		{name: "BLOCKS"},
		{name: "KIND"},
		{name: "BRANCH"},
		{name: "SEGMENT"},
		{name: "OFFSET"},
		{name: "LENGTH"},
		{name: "COMPRESSED"},
		{name: "CRC"},
	}}
	for _, e := range x.Extents {
		l.names = append(l.names, fmt.Sprintf("extent/%d", e.Block))
		row := []string{
			fmt.Sprint(e.Block), fmt.Sprint(e.Blocks), e.Kind, "-", "-", "-", "-", "-", first(e.CRC, "-"),
		}
		if e.Branch != 0 {
			row[3] = fmt.Sprint(e.Branch)
		}
		if e.Segment >= 0 {
			row[4], row[5], row[6] = itoa(e.Segment), itoa(e.Offset), e.Length.String()
			row[7] = yesNo(e.Compressed)
		}
		l.rows = append(l.rows, row)
	}
	return l
}
