package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weft/domain"
)

// InspectPrograms read a device that no node uses. They never write to it.
type InspectPrograms struct {
	// CheckDevice checks a device; data says that every live block is read too.
	CheckDevice func(ctx context.Context, path string, data bool, say func(string)) (
		DeviceCheck, error)
	// InspectJournal tells what stands in a node's NVRAM.
	InspectJournal func(path string) (JournalCheck, error)
	// InspectSegment tells all that stands in a segment, with entries where they are asked for.
	InspectSegment func(ctx context.Context, path string, n uint32, entries bool) (
		SegmentDump, error)
	// InspectExtents tells where blocks stand.
	InspectExtents func(ctx context.Context, path string, q ExtentQuery) (DeviceExtents, error)
}

// JournalCheck is what stands in a node's NVRAM.
type JournalCheck struct {
	Path    string         `json:"path"`
	Cluster string         `json:"cluster"`
	Node    string         `json:"node"`
	Size    domain.Bytes   `json:"size"`
	Shares  []JournalShare `json:"shares"`
}

// JournalShare is the journal of one device.
type JournalShare struct {
	Device      string        `json:"device"`
	Offset      int64         `json:"offset"`
	Size        domain.Bytes  `json:"size"`
	ID          string        `json:"id,omitempty"`
	Incarnation uint32        `json:"incarnation"`
	Slots       int           `json:"slots"`
	Records     int           `json:"records"` // that are not known to be on the device
	Data        domain.Bytes  `json:"data"`
	Problems    []string      `json:"problems"`
	Used        []JournalSlot `json:"used"`
}

// JournalSlot is a slot that is in use.
type JournalSlot struct {
	Slot     int          `json:"slot"`
	Lane     int          `json:"lane"`
	Sequence uint64       `json:"sequence"`
	Sealed   bool         `json:"sealed"`
	Records  int          `json:"records"`
	Data     domain.Bytes `json:"data"`
	// Outdone are records of replicas of which not all blocks, or none, took them.
	Outdone int `json:"outdone,omitempty"`
}

// DeviceCheck is what a check of a device came to.
type DeviceCheck struct {
	Path     string       `json:"path"`
	Device   string       `json:"device"`
	Cluster  string       `json:"cluster"`
	Node     string       `json:"node"`
	Size     domain.Bytes `json:"size"`
	Segment  domain.Bytes `json:"segment_size"`
	Lanes    int          `json:"lanes"`
	Anchor   uint64       `json:"anchor"`
	Clean    bool         `json:"clean"` // it was stopped in order
	Replayed int          `json:"replayed_chunks"`
	Live     domain.Bytes `json:"live"`
	Saved    domain.Bytes `json:"saved,omitempty"`
	Garbage  domain.Bytes `json:"garbage"`
	Held     int          `json:"held_records,omitempty"` // of replicas, that are not settled
	HeldOnly domain.Bytes `json:"held_only,omitempty"`    // what lives for their sake alone
	// Journal is the share of NVRAM that the device needs, and Journaled what stands there only, as
	// far as the checkpoint knows. It is not checked here.
	Journal   string          `json:"journal,omitempty"`
	Journaled domain.Bytes    `json:"journaled,omitempty"`
	Read      domain.Bytes    `json:"read"`
	Sound     bool            `json:"sound"`
	Problems  []DeviceProblem `json:"problems"`
	Branches  []DeviceBranch  `json:"branches,omitempty"`
	Segments  []DeviceSegment `json:"segments,omitempty"`
}

// DeviceProblem is one thing that is wrong.
type DeviceProblem struct {
	Part     string `json:"part"`
	Offset   int64  `json:"offset,omitempty"`
	Segment  int64  `json:"segment"` // -1: in none
	Volume   string `json:"volume,omitempty"`
	Snapshot string `json:"snapshot,omitempty"`
	Block    uint64 `json:"block,omitempty"`
	Version  string `json:"version,omitempty"`
	Detail   string `json:"detail"`
}

// DeviceBranch is a line of writes on a device: of a volume, a snapshot, or what clones kept.
type DeviceBranch struct {
	ID         uint32       `json:"id"`
	Parent     uint32       `json:"parent,omitempty"`
	Family     uint32       `json:"family"`
	State      string       `json:"state"` // "volume", "replica", "snapshot", "kept"
	Volume     string       `json:"volume,omitempty"`
	Snapshot   string       `json:"snapshot,omitempty"`
	Generation uint32       `json:"generation"`
	Size       domain.Bytes `json:"size"`
	Own        domain.Bytes `json:"own"`
	Sees       domain.Bytes `json:"sees"`
}

// DeviceSegment is what stands in one segment.
type DeviceSegment struct {
	ID       uint32       `json:"id"`
	Offset   int64        `json:"offset"`
	Sequence uint64       `json:"sequence"`
	Stream   string       `json:"stream,omitempty"`
	Lane     int          `json:"lane"`
	Footer   bool         `json:"footer"`
	Chunks   int          `json:"chunks"`
	Live     domain.Bytes `json:"live"`
	Metadata domain.Bytes `json:"metadata"`
}

func (t *tool) inspectCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "inspect", Short: "Show what stands on a device of a stopped node",
		Long: `Show what stands on a device. The node that uses it must be stopped; nothing is written.
DEVICE is a block device, or a file such as devices/flash0.img in a node's data folder;
NVRAM is what was given to weft serve --nvram. From the whole to the byte: device, index, index
--volume (which segment a block stands in), segment, segment N --entries (its record there).`,
		Example: "  weft inspect device /srv/weft/devices/flash0.img\n" +
			"  weft inspect index /dev/nvme1n1 -o json\n" +
			"  weft inspect index /dev/nvme1n1 --volume 1 --from 2048 --blocks 16\n" +
			"  weft inspect segment /dev/nvme1n1 12 --entries",
	}
	cmd.AddCommand(
		t.inspectDevice(),
		t.inspectIndex(), t.inspectSegment(), t.inspectJournal(),
	)
	return cmd
}

func (t *tool) inspectJournal() *cobra.Command {
	cmd := &cobra.Command{
		Use: "journal NVRAM", Short: "Show what stands in the NVRAM of a stopped node",
		Args: cobra.ExactArgs(1),
		Long: `Show what stands in a node's NVRAM: the journal of each of its devices, how much of it was
acknowledged and is not known to be on the device, and what of it does not verify. Nothing
is written. The node must be stopped. NVRAM is what weft serve --nvram takes, without a size: a
file or a device-dax. -o json lists the slots, too.`,
		Example: "  weft inspect journal /mnt/pmem/weft -o json\n  weft inspect journal /dev/dax0.0",
	}
	out := choose(cmd, "output", "o", "form of the answer", "table", "json", "yaml", "name")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		j, err := t.p.InspectJournal(args[0])
		if err != nil {
			return err
		}
		return show(cmd.OutOrStdout(), out.value, journalListing(j), t.colours(cmd))
	}
	return cmd
}

func journalListing(j JournalCheck) listing {
	l := listing{value: j, head: []column{
		{name: "DEVICE"},
		{name: "SIZE"},
		{name: "SLOTS"},
		{name: "USED"},
		{name: "RECORDS"},
		{name: "DATA"},
		{name: "PROBLEMS"},
	}}
	for _, s := range j.Shares {
		l.names = append(l.names, "device/"+s.Device)
		problems := itoa(len(s.Problems))
		if len(s.Problems) > 0 {
			problems += ": " + oneLine(s.Problems[0])
		}
		l.rows = append(l.rows, []string{
			s.Device, rounded(s.Size), itoa(s.Slots), itoa(len(s.Used)), itoa(s.Records), rounded(s.Data),
			problems,
		})
	}
	return l
}

func (t *tool) inspectDevice() *cobra.Command {
	short := "Show the device's frame: whose it is, its checkpoint, what lives"
	cmd := &cobra.Command{
		Use: "device DEVICE", Short: short, Args: cobra.ExactArgs(1), Long: short + ".",
		Example: "  weft inspect device devices/flash0.img\n" +
			"  weft inspect device devices/flash0.img -o json",
	}
	out := choose(cmd, "output", "o", "form of the answer", "table", "json", "yaml", "name")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		d, err := t.p.CheckDevice(cmd.Context(), args[0], false, func(string) {})
		if err != nil {
			return err
		}
		return show(cmd.OutOrStdout(), out.value, frameListing(d), t.colours(cmd))
	}
	return cmd
}

func frameListing(d DeviceCheck) listing {
	d.Branches, d.Segments = nil, nil
	l := listing{value: d, names: []string{"device/" + d.Device}, head: []column{
		{name: "FIELD"}, {name: "VALUE"},
	}}
	for _, f := range [][2]string{
		{"path", d.Path},
		{"device", d.Device},
		{"cluster", d.Cluster},
		{"node", d.Node},
		{"size", d.Size.String()},
		{"segments of", d.Segment.String()},
		{"lanes", itoa(d.Lanes)},
		{"anchor", fmt.Sprint(d.Anchor)},
		{"stopped in order", yesNo(d.Clean)},
		{"log behind it", fmt.Sprint(d.Replayed, " chunks")},
		{"live", rounded(d.Live)},
		{"saved by compression", rounded(d.Saved)},
		{"left by a crash", rounded(d.Garbage)},
		{"journal in NVRAM", journalText(d)},
		{"held for copies", fmt.Sprint(d.Held, " records, ", rounded(d.HeldOnly), " for them alone")},
		{"problems", itoa(len(d.Problems))},
	} {
		l.rows = append(l.rows, []string{f[0], f[1]})
	}
	return l
}

func journalText(d DeviceCheck) string {
	if d.Journal == "" {
		return "none"
	}
	return d.Journal + ", " + rounded(d.Journaled) + " known to be there only"
}

func branchListing(d DeviceCheck) listing {
	l := listing{value: d.Branches, head: []column{
		{name: "BRANCH"},
		{name: "ON"},
		{name: "FAMILY"},
		{name: "STATE"},
		{name: "GEN"},
		{name: "SIZE"},
		{name: "OWN"},
		{name: "SEES"},
		{name: "VOLUME"},
		{name: "SNAPSHOT"},
	}}
	for _, b := range d.Branches {
		l.names = append(l.names, "branch/"+fmt.Sprint(b.ID))
		l.rows = append(l.rows, []string{
			fmt.Sprint(b.ID), fmt.Sprint(b.Parent), fmt.Sprint(b.Family), b.State, fmt.Sprint(b.Generation),
			b.Size.String(), rounded(b.Own), rounded(b.Sees), first(b.Volume, "-"), first(b.Snapshot, "-"),
		})
	}
	return l
}

func segmentListing(d DeviceCheck) listing {
	l := listing{value: d.Segments, head: []column{
		{name: "SEGMENT"},
		{name: "OFFSET"},
		{name: "LIFE"},
		{name: "STREAM"},
		{name: "LANE"},
		{name: "FOOTER"},
		{name: "CHUNKS"},
		{name: "LIVE"},
		{name: "METADATA"},
	}}
	for _, s := range d.Segments {
		l.names = append(l.names, "segment/"+fmt.Sprint(s.ID))
		l.rows = append(l.rows, []string{
			fmt.Sprint(s.ID), itoa(s.Offset), fmt.Sprint(s.Sequence), first(s.Stream, "-"), itoa(s.Lane),
			yesNo(s.Footer), itoa(s.Chunks), rounded(s.Live), rounded(s.Metadata),
		})
	}
	return l
}

func (t *tool) fsckCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "fsck DEVICE", Short: "Check a device of a stopped node, without writing to it",
		Args: cobra.ExactArgs(1),
		Long: `Check a device by a second implementation, which shares only the format with the engine:
replay the log, rebuild the index, count what lives, and compare it with the checkpoint and
with every block's checksum. Nothing is written, and nothing is repaired: an engine that
opens the device cuts a torn log itself, and a damaged block reads as an error until it is
restored from a copy.

The node must be stopped: a device that another process uses is refused. It needs about 40
bytes of memory for each live block of 4 KiB. What stands in NVRAM only is not read, and
said to be there: weft inspect journal reads that. Exit code 0 when the device is sound, 4 when
something is wrong.`,
		Example: "  weft fsck /srv/weft/devices/flash0.img\n" +
			"  weft fsck /dev/nvme1n1 --data=false -o json",
	}
	data := cmd.Flags().Bool("data", true, "read every live block and compare its checksum")
	form := choose(cmd, "output", "o", "form of the answer", "text", "json", "yaml")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		say := func(string) {}
		if terminal(cmd.ErrOrStderr()) {
			say = progress(cmd.ErrOrStderr())
		}
		d, err := t.p.CheckDevice(cmd.Context(), args[0], *data, say)
		if err != nil {
			return err
		}
		if form.value == "text" {
			_, err = io.WriteString(cmd.OutOrStdout(), verdict(d))
		} else {
			d.Segments = nil
			err = show(cmd.OutOrStdout(), form.value, listing{value: d}, false)
		}
		if err == nil && !d.Sound {
			err = &degraded{fmt.Sprintf("%s: %d problems", d.Path, len(d.Problems))}
		}
		return err
	}
	return cmd
}

// progressEvery bounds how often a person at a terminal is told.
const progressEvery = time.Second

// progress writes over one line.
func progress(w io.Writer) func(string) {
	var last time.Time
	return func(s string) {
		if now := time.Now(); now.Sub(last) >= progressEvery {
			last = now
			_, _ = fmt.Fprintf(w, "\r%s ", s)
		}
	}
}

// verdict tells a check in words.
func verdict(d DeviceCheck) string {
	var b strings.Builder
	b.WriteString(problemLines(d.Problems))
	sound := "is sound"
	if !d.Sound {
		sound = fmt.Sprintf("has %d problems", len(d.Problems))
	}
	fmt.Fprintf(&b, "device %s %s: %s live, %s read, %d chunks of log replayed\n", d.Device, sound,
		rounded(d.Live), rounded(d.Read), d.Replayed)
	if d.Journal != "" {
		fmt.Fprintf(&b, "newer writes may stand in journal %s of its node's NVRAM (of %s it is known); "+
			"it is not checked here: weft inspect journal NVRAM\n", d.Journal, rounded(d.Journaled))
	}
	return b.String()
}

// problemLines tells problems, each in a line.
func problemLines(list []DeviceProblem) string {
	var b strings.Builder
	for _, p := range list {
		of := ""
		if p.Volume != "" {
			of = fmt.Sprintf(", block %d of volume %s", p.Block, p.Volume)
		}
		if p.Snapshot != "" {
			of += ", snapshot " + p.Snapshot
		}
		if p.Version != "" {
			of += ", version " + p.Version
		}
		fmt.Fprintf(&b, "%s at %d%s: %s\n", p.Part, p.Offset, of, oneLine(p.Detail))
	}
	return b.String()
}
