package cluster

import (
	"testing"

	"weft/domain"
)

func segment(first, last uint64) SegmentArchived {
	return SegmentArchived{
		First: first, Last: domain.PositionOf(0, last), Root: make([]byte, 32), Holders: []string{"a"},
	}
}

// Segments are recorded in order, each once, without a gap, and only if somebody holds them.
func TestArchiveSegments(t *testing.T) {
	s := State{Exists: true, Archived: 20}
	for name, c := range map[string]struct {
		list []SegmentArchived
		want int // events; -1: refused
	}{
		"next":           {[]SegmentArchived{segment(21, 40), segment(41, 60)}, 2},
		"again":          {[]SegmentArchived{segment(1, 20)}, 0},
		"again and next": {[]SegmentArchived{segment(1, 20), segment(21, 40)}, 1},
		"gap":            {[]SegmentArchived{segment(22, 40)}, -1},
		"gap inside":     {[]SegmentArchived{segment(21, 40), segment(42, 60)}, -1},
		"nobody":         {[]SegmentArchived{{First: 21, Last: 40, Root: make([]byte, 32)}}, -1},
		"no root":        {[]SegmentArchived{{First: 21, Last: 40, Holders: []string{"a"}}}, -1},
		"too many":       {make([]SegmentArchived, ArchivedMax+1), -1},
	} {
		events, err := decideCluster(s, domain.Request{Command: ArchiveSegments{Segments: c.list}})
		if c.want < 0 && err == nil || c.want >= 0 && (err != nil || len(events) != c.want) {
			t.Errorf("%s: %d events, %v", name, len(events), err)
		}
	}
}

// A setting changes within its bounds, once, and goes back to its default; others are not there.
func TestSettings(t *testing.T) {
	s := State{Exists: true}
	for _, c := range []struct {
		key, value string
		kind       domain.Kind // 0: accepted
		window     uint64
	}{
		{SettingLogWindow, "40000", 0, 40_000},
		{SettingLogWindow, "39999", domain.Invalid, 40_000},
		{SettingLogWindow, "10000000", 0, 10_000_000},
		{SettingLogWindow, "10000001", domain.Invalid, 10_000_000},
		{SettingLogWindow, "many", domain.Invalid, 10_000_000},
		{"log.nothing", "1", domain.NotFound, 10_000_000},
		{SettingLogWindow, "", 0, LogWindowDefault},
	} {
		req := domain.Request{Command: ChangeSetting{Key: c.key, Value: c.value}}
		events, err := decideCluster(s, req)
		if c.kind != 0 && domain.KindOf(err) != c.kind ||
			c.kind == 0 && (err != nil || len(events) != 1) {
			t.Errorf("%s=%s: %v, %v", c.key, c.value, events, err)
		}
		for _, ev := range events {
			s = Aggregate().Evolve(s, ev)
		}
		if w := LogWindow(s.Settings); w != c.window {
			t.Errorf("%s=%s: window %d, want %d", c.key, c.value, w, c.window)
		}
		if again, _ := decideCluster(s, req); c.kind == 0 && len(again) > 0 {
			t.Errorf("%s=%s twice: %v", c.key, c.value, again)
		}
	}
}
