package main

import (
	"fmt"
	"testing"
	"time"

	"weft/dataplane/engine"
	"weft/dataplane/segment"
	"weft/domain"
	"weft/projections/topology"
)

// TestScrubWait proves when a device is scrubbed: when somebody asks, when a pass is under way, and
// a while after the last one, or after the device was made; and that a device which is paused, has
// failed or is not in the log is not.
func TestScrubWait(t *testing.T) {
	const every = 7 * 24 * time.Hour
	now := time.Unix(1e9, 0)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	device := func(change func(d *topology.Device)) topology.Device {
		d := topology.Device{Since: ago(time.Hour)}
		d.Device = domain.DeviceID{UUID: domain.UUID{1}}
		change(&d)
		return d
	}
	well := device(func(*topology.Device) {})
	asked := device(func(d *topology.Device) { d.Asked, d.Ended = 8, 7 })
	paused := device(func(d *topology.Device) { d.Paused, d.Asked = true, 9 })
	failed := device(func(d *topology.Device) { d.Failed, d.Asked = true, 9 })
	status := func(stage uint8, finished time.Time) engine.ScrubStatus {
		var st engine.ScrubStatus
		st.Stage, st.Finished = stage, finished
		return st
	}
	for i, c := range []struct {
		st    engine.ScrubStatus
		d     topology.Device
		every time.Duration
		want  time.Duration
	}{
		{status(0, time.Time{}), well, every, every - time.Hour},
		{status(0, ago(2*time.Hour)), well, every, every - 2*time.Hour},
		{status(0, ago(2*every)), well, every, 0},
		{status(0, ago(2*every)), well, 0, scrubNever},
		{status(2, ago(time.Hour)), well, 0, 0},
		{status(0, ago(time.Hour)), asked, 0, 0},
		{status(0, ago(time.Hour)), device(func(d *topology.Device) { d.Ended = 7 }), 0, scrubNever},
		{status(2, now), paused, every, scrubNever},
		{status(2, now), failed, every, scrubNever},
		{status(2, now), topology.Device{}, every, scrubNever},
	} {
		if got := scrubWait(c.st, c.d, now, c.every); got != c.want {
			t.Errorf("%d: %s, not %s", i, got, c.want)
		}
	}
}

// TestScrubPaused proves that a pass under way stops when somebody pauses it, and goes on as the
// same pass when it is started again, on the one device that was meant; and that what it finds is
// told while it runs.
func TestScrubPaused(t *testing.T) {
	c, n, disks := twoDisks(t)
	bad := disks["v1"]
	node, _ := items(c.must("GET", "/v1/nodes", ""))[0]["name"].(string)
	path := "/v1/nodes/" + node + "/scrub"
	ask := func(action string) {
		c.must("POST", path, `{"action":"`+action+`","device":"`+bad.id+`"}`)
	}
	wait := func(state string, running bool) map[string]any {
		for {
			var st engine.ScrubStatus
			for _, u := range n.backend.devices.all() {
				if u.id.String() == bad.id {
					st, _ = u.engine.ScrubStatus()
				}
			}
			for _, d := range items(c.must("GET", path, "")) {
				switch {
				case d["device"] != bad.id && (d["state"] != "never" || d["damages"] != nil):
					t.Fatalf("the other device: %v", d)
				case d["device"] == bad.id && d["state"] == state && st.Running == running:
					return d
				}
			}
		}
	}
	super := fmt.Sprintf("read %d+%d times 1 flip 99", segment.Guard, segment.Sector)
	if err := bad.Script(super); err != nil {
		t.Fatal(err)
	}
	ask("start")
	wait("running", true)
	ask("pause")
	d := wait("paused", false)
	if d["pass"] != 1.0 || d["finished"] != nil {
		t.Errorf("paused: %v", d)
	}
	for d["damages"] == nil { // it may be on its way
		d = wait("paused", false)
	}
	damages, _ := d["damages"].([]any)
	if len(damages) != 1 {
		t.Fatalf("damages: %v", d)
	}
	if x, _ := damages[0].(map[string]any); x["part"] != "superblock" || x["mended"] != true {
		t.Errorf("damage: %v", x)
	}
	past := items(c.must("GET", path+"?at_position=1", ""))
	if len(past) != 0 {
		t.Errorf("before there was a device: %v", past)
	}
	ask("start")
	if d = wait("running", true); d["pass"] != 1.0 {
		t.Errorf("started again: %v", d)
	}
}
