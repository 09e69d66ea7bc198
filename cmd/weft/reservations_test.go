package main

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"weft/adapters/scsi"
	"weft/domain"
)

// TestReservationsSurvive proves that what a volume's hosts reserved is there for the next process,
// apart for each volume, and that a damaged file is said to be one instead of forgetting who was
// fenced.
func TestReservationsSurvive(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "reservations")
	a, b := domain.VolumeID{UUID: domain.UUID{1}}, domain.VolumeID{UUID: domain.UUID{2}}
	holder := scsi.Registration{Initiator: "iqn.x,i,0x1", Port: 1, Key: 1<<63 + 5}
	want := scsi.Reservations{
		Generation: 7, Registrations: []scsi.Registration{holder, {Key: 9}}, Type: 5, Holder: holder,
	}
	if err := (reservations{dir}).Save(a, want); err != nil {
		t.Fatal(err)
	}
	again := reservations{dir}
	if got, err := again.Load(a); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := again.Load(b); err != nil || got.Type != 0 || len(got.Registrations) != 0 {
		t.Errorf("another volume: %+v, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(dir, a.String()), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := again.Load(a); !domain.IsKind(err, domain.Corrupt) {
		t.Errorf("a damaged file gave %v", err)
	}
}
