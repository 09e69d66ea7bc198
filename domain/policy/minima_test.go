package policy

import (
	"fmt"
	"strings"
	"testing"

	"weft/domain"
	"weft/domain/intent"
)

// TestMinima proves that a volume with minima goes where there is room for them, that the reason of
// its steps says where that was nowhere, and that other volumes go by their size as before.
func TestMinima(t *testing.T) {
	node := Node{Node: domain.NodeID{UUID: id(1)}, Incarnation: 1}
	o := Observed{Nodes: []Node{node}}
	for i := range 2 {
		o.Devices = append(o.Devices, Device{
			Device: domain.DeviceID{UUID: id(2 + i)}, Node: node.Node, Class: "flash",
			Usable: domain.TiB / domain.Bytes(1+i), // the first is always the emptier one
		})
	}
	wish := func(n int, p intent.Performance) Wish {
		return Wish{
			Volume: volumeID(10 + n), Name: fmt.Sprint("v", n), Size: domain.GiB,
			Set: Resolve([]Layer{{"app/a", intent.Intent{Performance: p}}}),
		}
	}
	const most = "more than 70 %"
	for name, c := range map[string]struct {
		large, other intent.Performance
		told         string // in the reason of the third
	}{
		"requests": {
			intent.Performance{IOPSMin: 10_000},
			intent.Performance{IOPSMin: 4000},
			"20000 requests a second",
		},
		"bytes": {
			intent.Performance{BWMinBPS: 200 << 20},
			intent.Performance{BWMinBPS: 80 << 20},
			"400MiB a second",
		},
	} {
		d := Desired{Volumes: []Wish{
			wish(0, c.large), wish(1, c.large), wish(2, c.large), wish(3, intent.Performance{}),
		}}
		p := Reconcile(d, o)
		if len(p.Steps) != 4 {
			t.Fatalf("%s: %+v", name, p)
		}
		first, second := p.Steps[0], p.Steps[1]
		if first.Order.Device == second.Order.Device {
			t.Errorf("%s: two that need more than half of a device stand on one", name)
		}
		for i, s := range p.Steps {
			if told := strings.Contains(s.Why, most); told != (i == 2) {
				t.Errorf("%s: the reason of step %d is %q", name, i, s.Why)
			}
		}
		if why := strings.ReplaceAll(p.Steps[2].Why, " MiB", "MiB"); !strings.Contains(why, c.told) {
			t.Errorf("%s: it does not say how much: %q", name, why)
		}
		if s := p.Steps[3]; s.Order.Device != o.Devices[0].Device {
			t.Errorf("%s: a volume without minima is not on the emptier device", name)
		}

		// A volume that is there counts, and its own steps say it too.
		past := o
		past.Volumes = []Volume{{
			Volume: d.Volumes[0].Volume, Size: domain.GiB, Node: node.Node, Device: o.Devices[0].Device,
		}}
		d.Volumes = []Wish{d.Volumes[0], wish(1, c.other), wish(2, c.other)}
		p = Reconcile(d, past)
		if len(p.Steps) != 3 || p.Steps[1].Order.Device != o.Devices[0].Device ||
			p.Steps[2].Order.Device != o.Devices[1].Device {
			t.Errorf("%s: beside one that is there: %+v", name, p.Steps)
		}
		if strings.Contains(p.Steps[0].Why, most) {
			t.Errorf("%s: what is there is within: %q", name, p.Steps[0].Why)
		}
		past.Devices = past.Devices[:1]
		past.Devices[0].Class = "hdd"
		if p = Reconcile(d, past); !strings.Contains(p.Steps[0].Why, most) {
			t.Errorf("%s: on an hdd: %q", name, p.Steps[0].Why)
		}
		past.Devices[0].Class = "flash"
	}
}

// TestCrowdedOrSuspect proves that a decision tells the two reasons for a negative score apart, at
// the ends of what they leave of it.
func TestCrowdedOrSuspect(t *testing.T) {
	for _, fill := range []int64{0, 1000} {
		for i := range 4 {
			c := Candidate{Score: 1000 - fill, Crowded: i&1 > 0}
			if c.Crowded {
				c.Score -= crowdedScore
			}
			suspect := i&2 > 0
			if suspect {
				c.Score -= suspectScore
			}
			if c.Suspect() != suspect {
				t.Errorf("%+v is suspect: %t", c, c.Suspect())
			}
		}
	}
}
