package main

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"weft/backends"
	"weft/backends/direct"
	"weft/backends/hybrid"
	"weft/domain"
)

// deviceSpec is what --device names: a path, perhaps with its class, or a pair.
type deviceSpec struct {
	class string // "flash", "hdd", "hybrid"; empty: as --media says
	path  string // of a pair, of its flash
	disk  string // of a pair
}

// deviceForms is how a device is written.
const deviceForms = "write a device as PATH, flash:PATH or hdd:PATH, and a pair as " +
	"hybrid:flash=PATH,hdd=PATH"

// parseDevice reads a device: PATH, flash:PATH, hdd:PATH or hybrid:flash=PATH,hdd=PATH, the parts
// of a pair in any order. A path that begins like one of these is written with ./ before it.
func parseDevice(s string) (deviceSpec, error) {
	bad := func(msg string) (deviceSpec, error) {
		return deviceSpec{}, &domain.Error{Kind: domain.Invalid, Ref: s, Msg: msg, Remedy: deviceForms}
	}
	class, rest, ok := strings.Cut(s, ":")
	switch {
	case s == "":
		return bad("a device without a path")
	case !ok || class != "flash" && class != "hdd" && class != "hybrid":
		return deviceSpec{path: s}, nil
	case rest == "":
		return bad("a device without a path")
	case class != "hybrid":
		return deviceSpec{class: class, path: rest}, nil
	}
	d := deviceSpec{class: class}
	for _, part := range strings.Split(rest, ",") {
		name, path, _ := strings.Cut(part, "=")
		switch {
		case name == "flash" && d.path == "" && path != "":
			d.path = path
		case name == "hdd" && d.disk == "" && path != "":
			d.disk = path
		default:
			return bad("a pair is one flash and one hdd, not " + part)
		}
	}
	if d.path == "" || d.disk == "" {
		return bad("a pair is one flash and one hdd")
	}
	return d, nil
}

// classOf gives the class that a device is shown and chosen by.
func classOf(g backends.Geometry) string {
	switch {
	case g.Boundary > 0:
		return "hybrid"
	case g.Rotational:
		return "hdd"
	}
	return "flash"
}

// open opens a device, or a pair, which it makes of two that are blank. The kernel is asked what
// turns only where nobody has said it.
func (s deviceSpec) open(media string) (backends.Device, error) {
	if s.class == "hybrid" {
		return s.openPair()
	}
	var opt direct.Options
	if class := s.class; class != "" || media != "probe" {
		if class == "" {
			class = media
		}
		hdd := class == "hdd"
		opt.Rotational = &hdd
	}
	one, err := direct.Open(s.path, opt)
	if err != nil {
		return nil, deviceError(err)
	}
	l, err := hybrid.Probe(one)
	switch {
	case err != nil:
		err = deviceError(err)
	case l != nil:
		err = &domain.Error{
			Kind: domain.Denied, Msg: "the device is the " + l.Role.String() + " of a hybrid pair",
			Remedy: "name both: --device hybrid:flash=PATH,hdd=PATH",
		}
	}
	if err != nil {
		return nil, errors.Join(err, one.Close())
	}
	return one, nil
}

func (s deviceSpec) openPair() (dev backends.Device, err error) {
	var list [2]*direct.Device
	defer func() {
		for _, d := range list {
			if err != nil && d != nil {
				err = errors.Join(err, d.Close())
			}
		}
	}()
	labels := 0
	for i, path := range []string{s.path, s.disk} {
		hdd := i == 1
		if list[i], err = direct.Open(path, direct.Options{Rotational: &hdd}); err != nil {
			list[i] = nil
			return nil, domain.Wrap(deviceError(err), "", path)
		}
		l, err := hybrid.Probe(list[i])
		if err != nil {
			return nil, domain.Wrap(deviceError(err), "", path)
		}
		if l != nil {
			labels++
		}
	}
	if labels == 0 {
		for _, d := range list {
			if err := blank(d); err != nil {
				return nil, domain.Wrap(err, "", d.Geometry().Path)
			}
		}
		if err := hybrid.Format(list[0], list[1]); err != nil {
			return nil, pairError(err)
		}
	}
	pair, err := hybrid.Open(list[0], list[1])
	if err != nil {
		return nil, pairError(err)
	}
	return pair, nil
}

// pairError says what is to be done about members that do not fit together.
func pairError(err error) error {
	for _, c := range []struct {
		why    error
		remedy string
	}{
		{hybrid.ErrSwapped, "name the SSD as flash= and the disk as hdd="},
		{hybrid.ErrOther, "name the disk that was made a pair with this flash; neither works without " +
			"the other"},
		{hybrid.ErrNoMember, "name the device that was made a pair with the other one; where the " +
			"making of a new pair was cut short, wipe the last two MiB of both and start again"},
		{hybrid.ErrSize, "name the device itself, not a copy or a partition of another size"},
		{hybrid.ErrSmall, "a pair needs 128 MiB of flash and more of disk"},
	} {
		if errors.Is(err, c.why) {
			return &domain.Error{Kind: domain.Denied, Err: err, Remedy: c.remedy}
		}
	}
	return deviceError(err)
}

// reading is a device opened for reading alone. It ends being read when its user gives up.
type reading struct {
	file *os.File
	ctx  context.Context
	size int64
}

var errReading = errors.New("the device is open for reading alone")

// openReading opens a device, or both of a pair, for reading alone, and holds it against other
// processes meanwhile.
func openReading(ctx context.Context, path string) (backends.Device, error) {
	spec, err := parseDevice(path)
	if err != nil {
		return nil, err
	}
	one, err := openFile(ctx, spec.path)
	if err != nil || spec.class != "hybrid" {
		return one, err
	}
	disk, err := openFile(ctx, spec.disk)
	if err != nil {
		return nil, errors.Join(err, one.Close())
	}
	pair, err := hybrid.Open(one, disk)
	if err != nil {
		return nil, errors.Join(pairError(err), one.Close(), disk.Close())
	}
	return pair, nil
}

func openFile(ctx context.Context, path string) (backends.Device, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, asDomain(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		_ = f.Close() // nothing was written
		return nil, &domain.Error{
			Kind: domain.Locked, Ref: path, Msg: "another process uses the device",
			Remedy: "stop the node first; while it runs: weft node scrub start",
		}
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		_ = f.Close() // nothing was written
		return nil, asDomain(err)
	}
	return reading{f, ctx, size}, nil
}

// Geometry implements backends.Device.
func (r reading) Geometry() backends.Geometry {
	return backends.Geometry{
		Size: r.size, LogicalBlock: 512, AtomicUnit: 512, MemoryAlign: 1, Path: r.file.Name(),
	}
}

// ReadAt implements backends.Device.
func (r reading) ReadAt(p []byte, off int64) error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	_, err := r.file.ReadAt(p, off)
	return err
}

// WriteAt implements backends.Device: it refuses.
func (reading) WriteAt([]byte, int64, bool) error { return errReading }

// Flush implements backends.Device.
func (reading) Flush(context.Context) error { return nil }

// Discard implements backends.Device: it refuses.
func (reading) Discard(context.Context, int64, int64) error { return errReading }

// Stats implements backends.Device.
func (reading) Stats() backends.DeviceStats { return backends.DeviceStats{} }

// Close implements backends.Device.
func (r reading) Close() error { return r.file.Close() }
