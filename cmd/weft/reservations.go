package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"weft/adapters/scsi"
	"weft/domain"
)

// reservations keeps the persistent reservations of this node's volumes in its folder, one file a
// volume, so that what the target says of them is true: they survive a restart and a power cut.
// Cluster software fences its nodes by them.
type reservations struct{ dir string }

var _ scsi.ReservationStore = reservations{}

// Load implements scsi.ReservationStore.
func (r reservations) Load(id domain.VolumeID) (scsi.Reservations, error) {
	var kept scsi.Reservations
	b, err := os.ReadFile(filepath.Join(r.dir, id.String()))
	if errors.Is(err, fs.ErrNotExist) {
		return kept, nil
	}
	if err != nil {
		return kept, asDomain(err)
	}
	if err := json.Unmarshal(b, &kept); err != nil {
		return kept, &domain.Error{
			Kind: domain.Corrupt, Ref: "reservations/" + id.String(), Err: err,
			Remedy: "remove the file, and let every host register again",
		}
	}
	return kept, nil
}

// Save implements scsi.ReservationStore. It is durable on return.
func (r reservations) Save(id domain.VolumeID, kept scsi.Reservations) error {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return asDomain(err)
	}
	b, err := json.Marshal(kept)
	if err != nil {
		return err
	}
	return writeDurably(filepath.Join(r.dir, id.String()), b)
}
