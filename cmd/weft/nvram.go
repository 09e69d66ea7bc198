package main

import (
	"errors"
	"log/slog"
	"strings"

	"weft/backends"
	"weft/backends/nvram"
	"weft/dataplane/engine"
	"weft/dataplane/journal"
	"weft/domain"
	"weft/domain/cluster"
)

// shareLeast is the least NVRAM that a device takes: less is no use to it.
const shareLeast = 16 * domain.MiB

// nvramClass is the class under which a node's NVRAM stands among the devices. No volume is placed
// there.
const nvramClass = cluster.ClassNVRAM

// splitNVRAM gives the path and the size of PATH[:SIZE]; 0 where no size is given, since a path may
// hold a colon too.
func splitNVRAM(s string) (path string, size domain.Bytes) {
	if i := strings.LastIndexByte(s, ':'); i > 0 {
		if n, err := domain.ParseBytes(s[i+1:]); err == nil {
			return s[:i], n
		}
	}
	return s, 0
}

// nvramID names a node's NVRAM among the devices.
func (d *dataDir) nvramID() domain.DeviceID {
	return domain.DeviceID{UUID: domain.DeriveUUID(d.id.Node.UUID, nvramClass)}
}

// mapNVRAM maps the node's NVRAM.
func (ds *devices) mapNVRAM(o Options, d *dataDir, log *slog.Logger) error {
	if o.NVRAM == "" {
		return nil
	}
	path, size := splitNVRAM(o.NVRAM)
	has, err := nvram.Size(path)
	switch {
	case err != nil && !errors.Is(err, backends.ErrNotPresent):
		return nvramError(err, path)
	case has > 0 && size == 0:
		size = domain.Bytes(has)
	case size == 0:
		return &domain.Error{
			Kind: domain.NotFound, Ref: path, Msg: "no NVRAM there",
			Remedy: "name its size to make it: --nvram " + path + ":1GiB",
		}
	}
	mapped, err := nvram.Open(path, int64(size))
	if err != nil {
		return nvramError(err, path)
	}
	ds.nvram = mapped
	if ds.region, err = journal.OpenRegion(ds.nvram, d.id.Cluster, d.id.Node); err != nil {
		return err
	}
	if ds.nvram.Geometry().Durability != backends.PowerSafe {
		log.Warn("this NVRAM is volatile: acknowledged writes survive the end of weft, not a power "+
			"cut or a reboot", "path", path)
	}
	return nil
}

// share gives a device's part of the NVRAM; nil when it has none.
func (ds *devices) share(id domain.DeviceID, log *slog.Logger) backends.ByteDevice {
	if ds.region == nil {
		return nil
	}
	p, ok := ds.region.Share(id)
	if !ok {
		log.Warn("no NVRAM is left for a device", "device", id.String(),
			"least", shareLeast.String())
		return nil
	}
	return p
}

// dropped takes back the shares of the devices that gave theirs up. What is left then belongs to
// devices that are not here.
func (ds *devices) dropped(log *slog.Logger) {
	for _, id := range ds.ids() {
		ds.region.Release(id)
	}
	ds.noNVRAM = len(ds.region.Devices()) == 0
	if ds.noNVRAM {
		log.Info("the NVRAM is needed no more; start without --nvram from now on")
		return
	}
	log.Warn("the NVRAM is still needed by devices that are not here", "devices",
		len(ds.region.Devices()))
}

// nvramUsed gives how much of the NVRAM's journals is in use.
func (ds *devices) nvramUsed() (used, size domain.Bytes) {
	for _, u := range ds.all() {
		s := u.engine.Stats()
		used, size = used+domain.Bytes(s.JournalUsed), size+domain.Bytes(s.JournalBytes)
	}
	return used, size
}

func nvramError(err error, path string) error {
	if errors.Is(err, nvram.ErrKind) {
		return &domain.Error{
			Kind: domain.Invalid, Ref: path, Msg: "it is neither a file nor a device-dax",
			Remedy: "of persistent memory, name a file on a file system that is mounted with -o dax, or " +
				"/dev/daxX.Y (ndctl create-namespace --mode=devdax); a disk is a device: --device " + path,
		}
	}
	if errors.Is(err, backends.ErrAlign) {
		return &domain.Error{
			Kind: domain.Invalid, Ref: path, Err: err,
			Remedy: "name the size it was made with, a multiple of 4 KiB, or none",
		}
	}
	if errors.Is(err, backends.ErrNoSpace) {
		return &domain.Error{Kind: domain.NoSpace, Ref: path, Err: err}
	}
	return deviceError(err)
}

// nvramRemedy says by which flags a device comes up whose journal is not there.
func nvramRemedy(err error) error {
	var known *domain.Error
	if errors.As(err, &known) && errors.Is(err, engine.ErrJournalLost) {
		known.Remedy = "name the node's NVRAM with --nvram; or, if it is gone for good, accept the " +
			"loss with --accept-nvram-loss, and restore what it cost"
	}
	return err
}

// nvramCommands records the node's NVRAM as a device, or that it is one no more.
func (ds *devices) nvramCommands(d *dataDir) []domain.Command {
	switch {
	case ds.noNVRAM:
		return []domain.Command{cluster.Retire{Device: d.nvramID(), Why: "its content was destaged"}}
	case ds.nvram == nil:
		return nil
	}
	geo := ds.nvram.Geometry()
	return []domain.Command{cluster.Admit{DeviceAdmitted: cluster.DeviceAdmitted{
		Device: d.nvramID(), Node: d.id.Node, Path: geo.Path, Class: nvramClass,
		Bytes: domain.Bytes(geo.Size), Sector: int64(geo.LogicalBlock),
		Durability: geo.Durability.String(),
	}}}
}
