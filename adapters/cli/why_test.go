package cli

import (
	"strings"
	"testing"

	"weft/adapters/client"
)

// TestWhyMoved proves that of a volume that went to another device since it was placed why says
// where it stands, and of one that did not nothing of the kind.
func TestWhyMoved(t *testing.T) {
	d := client.Decision{Placed: true, Device: "d1", Node: "n1", Position: "17"}
	for device, want := range map[string]string{
		"d1": "", "": "", "d2": "it stands on device d2 of node n1\n  when: weft events list " +
			"--streams volume-v --types VolumeMoved\n",
	} {
		out := reasons(client.Volume{ID: "v", Device: device, Node: "n1"}, d)
		if !strings.Contains(out, "on device d1 of node n1\n") || !strings.Contains(out, want) ||
			strings.Contains(out, "moved since") != (want != "") {
			t.Errorf("%q: %s", device, out)
		}
	}
}

// TestWhyDamaged proves that why lists what of a volume is damaged, the first of many.
func TestWhyDamaged(t *testing.T) {
	var d client.Decision
	if out := reasons(client.Volume{}, d); strings.Contains(out, "damaged") {
		t.Errorf("nothing is: %s", out)
	}
	for i := range damagesShown + 3 {
		d.Damages = append(d.Damages, client.Damage{Part: "block", Block: int64(100 + i), Detail: "gone"})
	}
	d.Damages[1].Snapshot = "s"
	out := reasons(client.Volume{}, d)
	for _, want := range []string{
		"damaged or lost, until it is written: 23 places\n  block 100: gone\n",
		"  block 101 of snapshot s: gone\n", "  block 119: gone\n  3 more: weft node scrub status\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in: %s", want, out)
		}
	}
}
