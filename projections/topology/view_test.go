package topology

import (
	"testing"
	"time"

	"weft/domain"
	"weft/domain/cluster"
	"weft/domain/policy"
)

// TestNVRAM proves that a node's NVRAM is among the devices, that no volume is placed there, and
// that it is gone when it was given up.
func TestNVRAM(t *testing.T) {
	v := New()
	tell := func(n byte, ev domain.Event) {
		t.Helper()
		id := domain.DeviceID{UUID: domain.UUID{n}}
		rec := domain.Record{Event: ev}
		rec.Stream = cluster.DeviceStream(id)
		if err := v.Apply(rec); err != nil {
			t.Fatal(err)
		}
	}
	for n, class := range map[byte]string{1: "flash", 2: "nvram"} {
		tell(n, &cluster.DeviceAdmitted{Device: domain.DeviceID{UUID: domain.UUID{n}}, Class: class})
	}
	var o policy.Observed
	v.Observe(&o)
	if len(v.Devices()) != 2 || len(o.Devices) != 1 || o.Devices[0].Class != "flash" {
		t.Errorf("%d devices, placed on %+v", len(v.Devices()), o.Devices)
	}
	tell(2, &cluster.DeviceRetired{Why: "empty"})
	if len(v.Devices()) != 1 {
		t.Errorf("after it was given up: %+v", v.Devices())
	}
}

// TestHealth proves what the view shows of a device in trouble and of its scrub: wishes, the last
// pass, and each damaged place once, of that pass and of the one under way.
func TestHealth(t *testing.T) {
	v, n := New(), uint64(0)
	id := domain.DeviceID{UUID: domain.UUID{1}}
	after := func(evs ...domain.Event) Device {
		t.Helper()
		for _, ev := range evs {
			n++
			rec := domain.Record{Event: ev}
			rec.Stream, rec.Position = cluster.DeviceStream(id), domain.Position(n)
			rec.Created = time.Unix(int64(n), 0)
			if err := v.Apply(rec); err != nil {
				t.Fatal(err)
			}
		}
		d, ok := v.Device(id)
		if !ok {
			t.Fatal("no such device")
		}
		return d
	}
	suspect := func() bool {
		var o policy.Observed
		v.Observe(&o)
		return o.Devices[0].Suspect
	}
	d := after(&cluster.DeviceAdmitted{Device: id, Class: "flash"})
	if !d.Since.Equal(time.Unix(1, 0)) || suspect() {
		t.Errorf("%+v", d)
	}
	d = after(&cluster.DeviceSuspended{Rule: "stall", Why: "2s"})
	if d.Suspended != "stall" || d.Why != "2s" || !suspect() {
		t.Errorf("suspended: %+v", d)
	}
	if d = after(&cluster.DeviceReadmitted{}); d.Suspended != "" || d.Why != "" || suspect() {
		t.Errorf("well again: %+v", d)
	}
	if d = after(&cluster.ScrubPaused{}); !d.Paused {
		t.Errorf("paused: %+v", d)
	}
	if d = after(&cluster.ScrubRequested{}); d.Paused || d.Asked != 5 || d.Ended != 0 {
		t.Errorf("asked: %+v", d)
	}
	found := func(pass uint64, part string, off domain.Bytes) domain.Event {
		return &cluster.DamageFound{Pass: pass, Part: part, Offset: off}
	}
	d = after(found(1, "block", 7), found(1, "index", 7), found(1, "block", 9),
		&cluster.ScrubFinished{Pass: 1, Damaged: 3})
	if len(d.Damages) != 3 || d.Ended != 9 || d.Scrubbed.Damaged != 3 {
		t.Errorf("one pass: %+v", d)
	}
	older := d.Damages
	d = after(found(2, "block", 7))
	if len(d.Damages) != 3 || len(older) != 3 || older[0].Part != "block" {
		t.Errorf("found again: %+v, before %+v", d, older)
	}
	d = after(&cluster.ScrubFinished{Pass: 2, Damaged: 1})
	if len(d.Damages) != 1 || d.Damages[0].Pass != 2 {
		t.Errorf("the second pass: %+v", d)
	}
	lost := func(block int64) domain.Event {
		return &cluster.DamageFound{Pass: 3, Part: "block", Block: block}
	}
	if d = after(lost(1), lost(2), lost(1)); len(d.Damages) != 3 {
		t.Errorf("blocks that are lost: %+v", d)
	}
}

// TestLost proves that the nodes which a recovery gave up show as lost until they are back, and no
// other does.
func TestLost(t *testing.T) {
	v := New()
	node := func(n byte) domain.NodeID { return domain.NodeID{UUID: domain.UUID{n}} }
	tell := func(n byte, ev domain.Event) {
		t.Helper()
		rec := domain.Record{Event: ev}
		rec.Stream = cluster.NodeStream(node(n))
		if err := v.Apply(rec); err != nil {
			t.Fatal(err)
		}
	}
	lost := func() (list []byte) {
		for n := range byte(4) {
			if x, _ := v.Node(node(n)); x.Lost {
				list = append(list, n)
			}
		}
		return list
	}
	for n := range byte(4) {
		tell(n, &cluster.NodeJoined{Node: node(n)})
	}
	tell(9, &cluster.LogRecovered{Lost: []cluster.LostMember{
		{Node: node(1)}, {Node: node(2)}, {Member: 7}, {Node: node(8)},
	}})
	if got := lost(); string(got) != "\x01\x02" {
		t.Errorf("lost: %v", got)
	}
	tell(1, &cluster.NodeRestarted{Incarnation: 2})
	tell(2, &cluster.NodeReturned{Incarnation: 1})
	if got := lost(); len(got) > 0 {
		t.Errorf("back, and lost: %v", got)
	}
}
