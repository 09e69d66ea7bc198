// Package intent holds what operators wish for: templates with immutable versions, and application
// instances with their volumes and exports. It records wishes alone. What became of them stands on
// the streams of the volumes, written by the reconciler.
package intent

import (
	"fmt"
	"time"

	"weft/domain"
	"weft/domain/snapshot"
)

// Intent is what an operator says a volume needs. Zero means no demand: a later layer, or the
// product's default, decides. Which layer won stands in the resolved policy set.
type Intent struct {
	Performance  Performance  `msgpack:"performance,omitempty"`
	Availability Availability `msgpack:"availability,omitempty"`
	Placement    Placement    `msgpack:"placement,omitempty"`
	Security     Security     `msgpack:"security,omitempty"`
	Lifecycle    Lifecycle    `msgpack:"lifecycle,omitempty"`
	Protection   Protection   `msgpack:"protection,omitempty"`
	Cost         Cost         `msgpack:"cost,omitempty"`
}

// BurstMax is the longest burst of an intent, in seconds.
const BurstMax = 3600

// Performance bounds a volume's speed. What is the least holds while its device is short, as far as
// that gives so much.
type Performance struct {
	LatencyP99US int64 `msgpack:"latency_p99_us,omitempty"` // microseconds
	IOPSMin      int64 `msgpack:"iops_min,omitempty"`
	IOPSMax      int64 `msgpack:"iops_max,omitempty"`
	BWMaxBPS     int64 `msgpack:"bw_max_bps,omitempty"` // bytes per second
	BWMinBPS     int64 `msgpack:"bw_min_bps,omitempty"` // bytes per second
	BurstS       int64 `msgpack:"burst_s,omitempty"`    // seconds at the maxima that may come at once
}

// Availability says how many copies there are and what they must survive.
type Availability struct {
	Replicas int64     `msgpack:"replicas,omitempty"` // 1 to 5
	Survive  []Survive `msgpack:"survive,omitempty"`
	Ack      string    `msgpack:"ack,omitempty"` // "all"; "quorum" is refused
}

// Survive asks for the loss of Count domains of a level to be survived.
type Survive struct {
	Domain string `msgpack:"domain,omitempty"`
	Count  int64  `msgpack:"count,omitempty"`
}

// Placement says where the data may stand.
type Placement struct {
	Hot      string `msgpack:"hot,omitempty"`      // "nvram", "flash"
	Capacity string `msgpack:"capacity,omitempty"` // "flash", "hdd", "hybrid"
}

// Security says how the data is reached, and whether it is encrypted where it rests. A volume is
// encrypted from its creation on, or never.
type Security struct {
	Authn      string `msgpack:"authn,omitempty"`      // "none", "chap", "mutual"
	Encryption string `msgpack:"encryption,omitempty"` // "on", "off"
}

// Lifecycle orders a volume among others and bounds its end.
type Lifecycle struct {
	Priority int64 `msgpack:"priority,omitempty"` // 1 to 100; 0: the default
}

// Cost says what the room of the data may be paid with.
type Cost struct {
	// Compression: "off", "s2", "zstd", or "auto", which takes zstd for what stays. It holds for what
	// is written from then on.
	Compression string `msgpack:"compression,omitempty"`
}

// Protection says how the past of a volume is kept.
type Protection struct {
	Snapshots []SnapshotRule `msgpack:"snapshots,omitempty"`
}

// SnapshotRule asks for a snapshot every so many seconds and for the last Keep of them.
type SnapshotRule struct {
	EveryS int64 `msgpack:"every_s,omitempty"` // whole minutes
	Keep   int64 `msgpack:"keep,omitempty"`
}

// Every gives the rule's interval.
func (r SnapshotRule) Every() time.Duration { return time.Duration(r.EveryS) * time.Second }

func (p Protection) check(c *domain.Checker, at string) {
	c.Check(len(p.Snapshots) <= snapshot.RulesMax, at, "%d rules: at most %d", len(p.Snapshots),
		snapshot.RulesMax)
	for i, r := range p.Snapshots {
		path := fmt.Sprintf("%s[%d]", at, i)
		c.Check(r.EveryS >= int64(snapshot.EveryMin/time.Second) &&
			r.EveryS <= int64(snapshot.EveryMax/time.Second) && r.EveryS%60 == 0,
			path+".every", "%d seconds: whole minutes from 1m to 366d", r.EveryS)
		c.Check(r.Keep >= 1 && r.Keep <= snapshot.KeepMax, path+".keep", "%d is not 1 to %d", r.Keep,
			snapshot.KeepMax)
		for _, o := range p.Snapshots[:i] {
			c.Check(o.EveryS != r.EveryS, path+".every", "%s is given twice",
				snapshot.FormatEvery(r.Every()))
		}
	}
}

// Check lists everything wrong with an intent, each with its path below at.
func (i Intent) Check(c *domain.Checker, at string) {
	for _, f := range []struct {
		name string
		v    int64
	}{
		{"performance.latency_p99_us", i.Performance.LatencyP99US},
		{"performance.iops_min", i.Performance.IOPSMin},
		{"performance.iops_max", i.Performance.IOPSMax},
		{"performance.bw_min_bps", i.Performance.BWMinBPS},
		{"performance.bw_max_bps", i.Performance.BWMaxBPS},
		{"performance.burst_s", i.Performance.BurstS},
	} {
		c.Check(f.v >= 0, at+"."+f.name, "%d is negative", f.v)
	}
	p, a := i.Performance, i.Availability
	c.Check(p.IOPSMax == 0 || p.IOPSMin <= p.IOPSMax, at+".performance.iops_min",
		"%d is above iops_max %d", p.IOPSMin, p.IOPSMax)
	c.Check(p.BWMaxBPS == 0 || p.BWMinBPS <= p.BWMaxBPS, at+".performance.bw_min_bps",
		"%d is above bw_max_bps %d", p.BWMinBPS, p.BWMaxBPS)
	c.Check(p.BurstS <= BurstMax, at+".performance.burst_s", "%d is above %d", p.BurstS, BurstMax)
	c.Check(a.Replicas >= 0 && a.Replicas <= 5, at+".availability.replicas",
		"%d is not 1 to 5", a.Replicas)
	for n, s := range a.Survive {
		path := fmt.Sprintf("%s.availability.survive[%d]", at, n)
		c.Check(s.Count >= 1, path+".count", "%d is below 1", s.Count)
		c.Check(s.Domain != "", path+".domain", "is missing")
		c.Check(a.Replicas == 0 || s.Count < a.Replicas, path,
			"%d copies cannot survive the loss of %d %ss", a.Replicas, s.Count, s.Domain)
	}
	c.Check(a.Ack == "" || a.Ack == "all", at+".availability.ack",
		"%q: every live copy acknowledges; only \"all\" is offered", a.Ack)
	oneOf(c, at+".placement.hot", i.Placement.Hot, "nvram", "flash")
	oneOf(c, at+".placement.capacity", i.Placement.Capacity, "flash", "hdd", "hybrid")
	oneOf(c, at+".security.authn", i.Security.Authn, "none", "chap", "mutual")
	oneOf(c, at+".security.encryption", i.Security.Encryption, "on", "off")
	c.Check(i.Lifecycle.Priority >= 0 && i.Lifecycle.Priority <= 100, at+".lifecycle.priority",
		"%d is not 0 to 100", i.Lifecycle.Priority)
	oneOf(c, at+".cost.compression", i.Cost.Compression, "off", "s2", "zstd", "auto")
	i.Protection.check(c, at+".protection.snapshots")
}

func oneOf(c *domain.Checker, path, v string, allowed ...string) {
	ok := v == ""
	for _, a := range allowed {
		ok = ok || v == a
	}
	c.Check(ok, path, "%q is not one of %q", v, allowed)
}
