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
	"sync"
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

// unit is one device of the node with what runs over it.
type unit struct {
	spec    string
	device  backends.Device // a direct.Device or, of two, a hybrid.Device
	id      domain.DeviceID
	watched *watched.Device // below the engine; of a pair its flash
	disk    *watched.Device // of a pair; nil is none
	engine  *engine.Engine

	mu struct {
		sync.Mutex
		suspect [2]bool // the device or the flash of a pair, and its disk
	}
}

// side names a part of a pair in what is told of it.
type side int

const (
	first  side = iota // a device that is one, or the flash of a pair
	second             // the disk of a pair
)

// after notes what the watch over a member says. It tells whether that changes what is said of the
// device: a pair is well when both members are.
func (u *unit) after(m side, c watched.Change) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.mu.suspect[m] = c.State == watched.Suspect
	return c.State == watched.Suspect || u.mu.suspect == [2]bool{}
}

// close takes a last checkpoint and gives the device up.
func (u *unit) close(log *slog.Logger) {
	if u.engine != nil {
		if err := u.engine.Close(); err != nil {
			log.Error("closing a device", "err", err)
		}
	}
	if err := u.device.Close(); err != nil {
		log.Error("closing a device", "err", err)
	}
}

// devices are the node's open devices and the engines over them.
type devices struct {
	mu struct {
		sync.RWMutex
		units []*unit // never changed in place
	}
	kept  keptDevices  // what the data folder says of them
	reads *cache.Cache // of all engines; nil is none
	key   []byte       // that wraps the keys of encrypted volumes
	// nvram is the node's NVRAM and region the table of its shares; nil is none.
	nvram   backends.ByteDevice
	region  *journal.Region
	noNVRAM bool // it was given up at this start
	moves   emptyings
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
	specs := slices.Clip(o.Devices)
	if len(specs) == 0 {
		specs, err = d.deviceFiles(o)
	}
	if err == nil {
		ds.kept, err = d.keptDevices()
	}
	if err != nil {
		ds.close(log)
		return nil, nil, err
	}
	for _, spec := range append(specs, ds.kept.besides(specs)...) {
		u, err := attach(ctx, o, d, spec, log)
		if domain.IsKind(err, domain.NotFound) && d.id.Incarnation > 1 {
			// It was there once, or it is a slip: either way the other devices serve.
			log.Error("device not there", "path", spec, "err", err)
			continue
		}
		if err != nil {
			ds.close(log)
			return nil, nil, domain.Wrap(err, "serve", "device "+spec)
		}
		if slices.Contains(ds.kept.Removed, u.id) {
			log.Info("device left alone: it was removed", "path", spec, "device", u.id.String())
			u.close(log)
			continue
		}
		ds.add(u)
	}
	if ds.region != nil && !o.DropNVRAM {
		ds.region.Allot(ds.ids(), int64(shareLeast))
	}
	for _, u := range ds.all() {
		if err := ds.begin(ctx, o, d, u, log); err != nil {
			ds.close(log)
			return nil, nil, domain.Wrap(err, "serve", "device "+u.spec)
		}
	}
	if o.DropNVRAM {
		ds.dropped(log)
	}
	if err := engine.SettleMigrations(ctx, ds.engines()); err != nil {
		log.Error("what a migration left is not settled, and shown to nobody", "err", err)
	}
	if err := ds.remnants(ctx, o.DiscardCopies, log); err != nil {
		ds.close(log)
		return nil, nil, err
	}
	return ds, func() { ds.close(log) }, nil
}

// remnants throws copies away that wait for a device which is not there, where that is asked for,
// and says what waits for one.
func (ds *devices) remnants(ctx context.Context, discard bool, log *slog.Logger) error {
	for _, u := range ds.all() {
		if discard {
			n, err := u.engine.DiscardCopies(ctx)
			if err != nil {
				return domain.Wrap(err, "serve", "device "+u.spec)
			}
			if n > 0 {
				log.Warn("copies of volumes are thrown away", "device", u.spec, "families", n)
			}
		}
		for _, r := range u.engine.Remnants() {
			const waits = "volumes are shown to nobody: what became of their move only a device can tell " +
				"that is not there"
			what, help := "a copy, not known to be the newest",
				"attach the device that they come from; --discard-copies throws the copy away"
			if r.Left {
				what, help = "what they were before they went to that device", "attach the device they went to"
			}
			log.Warn(waits, "device", u.spec, "volumes", r.Volumes, "snapshots", len(r.Snapshots),
				"here", what, "help", help)
		}
	}
	return nil
}

// all gives the devices of now. Their engines are open once openDevices has returned.
func (ds *devices) all() []*unit {
	ds.mu.RLock()
	defer ds.mu.RUnlock()
	return ds.mu.units
}

// engines gives those of the devices.
func (ds *devices) engines() (out []*engine.Engine) {
	for _, u := range ds.all() {
		if u.engine != nil {
			out = append(out, u.engine)
		}
	}
	return out
}

func (ds *devices) ids() []domain.DeviceID {
	var out []domain.DeviceID
	for _, u := range ds.all() {
		out = append(out, u.id)
	}
	return out
}

// find gives a device; nil when it is not here.
func (ds *devices) find(id domain.DeviceID) *unit {
	for _, u := range ds.all() {
		if u.id == id {
			return u
		}
	}
	return nil
}

// add takes one more device in.
func (ds *devices) add(u *unit) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	ds.mu.units = append(slices.Clone(ds.mu.units), u)
}

// drop forgets a device, which its caller closes.
func (ds *devices) drop(u *unit) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	ds.mu.units = slices.DeleteFunc(slices.Clone(ds.mu.units), func(x *unit) bool { return x == u })
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
func attach(ctx context.Context, o Options, d *dataDir, spec string, log *slog.Logger) (
	u *unit, err error,
) {
	parsed, err := parseDevice(spec)
	if err != nil {
		return nil, err
	}
	dev, err := parsed.open(o.Media)
	if err != nil {
		return nil, err
	}
	defer func() {
		if u == nil {
			err = errors.Join(err, dev.Close())
		}
	}()
	found(parsed, dev, log)
	id, cluster, err := engine.Probe(dev)
	switch {
	case err == nil && cluster != d.id.Cluster:
		return nil, &domain.Error{
			Kind: domain.Denied, Msg: "the device belongs to cluster " + cluster.String(),
			Remedy: "use the data folder of that cluster, or wipe the device by hand",
		}
	case domain.IsKind(err, domain.NotFound):
		if err := blank(dev); err != nil {
			return nil, err
		}
		id = domain.DeviceID{UUID: randomUUID()}
		err = engine.Format(ctx, dev, engine.FormatOptions{
			Cluster: d.id.Cluster, Node: d.id.Node, Device: id,
		})
		if err != nil {
			return nil, err
		}
		log.Info("device formatted", "path", spec)
	case err != nil:
		return nil, err
	}
	return &unit{spec: spec, device: dev, id: id}, nil
}

// found logs what a device is taken for, and what the kernel says of it.
func found(spec deviceSpec, dev backends.Device, log *slog.Logger) {
	geo := dev.Geometry()
	for _, path := range []string{spec.path, spec.disk} {
		m, err := direct.Probe(path)
		if path == "" || err != nil {
			continue // opening it has said more
		}
		log.Info("device found", "path", path, "class", classOf(geo), "model", m.Model, "serial",
			m.Serial, "disk", m.Disk, "turns", m.Rotational, "virtual", m.Virtual, "nvme", m.NVMe,
			"sector", geo.LogicalBlock, "atomic", geo.AtomicUnit, "cache", m.WriteCache, "discard",
			m.Discard, "writes", geo.Durability.String())
	}
}

// begin recovers the engine of an attached device.
func (ds *devices) begin(ctx context.Context, o Options, d *dataDir, u *unit,
	log *slog.Logger,
) error {
	w, err := ds.watch(o, d, u, log)
	if err != nil {
		return err
	}
	mode := engine.Durable
	if o.Durability == "process" {
		mode = engine.Process
	}
	u.engine, err = engine.Open(ctx, engine.Config{
		Device: w, Cluster: d.id.Cluster, Node: d.id.Number, Mode: mode, Logger: log,
		Journal: ds.share(u.id, log), DropJournal: o.DropNVRAM, AcceptLoss: o.AcceptNVRAMLoss,
		Reads: ds.reads, ClusterKey: ds.key,
		Report: func(f engine.Fact) { ds.told(f, log) },
	})
	return nvramRemedy(err)
}

// volumesKey gives the key that wraps those of encrypted volumes. It is derived from what every
// node of the cluster holds, and hands to those that join: the key of the cluster's authority. So a
// device can be read on any node of its cluster, and nowhere else.
func volumesKey(authority []byte) ([]byte, error) {
	return hkdf.Key(sha256.New, authority, nil, "weft volume keys 1", 32)
}

// watch puts between a device and its engine what watches it. No host waits for a write to the disk
// of a pair, and one of megabytes would be taken for a slow one: it is measured by another scale.
func (ds *devices) watch(o Options, d *dataDir, u *unit, log *slog.Logger) (
	backends.Device, error,
) {
	wrap := func(dev backends.Device) backends.Device {
		if o.Wrap == nil {
			return dev
		}
		return o.Wrap(dev.Geometry().Path, dev)
	}
	tell := func(m side, of string) func(watched.Change) {
		return func(c watched.Change) {
			c.Why = of + c.Why
			if u.after(m, c) {
				ds.changed(u.id, d.id.Node, c, log)
			}
		}
	}
	pair, ok := u.device.(*hybrid.Device)
	if !ok {
		u.watched = watched.New(wrap(u.device), time.Now, tell(first, ""))
		return u.watched, nil
	}
	flash, disk := pair.Members()
	u.watched = watched.New(wrap(flash), time.Now, tell(first, "the flash: "))
	u.disk = watched.NewStreamed(wrap(disk), time.Now, tell(second, "the disk: "))
	again, err := hybrid.Open(u.watched, u.disk)
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
	for _, u := range ds.all() {
		u.close(log)
	}
	if ds.nvram != nil {
		if err := ds.nvram.Close(); err != nil {
			log.Error("closing the NVRAM", "err", err)
		}
	}
}
