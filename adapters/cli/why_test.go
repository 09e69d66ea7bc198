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
