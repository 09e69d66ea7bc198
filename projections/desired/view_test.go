package desired

import (
	"reflect"
	"testing"

	"weft/domain/command"
	"weft/domain/intent"
	"weft/domain/policy"
)

// TestExportSays proves that all that an intent says of speed and of compression is in the order to
// export, and that who says nothing gets the order of old, weight included.
func TestExportSays(t *testing.T) {
	in := intent.Intent{
		Performance: intent.Performance{
			IOPSMin: 1, IOPSMax: 2, BWMinBPS: 3, BWMaxBPS: 4, BurstS: 5,
		},
		Lifecycle: intent.Lifecycle{Priority: 80}, Cost: intent.Cost{Compression: "auto"},
	}
	off := intent.Intent{Cost: intent.Cost{Compression: "off"}}
	for _, c := range []struct {
		layers []policy.Layer
		want   command.Export
	}{
		{nil, command.Export{Name: "v"}},
		{[]policy.Layer{{Name: "app/a", Intent: off}}, command.Export{Name: "v"}},
		{
			[]policy.Layer{{Name: "app/a", Intent: in}},
			command.Export{
				Name: "v", IOPSMin: 1, IOPSMax: 2, BPSMin: 3, BPSMax: 4, BurstS: 5, Weight: 80,
				Compression: "auto",
			},
		},
	} {
		set := policy.Resolve(c.layers)
		if got := export(App{}, intent.VolumeSpec{}, "v", set.Intent); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%+v, want %+v", got, c.want)
		}
	}
}
