package main

import (
	"context"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"weft/backends/watched"
	"weft/dataplane/agent"
	"weft/dataplane/engine"
	"weft/dataplane/qos"
	"weft/domain"
	"weft/domain/command"
	"weft/eventstore/quorum"
)

// collector reads the node's counters when it is scraped, so that no I/O pays for a metric.
type collector struct{ b *backend }

// metric describes one number of a device.
type metric struct {
	name, help string
	counter    bool
	get        func(engine.Stats) int64
}

// deviceMetrics lists what a device tells.
func deviceMetrics() []metric {
	return []metric{
		{
			"weft_device_live_bytes", "Bytes of live blocks.", false,
			func(s engine.Stats) int64 { return s.LiveBytes },
		},
		{
			"weft_device_garbage_bytes", "Bytes in segments that are not free and do not live.", false,
			func(s engine.Stats) int64 { return s.GarbageBytes },
		},
		{
			"weft_device_usable_bytes", "Most live bytes that are admitted.", false,
			func(s engine.Stats) int64 { return s.UsableBytes },
		},
		{
			"weft_device_segments", "Segments of the device.", false,
			func(s engine.Stats) int64 { return s.Segments },
		},
		{
			"weft_device_free_segments", "Segments that may be opened.", false,
			func(s engine.Stats) int64 { return s.FreeSegments },
		},
		{
			"weft_device_index_bytes", "Memory of the index.", false,
			func(s engine.Stats) int64 { return s.IndexBytes },
		},
		{
			"weft_device_log_since_checkpoint_bytes", "Log that a recovery would replay.", false,
			func(s engine.Stats) int64 { return s.SinceCheckpoint },
		},
		{
			"weft_device_records_total", "Records accepted.", true,
			func(s engine.Stats) int64 { return s.Records },
		},
		{
			"weft_device_user_bytes_total", "Bytes that hosts wrote.", true,
			func(s engine.Stats) int64 { return s.UserBytes },
		},
		{
			"weft_device_log_bytes_total", "Bytes written to the log.", true,
			func(s engine.Stats) int64 { return s.LogBytes },
		},
		{
			"weft_device_moved_bytes_total", "Bytes moved by the cleaner.", true,
			func(s engine.Stats) int64 { return s.MovedBytes },
		},
		{
			"weft_device_metadata_bytes_total", "Bytes written for checkpoints.", true,
			func(s engine.Stats) int64 { return s.MetaBytes },
		},
		{
			"weft_device_chunks_total", "Group commits.", true,
			func(s engine.Stats) int64 { return s.Chunks },
		},
		{
			"weft_device_checkpoints_total", "Checkpoints taken.", true,
			func(s engine.Stats) int64 { return s.Checkpoints },
		},
		{
			"weft_device_corruptions_total", "Blocks found corrupt.", true,
			func(s engine.Stats) int64 { return s.Corruptions },
		},
	}
}

// compressionMetrics lists what a device tells of compressed blocks.
func compressionMetrics() []metric {
	return []metric{
		{
			"weft_device_saved_bytes", "By which compression makes live bytes smaller.", false,
			func(s engine.Stats) int64 { return s.SavedBytes },
		},
		{
			"weft_device_compressed_blocks_total", "Blocks of 4 KiB that became smaller.", true,
			func(s engine.Stats) int64 { return s.PackedBlocks },
		},
		{
			"weft_device_compressed_bytes_total", "To what size, in bytes.", true,
			func(s engine.Stats) int64 { return s.PackedBytes },
		},
	}
}

// journalMetrics lists what a device tells of its NVRAM journal, where it has one.
func journalMetrics() []metric {
	return []metric{
		{
			"weft_device_journal_bytes", "Size of the device's NVRAM journal.", false,
			func(s engine.Stats) int64 { return s.JournalBytes },
		},
		{
			"weft_device_journal_used_bytes", "What of it is not free.", false,
			func(s engine.Stats) int64 { return s.JournalUsed },
		},
		{
			"weft_device_destaged_bytes_total", "Bytes that went from the journal to the log.", true,
			func(s engine.Stats) int64 { return s.DestagedBytes },
		},
		{
			"weft_device_journal_delayed_total", "Records slowed down, the journal being full.", true,
			func(s engine.Stats) int64 { return s.JournalDelayed },
		},
	}
}

// pairMetrics are those of a pair of flash and disk.
func pairMetrics() []metric {
	return []metric{
		{
			"weft_device_disk_bytes", "Size of the disk behind the device's flash.", false,
			func(s engine.Stats) int64 { return s.DiskBytes },
		},
		{
			"weft_device_disk_live_bytes", "Bytes that live there.", false,
			func(s engine.Stats) int64 { return s.DiskLiveBytes },
		},
		{
			"weft_device_flash_fill_permille", "How full the flash is, in parts of a thousand.", false,
			func(s engine.Stats) int64 { return s.FlashFill },
		},
		{
			"weft_device_cooled_bytes_total", "Bytes that went from the flash to the disk.", true,
			func(s engine.Stats) int64 { return s.CooledBytes },
		},
		{
			"weft_device_promoted_bytes_total", "Bytes that came back, being read again.", true,
			func(s engine.Stats) int64 { return s.PromotedBytes },
		},
		{
			"weft_device_copied_bytes_total", "Bytes of the disk that were copied to free flash.", true,
			func(s engine.Stats) int64 { return s.CopiedBytes },
		},
		{
			"weft_device_copy_reads_total", "Reads that copies on the flash served.", true,
			func(s engine.Stats) int64 { return s.CopyReads },
		},
		{
			"weft_device_flash_delayed_total", "Chunks kept back, the flash being full.", true,
			func(s engine.Stats) int64 { return s.FlashDelayed },
		},
	}
}

// Describe implements prometheus.Collector: the set depends on what is served.
func (*collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	send := func(counter bool, v int64, name, help string, labels, values []string) {
		t := prometheus.GaugeValue
		if counter {
			t = prometheus.CounterValue
		}
		out <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, labels, nil), t,
			float64(v), values...)
	}
	for _, u := range c.b.devices.all() {
		e, id := u.engine, u.id
		s := e.Stats()
		list := append(deviceMetrics(), compressionMetrics()...)
		if s.JournalBytes > 0 {
			list = append(list, journalMetrics()...)
		}
		if s.DiskBytes > 0 {
			list = append(list, pairMetrics()...)
		}
		for _, m := range list {
			send(m.counter, m.get(s), m.name, m.help, []string{"device"}, []string{id.String()})
		}
		c.sharing(e, id, send)
		c.scrub(out, e, id)
		c.health(out, u)
		send(false, int64(e.Kept()), "weft_device_kept_bytes",
			"Bytes that clones keep of deleted snapshots.", []string{"device"}, []string{id.String()})
	}
	c.reads(send)
	for _, s := range c.b.agent.Served() {
		c.space(s, send)
		send(true, s.Disk.Delayed(), "weft_volume_delayed_total",
			"Operations held back by the volume's limits.", []string{"volume"}, []string{s.Export.Name})
		send(true, s.Disk.Queued(), "weft_volume_queued_total",
			"Operations that waited for their turn on a device that was short.", []string{"volume"},
			[]string{s.Export.Name})
		for _, o := range s.Disk.Stats() {
			names, values := []string{"volume", "op"}, []string{s.Export.Name, o.Op.String()}
			send(true, o.Count, "weft_volume_ops_total", "Operations ended.", names, values)
			send(true, o.Bytes, "weft_volume_bytes_total", "Bytes of operations that succeeded.",
				names, values)
			send(true, o.Errors, "weft_volume_errors_total", "Operations that failed.", names, values)
		}
	}
	send(false, int64(c.b.runner.Position().N()), "weft_log_position",
		"Events in the views of this node.", nil, nil)
	for _, part := range []quorum.Part{quorum.PartDatabase, quorum.PartArchive} {
		bad := int64(0)
		for _, d := range c.b.store.Damages() {
			if d.Part == part {
				bad++
			}
		}
		send(false, bad, "weft_log_damaged", "Places of this node's log that are damaged.",
			[]string{"part"}, []string{string(part)})
	}
	c.failing(send)
	send(true, int64(c.b.store.Repairs()), "weft_log_repairs_total",
		"Damaged places of this node's log that were repaired since the start.", nil, nil)
	n := c.b.front.nbd.Stats()
	send(false, n.Open, "weft_nbd_connections", "Open NBD connections.", nil, nil)
	i := c.b.front.iscsi.Stats()
	send(false, i.Sessions, "weft_iscsi_sessions", "Open iSCSI sessions.", nil, nil)
	send(true, int64(i.LoginFailures), "weft_iscsi_login_failures_total", "Logins refused.", nil, nil)
}

// failing tells what of the node's own work fails, and of outlets that are stuck.
func (c *collector) failing(
	send func(counter bool, v int64, name, help string, labels, values []string),
) {
	names := []string{"work"}
	one := func(what string, since int64, at domain.Position) {
		values := []string{what}
		send(false, 1, "weft_failing", "Work of the node that has failed for a while.", names, values)
		send(false, int64(at.N()), "weft_failing_position",
			"Events up to the place where it stands, or where the log stood when it began to fail.",
			names, values)
		if since > 0 {
			send(false, since, "weft_failing_since_seconds",
				"When it began to fail, seconds since 1970.", names, values)
		}
	}
	for _, f := range c.b.background.list() {
		one(f.What, f.Since.Unix(), f.Position)
	}
	for _, o := range c.b.views.outlets.Outlets() {
		if o.Stuck != nil {
			one(workOf(o), 0, o.Stuck.At)
		}
	}
	for what, n := range c.b.background.totals() {
		send(true, n, "weft_failures_total", "Times that work of the node failed since its start.",
			names, []string{what})
	}
}

// reads tells what the cache of blocks that are read again does.
func (c *collector) reads(
	send func(counter bool, v int64, name, help string, labels, values []string),
) {
	s := c.b.devices.reads.Stats()
	send(false, s.Bytes, "weft_read_cache_bytes", "Most bytes that the cache of reads holds.", nil,
		nil)
	send(false, s.Used, "weft_read_cache_used_bytes", "Bytes that it holds.", nil, nil)
	send(true, s.Hits, "weft_read_cache_hits_total", "Blocks that it served.", nil, nil)
	send(true, s.Misses, "weft_read_cache_misses_total", "Blocks of small reads it did not have.",
		nil, nil)
}

// sharing tells how short a device is, and what gave way to hosts.
func (*collector) sharing(e *engine.Engine, id domain.DeviceID,
	send func(counter bool, v int64, name, help string, labels, values []string),
) {
	r := e.Scheduler().Reading()
	for _, m := range []struct {
		v          int64
		name, help string
	}{
		{r.Flight, "weft_device_requests", "Requests of hosts under way on a device."},
		{r.Waiting, "weft_device_waiting", "Requests of hosts that wait for their turn on a device."},
		{r.Window, "weft_device_window", "Requests under way at most while volumes share the device."},
	} {
		send(false, m.v, m.name, m.help, []string{"device"}, []string{id.String()})
	}
	for c, n := range r.Rested {
		send(true, n, "weft_device_rested_total", "Turns of a device's own work that waited for hosts.",
			[]string{"device", "class"}, []string{id.String(), qos.Class(c).String()})
	}
}

// space tells what a volume and its snapshots hold.
func (c *collector) space(s agent.Served,
	send func(counter bool, v int64, name, help string, labels, values []string),
) {
	a, err := c.b.agent.Ask(context.Background(), command.Question{
		Ask: command.AskVolume, Volume: s.Disk.Info().ID,
	})
	if err != nil {
		return // it went meanwhile
	}
	var own, shared, saved, cuts, held int64
	for _, x := range a.Spaces {
		if x.Snapshot.IsZero() {
			own, shared, saved = int64(x.Own), int64(x.Shared), int64(x.Saved)
			continue
		}
		cuts++
		held += int64(x.Own)
	}
	for _, m := range []struct {
		v          int64
		name, help string
	}{
		{own, "weft_volume_own_bytes", "Room of what a volume wrote since its last snapshot."},
		{shared, "weft_volume_shared_bytes", "Room of what a volume sees and older snapshots wrote."},
		{saved, "weft_volume_saved_bytes", "By which compression makes these two smaller."},
		{cuts, "weft_volume_snapshots", "Snapshots of a volume."},
		{held, "weft_volume_snapshot_bytes", "Bytes that a volume's snapshots wrote, shared or not."},
		{int64(a.Hosts), "weft_volume_hosts", "Connections that use a volume."},
	} {
		send(false, m.v, m.name, m.help, []string{"volume"}, []string{s.Export.Name})
	}
}

// newMetrics serves the page.
func newMetrics(b *backend) http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(&collector{b}, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{})
}

// scrub sends how far the scrub of a device has come; nothing where its mark cannot be read.
func (*collector) scrub(out chan<- prometheus.Metric, e *engine.Engine, id domain.DeviceID) {
	st, err := e.ScrubStatus()
	if err != nil {
		return
	}
	send := func(v float64, name, help string) {
		out <- prometheus.MustNewConstMetric(
			prometheus.NewDesc(name, help, []string{"device"}, nil), prometheus.GaugeValue, v, id.String(),
		)
	}
	send(float64(st.Checked), "weft_device_scrub_checked_bytes",
		"Bytes checked by the scrub's pass under way, or by the last one.")
	send(float64(st.Damaged), "weft_device_scrub_damaged",
		"Places that pass found damaged, mended ones included.")
	if !st.Finished.IsZero() {
		send(float64(st.Finished.Unix()), "weft_device_scrub_finished_seconds",
			"When the last pass came to its end, seconds since 1970.")
	}
}

// health sends how a device is, by what its writes and flushes take.
func (*collector) health(out chan<- prometheus.Metric, u *unit) {
	send := func(t prometheus.ValueType, v float64, name, help string) {
		out <- prometheus.MustNewConstMetric(
			prometheus.NewDesc(name, help, []string{"device"}, nil), t, v, u.id.String(),
		)
	}
	suspect, r := 0.0, u.watched.Reading()
	if u.watched.State() == watched.Suspect {
		suspect = 1
	}
	if u.disk != nil {
		of := u.disk.Reading()
		r.Stalls, r.Failures = r.Stalls+of.Stalls, r.Failures+of.Failures
		if u.disk.State() == watched.Suspect {
			suspect = 1
		}
	}
	send(prometheus.GaugeValue, suspect, "weft_device_suspect", "1 while the device is slow or errs.")
	send(prometheus.CounterValue, float64(r.Stalls), "weft_device_stalls_total",
		"Writes and flushes of the device that took "+watched.StallMax.String()+" or longer; of the "+
			"disk of a pair "+watched.StreamStallMax.String()+".")
	send(prometheus.CounterValue, float64(r.Failures), "weft_device_write_failures_total",
		"Writes and flushes that the device failed.")
	if r.P99 > 0 {
		send(prometheus.GaugeValue, r.P99.Seconds(), "weft_device_write_p99_seconds",
			"99th percentile of what the last whole thousand of the device's writes took.")
	}
}
