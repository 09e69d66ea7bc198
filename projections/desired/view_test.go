package desired

import (
	"reflect"
	"testing"

	"weft/domain/command"
	"weft/domain/intent"
	"weft/domain/policy"
)

// TestExportSpeed proves that all that an intent says of speed is in the order to export, and that
// who says nothing gets the order of old, weight included.
func TestExportSpeed(t *testing.T) {
	in := intent.Intent{
		Performance: intent.Performance{
			IOPSMin: 1, IOPSMax: 2, BWMinBPS: 3, BWMaxBPS: 4, BurstS: 5,
		},
		Lifecycle: intent.Lifecycle{Priority: 80},
	}
	for _, c := range []struct {
		layers []policy.Layer
		want   command.Export
	}{
		{nil, command.Export{Name: "v"}},
		{
			[]policy.Layer{{Name: "app/a", Intent: in}},
			command.Export{
				Name: "v", IOPSMin: 1, IOPSMax: 2, BPSMin: 3, BPSMax: 4, BurstS: 5, Weight: 80,
			},
		},
	} {
		set := policy.Resolve(c.layers)
		if got := export(App{}, intent.VolumeSpec{}, "v", set.Intent); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%+v, want %+v", got, c.want)
		}
	}
}
