package main

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"weft/backends"
	"weft/backends/direct"
	"weft/backends/hybrid"
	"weft/backends/watched"
	"weft/dataplane/cache"
	"weft/dataplane/engine"
	"weft/dataplane/journal"
	"weft/domain"
)

// defaultDevice is the most a device made without --device-size takes; it never takes more than a
// quarter of the free space.
const defaultDevice = 4 * domain.GiB

// deviceMin is the least size of a device.
const deviceMin = 128 * domain.MiB

// devices are the node's open devices and the engines over them.
type devices struct {
	list    []backends.Device // each a direct.Device or, of two, a hybrid.Device
	ids     []domain.DeviceID // of list
	watched []*watched.Device // below the engines, in their order; of a pair the flash alone
	engines []*engine.Engine
	reads   *cache.Cache // of all engines; nil is none
	key     []byte       // that wraps the keys of encrypted volumes
	// nvram is the node's NVRAM and region the table of its shares; nil is none.
	nvram   backends.ByteDevice
	region  *journal.Region
	noNVRAM bool // it was given up at this start
	// troubles are facts on their way to the cluster's log.
	troubles chan domain.Command
}

// openDevices opens the devices named, or those in the data folder, making the first one.
func openDevices(ctx context.Context, o Options, d *dataDir, p *peerPort, log *slog.Logger) (
	*devices, func(), error,
) {
	key, err := volumesKey(p.id.Authority().Key)
	if err != nil {
		return nil, nil, err
	}
	ds := &devices{
		troubles: make(chan domain.Command, troublesMax), reads: cache.New(o.ReadCache), key: key,
	}
	if err := ds.mapNVRAM(o, d, log); err != nil {
		ds.close(log)
		return nil, nil, domain.Wrap(err, "serve", "nvram")
	}
	paths := slices.Clone(o.Devices)
	if len(paths) == 0 {
		var err error
		if paths, err = d.deviceFiles(o); err != nil {
			ds.close(log)
			return nil, nil, err
		}
	}
	for _, p := range paths {
		if err := ds.attach(ctx, o, d, p, log); err != nil {
			ds.close(log)
			return nil, nil, domain.Wrap(err, "serve", "device "+p)
		}
	}
	if ds.region != nil && !o.DropNVRAM {
		ds.region.Allot(ds.ids, int64(shareLeast))
	}
	for i, p := range paths {
		if err := ds.begin(ctx, o, d, i, log); err != nil {
			ds.close(log)
			return nil, nil, domain.Wrap(err, "serve", "device "+p)
		}
	}
	if o.DropNVRAM {
		ds.dropped(log)
	}
	return ds, func() { ds.close(log) }, nil
}

// deviceFiles lists the device files of the data folder; an empty folder gets one.
func (d *dataDir) deviceFiles(o Options) ([]string, error) {
	dir := d.file("devices")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, asDomain(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.img"))
	if err != nil || len(files) > 0 {
		return files, err
	}
	free, err := freeBytes(dir)
	if err != nil {
		return nil, asDomain(err)
	}
	size := o.DeviceSize
	if size == 0 {
		size = min(defaultDevice, free/4) / domain.MiB * domain.MiB
	}
	if size < deviceMin || size > free {
		return nil, &domain.Error{
			Kind: domain.NoSpace, Ref: dir,
			Msg: fmt.Sprintf("a device of %s does not fit: %s are free, %s is the least", size, free,
				deviceMin),
			Remedy: "free space, or name a device with --device",
		}
	}
	path := filepath.Join(dir, "flash0.img")
	_ = os.Remove(path + ".new") // of a start that was cut short
	last := 0
	dev, err := direct.Create(path+".new", int64(size), direct.Options{
		Progress: func(done, total int64) error {
			if pct := int(done * 100 / total); pct/10 > last/10 && o.Progress != nil {
				last = pct
				o.Progress(fmt.Sprintf("making device %s: %d %%", filepath.Base(path), pct))
			}
			return nil
		},
	})
	if err != nil {
		return nil, &domain.Error{Kind: domain.NoSpace, Ref: path, Err: err}
	}
	if err := dev.Close(); err != nil {
		return nil, asDomain(err)
	}
	return []string{path}, asDomain(os.Rename(path+".new", path))
}

// attach opens one device and formats it when it is blank. A device that holds something else than
// Weft's is never touched: only a file made here, or one whose first bytes are all zero, is blank.
func (ds *devices) attach(ctx context.Context, o Options, d *dataDir, path string,
	log *slog.Logger,
) error {
	spec, err := parseDevice(path)
	if err != nil {
		return err
	}
	dev, err := spec.open(o.Media)
	if err != nil {
		return err
	}
	ds.list = append(ds.list, dev)
	id, cluster, err := engine.Probe(dev)
	switch {
	case err == nil && cluster != d.id.Cluster:
		return &domain.Error{
			Kind: domain.Denied, Msg: "the device belongs to cluster " + cluster.String(),
			Remedy: "use the data folder of that cluster, or wipe the device by hand",
		}
	case domain.IsKind(err, domain.NotFound):
		if err := blank(dev); err != nil {
			return err
		}
		id = domain.DeviceID{UUID: randomUUID()}
		err = engine.Format(ctx, dev, engine.FormatOptions{
			Cluster: d.id.Cluster, Node: d.id.Node, Device: id,
		})
		if err != nil {
			return err
		}
		log.Info("device formatted", "path", path)
	case err != nil:
		return err
	}
	ds.ids = append(ds.ids, id)
	return nil
}

// begin recovers the engine of an attached device.
func (ds *devices) begin(ctx context.Context, o Options, d *dataDir, i int,
	log *slog.Logger,
) error {
	id := ds.ids[i]
	w, err := ds.watch(o, d, i, log)
	if err != nil {
		return err
	}
	mode := engine.Durable
	if o.Durability == "process" {
		mode = engine.Process
	}
	e, err := engine.Open(ctx, engine.Config{
		Device: w, Cluster: d.id.Cluster, Node: d.id.Number, Mode: mode, Logger: log,
		Journal: ds.share(id, log), DropJournal: o.DropNVRAM, AcceptLoss: o.AcceptNVRAMLoss,
		Reads: ds.reads, ClusterKey: ds.key,
		Report: func(f engine.Fact) { ds.told(f, log) },
	})
	if err != nil {
		return nvramRemedy(err)
	}
	ds.engines = append(ds.engines, e)
	return nil
}

// volumesKey gives the key that wraps those of encrypted volumes. It is derived from what every
// node of the cluster holds, and hands to those that join: the key of the cluster's authority. So a
// device can be read on any node of its cluster, and nowhere else.
func volumesKey(authority []byte) ([]byte, error) {
	return hkdf.Key(sha256.New, authority, nil, "weft volume keys 1", 32)
}

// watch puts between a device and its engine what watches it. Of a pair it watches the flash: no
// host waits for a write to the disk, and one of megabytes would be taken for a slow one.
func (ds *devices) watch(o Options, d *dataDir, i int, log *slog.Logger) (backends.Device, error) {
	wrap := func(dev backends.Device) backends.Device {
		if o.Wrap == nil {
			return dev
		}
		return o.Wrap(dev.Geometry().Path, dev)
	}
	id := ds.ids[i]
	watch := func(dev backends.Device) *watched.Device {
		w := watched.New(wrap(dev), time.Now, func(c watched.Change) {
			ds.changed(id, d.id.Node, c, log)
		})
		ds.watched = append(ds.watched, w)
		return w
	}
	pair, ok := ds.list[i].(*hybrid.Device)
	if !ok {
		return watch(ds.list[i]), nil
	}
	flash, disk := pair.Members()
	again, err := hybrid.Open(watch(flash), wrap(disk))
	if err != nil {
		return nil, deviceError(err)
	}
	return again, nil
}

// blank refuses a device whose beginning holds anything.
func blank(dev backends.Device) error {
	b := backends.AlignedBuffer(1 << 20)
	if err := dev.ReadAt(b, 0); err != nil {
		return deviceError(err)
	}
	for _, c := range b {
		if c != 0 {
			return &domain.Error{
				Kind: domain.Exists, Msg: "the device holds data that is not Weft's",
				Remedy: "wipe its first MiB by hand if it may go",
			}
		}
	}
	return nil
}

func deviceError(err error) error {
	kind := domain.Unavailable
	switch {
	case errors.Is(err, backends.ErrLocked):
		kind = domain.Locked
	case errors.Is(err, backends.ErrNotPresent):
		kind = domain.NotFound
	case errors.Is(err, os.ErrPermission):
		kind = domain.Denied
	}
	return &domain.Error{Kind: kind, Err: err}
}

// close takes a last checkpoint of every engine and gives the devices up.
func (ds *devices) close(log *slog.Logger) {
	for _, e := range ds.engines {
		if err := e.Close(); err != nil {
			log.Error("closing a device", "err", err)
		}
	}
	for _, dev := range ds.list {
		if err := dev.Close(); err != nil {
			log.Error("closing a device", "err", err)
		}
	}
	if ds.nvram != nil {
		if err := ds.nvram.Close(); err != nil {
			log.Error("closing the NVRAM", "err", err)
		}
	}
}
