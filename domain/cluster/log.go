package cluster

import (
	"cmp"
	"slices"
	"strconv"

	"weft/domain"
)

// SegmentArchived says that a range of the log stands in the archives of the holders, each of which
// proved it on its disk, and leaves the database.
type SegmentArchived struct {
	First   uint64          `msgpack:"first,omitempty"` // n of its first record
	Last    domain.Position `msgpack:"last,omitempty"`
	Root    []byte          `msgpack:"root,omitempty"` // SHA-256 over the segment
	Holders []string        `msgpack:"holders,omitempty"`
}

// SettingChanged gives a setting of the cluster another value.
type SettingChanged struct {
	Key string `msgpack:"key,omitempty"`
	Old string `msgpack:"old,omitempty"`
	New string `msgpack:"new,omitempty"`
}

// EventType implements domain.Event.
func (SegmentArchived) EventType() string { return "SegmentArchived" }

// EventType implements domain.Event.
func (SettingChanged) EventType() string { return "SettingChanged" }

// ArchivedMax is how many segments one ArchiveSegments names.
const ArchivedMax = 100

// ArchiveSegments records what is archived, in order. What was recorded before is left out.
type ArchiveSegments struct {
	Cluster  domain.ClusterID
	Segments []SegmentArchived
}

// ChangeSetting gives a setting a value; empty means its default.
type ChangeSetting struct {
	Cluster    domain.ClusterID
	Key, Value string
}

// CommandType implements domain.Command.
func (ArchiveSegments) CommandType() string { return "ArchiveSegments" }

// Stream implements domain.Command.
func (c ArchiveSegments) Stream() domain.StreamID { return Stream(c.Cluster) }

// CommandType implements domain.Command.
func (ChangeSetting) CommandType() string { return "ChangeSetting" }

// Stream implements domain.Command.
func (c ChangeSetting) Stream() domain.StreamID { return Stream(c.Cluster) }

// SettingLogWindow is how many events the log's database holds before the oldest leave it.
const SettingLogWindow = "log.window"

// The bounds of the log's window. Below the least, an archive that waits for a node that is away
// for a moment would already count as late.
const (
	LogWindowDefault = 200_000
	LogWindowMin     = 40_000
	LogWindowMax     = 10_000_000
)

// Setting is one setting of the cluster.
type Setting struct {
	Key     string
	Value   string
	Default string
	About   string
}

// settings are those there are, in order of key.
func settings() []Setting {
	return []Setting{{
		Key: SettingLogWindow, Default: strconv.Itoa(LogWindowDefault),
		About: "events that the log's database holds before the oldest are in the archives alone",
	}}
}

// Settings gives every setting with its value, where changed holds those that were changed.
func Settings(changed []SettingChanged) []Setting {
	list := settings()
	for i := range list {
		list[i].Value = list[i].Default
		for _, c := range changed {
			if c.Key == list[i].Key && c.New != "" {
				list[i].Value = c.New
			}
		}
	}
	return list
}

// LogWindow gives the log's window among the changed settings.
func LogWindow(changed []SettingChanged) uint64 {
	for _, s := range Settings(changed) {
		if s.Key == SettingLogWindow {
			if n, err := strconv.ParseUint(s.Value, 10, 64); err == nil {
				return n
			}
		}
	}
	return LogWindowDefault
}

// WithSetting keeps the latest change of each setting, in order of key. It shares no memory with
// before.
func WithSetting(before []SettingChanged, ev SettingChanged) []SettingChanged {
	after := slices.Clone(before)
	i, found := slices.BinarySearchFunc(after, ev, func(a, b SettingChanged) int {
		return cmp.Compare(a.Key, b.Key)
	})
	if found {
		after[i] = ev
		return after
	}
	return slices.Insert(after, i, ev)
}

func (s State) decideArchive(c ArchiveSegments) ([]domain.Event, error) {
	var k domain.Checker
	k.Check(s.Exists, "cluster", "not there")
	k.Check(len(c.Segments) <= ArchivedMax, "segments", "more than %d", ArchivedMax)
	var out []domain.Event
	end := s.Archived.N()
	for i := range c.Segments {
		seg := c.Segments[i]
		k.Check(len(seg.Root) == 32, "segments", "a root is no SHA-256")
		k.Check(len(seg.Holders) > 0, "segments", "nobody holds %s", seg.Last)
		if seg.Last.N() <= end {
			continue
		}
		k.Check(seg.First == end+1 && seg.Last.N() >= seg.First, "segments",
			"%d to %d does not follow %d", seg.First, seg.Last.N(), end)
		end = seg.Last.N()
		out = append(out, &seg)
	}
	return out, k.Err("cluster.ArchiveSegments", "")
}

func (s State) decideSetting(c ChangeSetting) ([]domain.Event, error) {
	list := Settings(s.Settings)
	i := slices.IndexFunc(list, func(x Setting) bool { return x.Key == c.Key })
	if i < 0 {
		return nil, domain.Errorf(domain.NotFound, "no setting %q", c.Key)
	}
	old, value := list[i].Value, cmp.Or(c.Value, list[i].Default)
	if c.Key == SettingLogWindow {
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil || n < LogWindowMin || n > LogWindowMax {
			return nil, domain.Errorf(domain.Invalid, "%s: %q is no number from %d to %d", c.Key, value,
				LogWindowMin, LogWindowMax)
		}
		value = strconv.FormatUint(n, 10)
	}
	if value == old {
		return nil, nil
	}
	return []domain.Event{&SettingChanged{Key: c.Key, Old: old, New: value}}, nil
}
