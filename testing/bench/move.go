package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"weft/backends"
	"weft/backends/direct"
	"weft/dataplane/engine"
	"weft/dataplane/vdisk"
	"weft/domain"
)

// pauseMost is what hosts may wait for the switch of a family to another device, beyond the longest
// write of the same load on its own.
const pauseMost = 200 * time.Millisecond

// moveBench measures what it costs that a volume goes from device to device.
type moveBench struct {
	dir     string
	size    int64
	depth   int
	runtime time.Duration
	ends    [2]*engine.Engine
	files   [2]*direct.Device
	s       server
	row     moveRow
}

// moveRow is what it gave. Rates are bytes a second.
type moveRow struct {
	raw        float64 // one read and one write of 1 MiB after the other, without an engine
	quiet      float64 // of the copy, nobody writing
	loaded     float64 // under a load of random writes, what was copied again included
	took       time.Duration
	pause      time.Duration // from the first request kept back to the last let in
	alone, met float64       // IOPS of the load on its own, and while it moved
	before     time.Duration // the longest write on its own
	longest    time.Duration // and while it moved
}

func benchMove(ctx context.Context, args []string, out io.Writer) error {
	b := &moveBench{}
	set := flag.NewFlagSet("bench move", flag.ContinueOnError)
	set.StringVar(&b.dir, "dir", os.TempDir(), "folder on the file system to measure")
	set.IntVar(&b.depth, "depth", 32, "requests under way")
	set.DurationVar(&b.runtime, "runtime", 5*time.Second, "length of the load on its own")
	size := set.String("size", "1GiB", "size of the volume; the files take up to eight times as much")
	strict := set.Bool("strict", false, "exit with 3 when a target is missed")
	if err := set.Parse(args); err != nil {
		return err
	}
	bytes, err := domain.ParseBytes(*size)
	if err != nil {
		return err
	}
	if b.size = int64(bytes); b.size < 64*mib || b.size > 8*gib || b.depth < 1 || b.depth > 1024 ||
		b.size%int64(domain.VolumeMin) != 0 {
		return errors.New("-size: from 64 MiB to 8 GiB, whole 4 MiB; -depth: from 1 to 1024")
	}
	if err := b.measure(ctx); err != nil {
		return err
	}
	failed, err := b.row.report(out, b.depth)
	if err == nil && failed > 0 && *strict {
		err = errMissed
	}
	return err
}

// measure moves a volume without a load, and back under one.
func (b *moveBench) measure(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp(b.dir, "weft-move-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.open(ctx, dir); err != nil {
		return err
	}
	fill := load{Name: "fill", RW: "write", Block: mib, Depth: 4}
	if _, err := newDriver(b.s.disk, fill).run(ctx, 0); err != nil {
		return err
	}
	if b.row.raw, err = b.rawCopy(filepath.Join(dir, "raw")); err != nil {
		return err
	}
	if b.row.quiet, _, err = b.move(ctx, 0); err != nil {
		return err
	}
	hosts := newDriver(b.s.disk, load{Name: "4k", RW: "randwrite", Block: 4 * kib, Depth: b.depth})
	took, err := hosts.run(ctx, b.runtime)
	if err != nil {
		return err
	}
	b.row.alone = float64(hosts.hist.total) / took.Seconds()
	b.row.before, hosts.hist = hosts.hist.quantile(1), histogram{}
	under, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		var err error
		took, err = hosts.run(under, time.Hour)
		ended <- err
	}()
	b.row.loaded, b.row.took, err = b.move(ctx, 1)
	stop()
	if e := <-ended; !errors.Is(e, context.Canceled) {
		err = errors.Join(err, e)
	}
	b.row.met, b.row.longest = float64(hosts.hist.total)/took.Seconds(), hosts.hist.quantile(1)
	return err
}

// open makes two devices, and a volume on the first.
func (b *moveBench) open(ctx context.Context, dir string) (err error) {
	cluster := domain.ClusterID{UUID: domain.DeriveUUID(domain.UUID{}, "bench")}
	for i, name := range []string{"first", "second"} {
		dev, err := direct.Create(filepath.Join(dir, name), 4*b.size, direct.Options{})
		if err != nil {
			return err
		}
		b.files[i] = dev
		err = engine.Format(ctx, dev, engine.FormatOptions{
			Cluster: cluster,
			Node:    domain.NodeID{UUID: domain.DeriveUUID(cluster.UUID, "node")},
			Device:  domain.DeviceID{UUID: domain.DeriveUUID(cluster.UUID, name)},
		})
		if err != nil {
			return err
		}
		b.ends[i], err = engine.Open(ctx, engine.Config{
			Device: dev, Cluster: cluster, Node: 1, Mode: engine.Durable,
		})
		if err != nil {
			return err
		}
	}
	id := domain.VolumeID{UUID: domain.DeriveUUID(cluster.UUID, "volume")}
	vol, err := b.ends[0].Create(ctx, id, domain.Bytes(b.size), 1)
	if err != nil {
		return err
	}
	b.s.pool = vdisk.NewPool(vdisk.PoolSize)
	b.s.disk, err = vdisk.New(vdisk.Config{
		Target: b.target(b.ends[0], vol), Pool: b.s.pool, Name: exportName, Gateway: 1, Incarnation: 1,
	})
	return err
}

func (*moveBench) target(e *engine.Engine, v *engine.Volume) vdisk.Target {
	return vdisk.Target{Volume: v, Volatile: e.Volatile(), Flush: e.Flush, Scheduler: e.Scheduler()}
}

func (b *moveBench) close() error {
	errs := []error{b.s.close()}
	for i, e := range b.ends {
		if e != nil {
			errs = append(errs, e.Close())
		}
		if b.files[i] != nil {
			errs = append(errs, b.files[i].Close())
		}
	}
	return errors.Join(errs...)
}

// rawCopy copies the volume's size from the first device to a file as plainly as can be, one piece
// at a time and each durable, and gives the rate.
func (b *moveBench) rawCopy(file string) (rate float64, err error) {
	to, err := direct.Create(file, b.size, direct.Options{})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, to.Close(), os.Remove(file)) }()
	buf := backends.AlignedBuffer(mib)
	began := time.Now()
	for off := int64(0); off < b.size; off += mib {
		if err := b.files[0].ReadAt(buf, off); err != nil {
			return 0, err
		}
		if err := to.WriteAt(buf, off, true); err != nil {
			return 0, err
		}
	}
	return float64(b.size) / time.Since(began).Seconds(), nil
}

// move takes the volume from one end to the other, as the node's agent does.
func (b *moveBench) move(ctx context.Context, from int,
) (rate float64, took time.Duration, err error) {
	src, dst := b.ends[from], b.ends[1-from]
	began := time.Now()
	m, err := src.Migrate(src.Families()[0].ID, dst, nil)
	if err != nil {
		return 0, 0, err
	}
	for range 2 {
		if err := m.Copy(ctx); err != nil {
			return 0, 0, errors.Join(err, m.Abort(ctx))
		}
	}
	paused := time.Now()
	b.s.disk.Pause()
	defer b.s.disk.Resume()
	m.Release()
	if err = b.s.disk.Drain(ctx); err == nil {
		err = m.Finish(ctx)
	}
	if err != nil {
		return 0, 0, errors.Join(err, m.Abort(ctx))
	}
	v, ok := m.Copied(b.s.disk.Info().ID)
	if !ok {
		return 0, 0, errors.New("the volume was not copied")
	}
	if err := b.s.disk.Retarget(b.target(dst, v)); err != nil {
		return 0, 0, err
	}
	b.row.pause, took = time.Since(paused), time.Since(began)
	done, _ := m.Progress()
	return float64(done) / took.Seconds(), took, m.Clean(ctx)
}

// moveFooter says what the figures are.
const moveFooter = `
%s
raw: a read and a durable write of 1 MiB after the other. copy: of a family that nobody writes to,
and under 4 KiB random writes, %d at a time, what is copied again included. pause: from the first
request that is kept back until all go on. longest: acknowledgement of a write.

`

func (r *moveRow) report(w io.Writer, depth int) (failed int, err error) {
	const mb = 1e6
	ms := func(d time.Duration) string { return fmt.Sprintf("%.1f", in(time.Millisecond, d).Median) }
	lines := [][]string{
		{"", "MB/s", "of raw", "took s", "pause ms", "IOPS", "longest ms"},
		{"raw", fmt.Sprintf("%.0f", r.raw/mb), "1.00", "", "", "", ""},
		{
			"copy, quiet", fmt.Sprintf("%.0f", r.quiet/mb), fmt.Sprintf("%.2f", r.quiet/r.raw),
			"", "", "", "",
		},
		{"load alone", "", "", "", "", fmt.Sprintf("%.0f", r.alone), ms(r.before)},
		{
			"copy under load", fmt.Sprintf("%.0f", r.loaded/mb), fmt.Sprintf("%.2f", r.loaded/r.raw),
			fmt.Sprintf("%.1f", r.took.Seconds()), ms(r.pause), fmt.Sprintf("%.0f", r.met), ms(r.longest),
		},
	}
	if _, err := fmt.Fprintf(w, moveFooter, align(lines, 1), depth); err != nil {
		return 0, err
	}
	return printTargets(w, []target{{
		Name: "longest write while it moves, beyond that of the load alone", Most: true,
		Want: in(time.Millisecond, pauseMost).Median, Unit: "ms",
		Got: in(time.Millisecond, max(r.longest-r.before, 0)),
	}}, false)
}
