package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weft/adapters/client"
	"weft/domain/intent"
	"weft/domain/snapshot"
)

// demands are the flags by which a template or an application says what it wants.
type demands struct {
	cmd      *cobra.Command
	in       client.Intent
	perf     client.Performance
	avail    client.Availability
	place    client.Placement
	protect  client.Protection
	security client.Security
	cost     client.Cost
	priority int64
	survive  []string
	rules    []string
}

func demandFlags(cmd *cobra.Command) *demands {
	d := &demands{cmd: cmd}
	f := cmd.Flags()
	f.Int64Var(&d.avail.Replicas, "replicas", 0, "copies of every block, 1 to 5")
	f.StringArrayVar(&d.survive, "survive", nil,
		"what may be lost without losing data, such as node=1; repeatable")
	f.Int64Var(&d.perf.IOPSMin, "iops-min", 0,
		"operations per second to reserve while the device is short")
	f.Int64Var(&d.perf.IOPSMax, "iops-max", 0, "operations per second never to exceed")
	f.Int64Var(&d.perf.LatencyP99US, "latency-p99-us", 0, "wished 4 KiB latency, microseconds")
	f.Int64Var(&d.perf.BWMinBPS, "bandwidth-min", 0,
		"bytes per second to reserve while the device is short")
	f.Int64Var(&d.perf.BWMaxBPS, "bandwidth-max", 0, "bytes per second never to exceed")
	f.Int64Var(&d.perf.BurstS, "burst-s", 0,
		"seconds at the maxima that may come at once after a pause; 1 where nothing is said")
	f.StringVar(&d.place.Hot, "hot", "", "media for hot data: nvram or flash")
	f.StringVar(&d.place.Capacity, "capacity", "",
		"media for all data: flash, hdd, or hybrid, which is a disk behind flash")
	f.StringVar(&d.security.Authn, "authn", "",
		"how iSCSI hosts prove themselves: none, chap or mutual")
	f.StringVar(&d.security.Encryption, "encryption", "",
		"whether new volumes are encrypted where they rest: on or off; it cannot be changed")
	f.StringVar(&d.cost.Compression, "compression", "",
		"of what is written from now on: off, s2, zstd, or auto, which takes zstd for what stays")
	f.Int64Var(&d.priority, "priority", 0, "1 to 100: its part of a device that is short; 50 is usual")
	f.StringArrayVar(&d.rules, "snapshots", nil,
		"a snapshot every so often and how many to keep, such as 1h=24 or 1d=7; repeatable")
	complete(cmd, "hot", "nvram", "flash")
	complete(cmd, "capacity", "flash", "hdd", "hybrid")
	complete(cmd, "authn", "none", "chap", "mutual")
	complete(cmd, "encryption", "on", "off")
	complete(cmd, "compression", "off", "s2", "zstd", "auto")
	return d
}

// intent gives what the flags said; nil when they said nothing.
func (d *demands) intent() (*client.Intent, error) {
	for _, s := range d.survive {
		what, n, ok := strings.Cut(s, "=")
		count, err := strconv.ParseInt(n, 10, 64)
		if !ok || err != nil {
			return nil, &usage{fmt.Errorf("--survive %q: write it as node=1", s), d.cmd.CommandPath()}
		}
		d.avail.Survive = append(d.avail.Survive, client.Survive{Domain: what, Count: count})
	}
	for _, r := range d.rules {
		every, n, ok := strings.Cut(r, "=")
		keep, err := strconv.ParseInt(n, 10, 64)
		if _, bad := snapshot.ParseEvery(every); !ok || err != nil || bad != nil {
			return nil, &usage{
				fmt.Errorf("--snapshots %q: write it as 1h=24, with m, h, d or w", r), d.cmd.CommandPath(),
			}
		}
		d.protect.Snapshots = append(d.protect.Snapshots, client.SnapshotRule{Every: every, Keep: keep})
	}
	some := false
	for _, name := range []string{
		"replicas", "survive", "iops-min", "iops-max", "latency-p99-us", "bandwidth-min",
		"bandwidth-max", "burst-s", "hot", "capacity", "authn", "encryption",
		"compression", "priority", "snapshots",
	} {
		some = some || d.cmd.Flags().Changed(name)
	}
	if !some {
		return nil, nil
	}
	in := d.in
	if d.perf != (client.Performance{}) {
		in.Performance = &d.perf
	}
	if d.avail.Replicas != 0 || len(d.avail.Survive) > 0 {
		in.Availability = &d.avail
	}
	if d.place != (client.Placement{}) {
		in.Placement = &d.place
	}
	if d.security != (client.Security{}) {
		in.Security = &d.security
	}
	if d.cost != (client.Cost{}) {
		in.Cost = &d.cost
	}
	if d.priority != 0 {
		in.Lifecycle = &client.Lifecycle{Priority: d.priority}
	}
	if len(d.protect.Snapshots) > 0 {
		in.Protection = &d.protect
	}
	return &in, nil
}

// domainIntent is an intent as the domain judges it.
func domainIntent(i *client.Intent) intent.Intent {
	var d intent.Intent
	if i == nil {
		return d
	}
	if p := i.Performance; p != nil {
		d.Performance = intent.Performance{
			LatencyP99US: p.LatencyP99US, IOPSMin: p.IOPSMin, IOPSMax: p.IOPSMax, BWMinBPS: p.BWMinBPS,
			BWMaxBPS: p.BWMaxBPS, BurstS: p.BurstS,
		}
	}
	if a := i.Availability; a != nil {
		d.Availability.Replicas, d.Availability.Ack = a.Replicas, a.Ack
		for _, s := range a.Survive {
			d.Availability.Survive = append(d.Availability.Survive, intent.Survive(s))
		}
	}
	if p := i.Placement; p != nil {
		d.Placement = intent.Placement{Hot: p.Hot, Capacity: p.Capacity}
	}
	if s := i.Security; s != nil {
		d.Security = intent.Security{Authn: s.Authn, Encryption: s.Encryption}
	}
	if c := i.Cost; c != nil {
		d.Cost = intent.Cost{Compression: c.Compression}
	}
	if l := i.Lifecycle; l != nil {
		d.Lifecycle.Priority = l.Priority
	}
	if p := i.Protection; p != nil {
		for _, r := range p.Snapshots {
			every, err := snapshot.ParseEvery(r.Every)
			if err != nil {
				every = 0 // refused with all else that is wrong
			}
			d.Protection.Snapshots = append(d.Protection.Snapshots, intent.SnapshotRule{
				EveryS: int64(every / time.Second), Keep: r.Keep,
			})
		}
	}
	return d
}
