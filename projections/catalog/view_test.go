package catalog

import (
	"slices"
	"testing"

	"weft/domain"
	"weft/domain/snapshot"
	"weft/domain/volume"
)

// TestOn proves that what stands on a device is its volumes and the snapshots cut there, and that
// what was deleted is not among them.
func TestOn(t *testing.T) {
	v := New()
	here, there := domain.DeviceID{UUID: domain.UUID{1}}, domain.DeviceID{UUID: domain.UUID{2}}
	tell := func(s domain.StreamID, ev domain.Event) {
		t.Helper()
		r := domain.Record{Event: ev}
		r.Stream = s
		if err := v.Apply(r); err != nil {
			t.Fatal(err)
		}
	}
	want := func(d domain.DeviceID, names ...string) {
		t.Helper()
		if got := v.On(d); !slices.Equal(got, names) {
			t.Errorf("%q, want %q", got, names)
		}
	}
	id := domain.VolumeID{UUID: domain.UUID{3}}
	tell(volume.Stream(id), &volume.VolumeCreated{Volume: id, Name: "web/v", Device: here})
	group := domain.SnapshotGroupID{UUID: domain.UUID{4}}
	a, b := domain.SnapshotID{UUID: domain.UUID{5}}, domain.SnapshotID{UUID: domain.UUID{6}}
	tell(snapshot.Stream(group), &snapshot.SnapshotRequested{
		Group: group, AppName: "web", Name: "s",
		Members: []snapshot.Member{{Snapshot: a}, {Snapshot: b}},
	})
	want(here, "volume/web/v")
	tell(snapshot.Stream(group), &snapshot.SnapshotCut{Cuts: []snapshot.Cut{
		{Snapshot: a, Device: here}, {Snapshot: b, Device: there},
	}})
	want(here, "snapshot/web@s", "volume/web/v")
	want(there, "snapshot/web@s")
	tell(volume.Stream(id), &volume.VolumeDeleted{})
	want(here, "snapshot/web@s")
	tell(snapshot.Stream(group), &snapshot.SnapshotDeleted{Snapshot: a})
	want(here)
	want(there, "snapshot/web@s")
}
