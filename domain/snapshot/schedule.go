package snapshot

import (
	"encoding/binary"
	"slices"
	"strconv"
	"time"

	"weft/domain"
)

// A scheduled cut is named by what it is: volume, rule and tick give its id, and the id gives rule
// and tick back. So a tick is cut once however often it is ordered, any node that lists the
// snapshots of an engine knows which are whose, and no table of them is kept anywhere.
//
//	byte 0        6  7   8   9   10                16
//	    +---------+--+---+---+---+------------------+
//	    | ms      |8m| m | 80| m | hash of the rest |   ms: of the tick, since 1970; m: 20 bits of
//	    +---------+--+---+---+---+------------------+   minutes between two cuts, high bits first
//
// The hash is over volume, tick and minutes: an id that was drawn otherwise passes for a scheduled
// one once in 2^48.

// Limits of a schedule.
const (
	EveryMin = time.Minute
	EveryMax = 366 * 24 * time.Hour
	KeepMax  = 256
	RulesMax = 8
)

// Rule says how often a volume is cut, and how many of these cuts are kept.
type Rule struct {
	Every time.Duration // whole minutes
	Keep  int
}

// Scheduled is one cut of a schedule.
type Scheduled struct {
	Every time.Duration
	Tick  time.Time // when it was due; it may have been taken later
}

// ID gives the name of a volume's cut.
func (c Scheduled) ID(v domain.VolumeID) domain.SnapshotID {
	ms, minutes := c.Tick.UnixMilli(), uint32(c.Every/time.Minute)
	h := domain.DeriveUUID(v.UUID, "scheduled", strconv.FormatInt(ms, 10),
		strconv.FormatUint(uint64(minutes), 10))
	var u domain.UUID
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(ms))
	copy(u[:6], b[2:])
	u[6], u[7] = 0x80|byte(minutes>>16), byte(minutes>>8)
	u[8], u[9] = 0x80, byte(minutes)
	copy(u[10:], h[:6])
	return domain.SnapshotID{UUID: u}
}

// ScheduledOf tells whether a snapshot of a volume is a schedule's, and of which tick.
func ScheduledOf(v domain.VolumeID, id domain.SnapshotID) (Scheduled, bool) {
	var b [8]byte
	copy(b[2:], id.UUID[:6])
	minutes := uint32(id.UUID[6]&15)<<16 | uint32(id.UUID[7])<<8 | uint32(id.UUID[9])
	c := Scheduled{
		Every: time.Duration(minutes) * time.Minute,
		Tick:  time.UnixMilli(int64(binary.BigEndian.Uint64(b[:]))).UTC(),
	}
	return c, minutes > 0 && c.ID(v) == id
}

// Name is how people see a scheduled cut: "every-1h-20261126-0300".
func (c Scheduled) Name() string {
	return "every-" + FormatEvery(c.Every) + "-" + c.Tick.UTC().Format("20060102-1504")
}

// Due gives the cut that a rule wants now, given those that are there: the last tick that has
// passed, unless it or a later one is there already. Ticks that were missed are made up by one
// cut, never by a burst, and none is due for a time before the volume was. next is when to ask
// again.
func (r Rule) Due(born, now time.Time, have []Scheduled) (c Scheduled, due bool, next time.Time) {
	tick := now.UTC().Truncate(r.Every)
	next = tick.Add(r.Every)
	due = tick.After(born)
	for _, h := range have {
		if h.Every == r.Every && !h.Tick.Before(tick) {
			due = false
		}
	}
	return Scheduled{r.Every, tick}, due, next
}

// Expired gives the cuts of a rule beyond those it keeps, the eldest first.
func (r Rule) Expired(have []Scheduled) []Scheduled {
	var own []Scheduled
	for _, h := range have {
		if h.Every == r.Every {
			own = append(own, h)
		}
	}
	slices.SortFunc(own, func(a, b Scheduled) int { return a.Tick.Compare(b.Tick) })
	return own[:max(0, len(own)-r.Keep)]
}

// units of an interval as people write it.
var units = []struct {
	name string
	d    time.Duration
}{
	{"w", 7 * 24 * time.Hour},
	{"d", 24 * time.Hour},
	{"h", time.Hour},
	{"m", time.Minute},
}

// FormatEvery gives an interval in the largest unit that divides it, such as "15m", "1h" or "1d".
func FormatEvery(d time.Duration) string {
	for _, u := range units {
		if d > 0 && d%u.d == 0 {
			return strconv.FormatInt(int64(d/u.d), 10) + u.name
		}
	}
	return d.String()
}

// ParseEvery reads an interval such as "15m", "1h", "1d" or "1w". It returns an error of kind
// Invalid for anything else and for one beyond the limits.
func ParseEvery(s string) (time.Duration, error) {
	for _, u := range units {
		n, err := strconv.ParseUint(s[:max(0, len(s)-1)], 10, 32)
		if err != nil || s[len(s)-1:] != u.name || n == 0 {
			continue
		}
		if n > uint64(EveryMax/u.d) {
			break
		}
		return time.Duration(n) * u.d, nil
	}
	return 0, domain.Errorf(domain.Invalid,
		"%q is no interval of snapshots: a number and m, h, d or w, from 1m to 366d", clip(s))
}

func clip(s string) string { return s[:min(len(s), 32)] }
