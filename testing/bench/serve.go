package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"time"

	"weft/adapters/iscsi"
	"weft/adapters/nbd"
	"weft/adapters/scsi"
	"weft/backends"
	"weft/backends/direct"
	"weft/backends/nvram"
	"weft/dataplane/cache"
	"weft/dataplane/engine"
	"weft/dataplane/vdisk"
	"weft/domain"
)

const (
	exportName = "bench"
	targetName = "iqn.2026-01.org.weft:bench"
	// coresLeast is what the node's program sets too: a goroutine in a system call keeps its
	// processor for a while.
	coresLeast = 16
)

// hello is the first line that a server writes: where it is reached.
type hello struct {
	NBD    string `json:"nbd"`   // host:port
	ISCSI  string `json:"iscsi"` // host:port
	Device string `json:"device"`
	// Durability of a completed write on the device below the engine.
	Durability string `json:"durability"`
}

// order is a line that a server reads: a load to run in its own process, for a time or once over
// the whole disk, or none to ask for the counters alone.
type order struct {
	Load    *load         `json:"load,omitempty"`
	Time    time.Duration `json:"time,omitempty"`
	Profile bool          `json:"profile,omitempty"` // begin the profile that the flags ask for
	// Alone lets the driver run the load on no disk, for its own CPU per request.
	Alone bool `json:"alone,omitempty"`
}

// answer is a line that a server writes for each order.
type answer struct {
	Sample sample       `json:"sample"`
	Stats  engine.Stats `json:"stats"`
	// Written bytes of the device since the server started.
	Written int64  `json:"written"`
	Err     string `json:"err,omitempty"`
}

// server is one Weft data path without a control plane: engine, disk, NBD and iSCSI.
type server struct {
	calls   *timed // nil: nobody asks how long calls into dev take
	dev     *direct.Device
	journal *nvram.Region // nil but in mode nvram
	eng     *engine.Engine
	pool    *vdisk.Pool
	disk    *vdisk.Disk
	unit    *scsi.Unit
	nbd     *nbd.Server
	iscsi   *iscsi.Server
	hello   hello
	profile *os.File
}

type serveFlags struct {
	file, socket, mode, profile string
	device, volume, cache       int64
	checkpoint                  int64 // bytes of log between checkpoints; 0: the engine's own
}

// serve is the program's second mode: it serves a file until its input ends, which also happens
// when the one who started it dies.
func serve(ctx context.Context, args []string, in io.Reader, out io.Writer) (err error) {
	var f serveFlags
	set := flag.NewFlagSet("bench serve", flag.ContinueOnError)
	set.StringVar(&f.file, "file", "", "device `file`, made when it is not there")
	set.Int64Var(&f.device, "device", 4*gib, "`bytes` of a device that is made")
	set.Int64Var(&f.volume, "volume", 2*gib, "`bytes` of the volume")
	set.Int64Var(&f.cache, "read-cache", 0, "`bytes` of memory for what is read again")
	set.StringVar(&f.socket, "socket", "", "`path` of the NBD unix socket")
	set.StringVar(&f.mode, "durability", modeDurable, "durable, process or nvram")
	set.StringVar(&f.profile, "cpuprofile", "", "`file` for a CPU profile, once it is asked for")
	if err := set.Parse(args); err != nil {
		return err
	}
	runtime.GOMAXPROCS(max(coresLeast, runtime.NumCPU()))
	s := &server{}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.openDisk(ctx, f); err != nil {
		return err
	}
	if err := s.openFront(f); err != nil {
		return err
	}
	enc := json.NewEncoder(out)
	if err := enc.Encode(s.hello); err != nil {
		return err
	}
	orders := make(chan order)
	go func() {
		defer close(orders)
		dec := json.NewDecoder(in)
		for {
			var o order
			if err := dec.Decode(&o); err != nil {
				return
			}
			orders <- o
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case o, ok := <-orders:
			if !ok {
				return nil
			}
			if err := enc.Encode(s.obey(ctx, o, f)); err != nil {
				return err
			}
		}
	}
}

// openDisk makes or opens the device, and the volume on it.
func (s *server) openDisk(ctx context.Context, f serveFlags) error {
	cluster := domain.ClusterID{UUID: domain.DeriveUUID(domain.UUID{}, "bench")}
	if _, err := os.Stat(f.file); errors.Is(err, fs.ErrNotExist) {
		if s.dev, err = direct.Create(f.file, f.device, direct.Options{}); err != nil {
			return err
		}
		err = engine.Format(ctx, s.dev, engine.FormatOptions{
			Cluster: cluster,
			Node:    domain.NodeID{UUID: domain.DeriveUUID(cluster.UUID, "node")},
			Device:  domain.DeviceID{UUID: domain.DeriveUUID(cluster.UUID, "device")},
		})
		if err != nil {
			return err
		}
	} else if s.dev, err = direct.Open(f.file, direct.Options{}); err != nil {
		return err
	}
	if err := s.openEngine(ctx, f, cluster); err != nil {
		return err
	}
	id := domain.VolumeID{UUID: domain.DeriveUUID(cluster.UUID, "volume")}
	vol, err := s.eng.Create(ctx, id, domain.Bytes(f.volume), 1)
	if err != nil {
		return err
	}
	geo := s.dev.Geometry()
	s.hello.Device, s.hello.Durability = geo.Path, geo.Durability.String()
	s.pool = vdisk.NewPool(vdisk.PoolSize)
	s.disk, err = vdisk.New(vdisk.Config{
		Target: vdisk.Target{
			Volume: vol, Volatile: s.eng.Volatile(), Flush: s.eng.Flush, Scheduler: s.eng.Scheduler(),
		},
		Pool: s.pool, Name: exportName, Rotational: geo.Rotational, Gateway: 1, Incarnation: 1,
	})
	return err
}

// under gives the device as the engine gets it.
func (s *server) under() backends.Device {
	if s.calls == nil {
		return s.dev
	}
	s.calls.Device = s.dev
	return s.calls
}

// openEngine opens the engine in a mode.
func (s *server) openEngine(ctx context.Context, f serveFlags, cluster domain.ClusterID) error {
	cfg := engine.Config{
		Device: s.under(), Cluster: cluster, Node: 1, Mode: engine.Durable, Logger: slog.Default(),
		Reads: cache.New(f.cache), CheckpointBytes: f.checkpoint,
		Report: func(f engine.Fact) { slog.Error("device", "what", f.What, "detail", f.Detail) },
	}
	var err error
	switch f.mode {
	case modeDurable:
	case modeProcess:
		cfg.Mode = engine.Process
	case modeNVRAM:
		if s.journal, err = sharedMemory(journalBytes); err != nil {
			return err
		}
		cfg.Journal = s.journal
	default:
		return fmt.Errorf("durability %q: durable, process or nvram", f.mode)
	}
	s.eng, err = engine.Open(ctx, cfg)
	return err
}

// journalBytes is the size of the journal: a second's writes at the most, so that a run fills it
// many times.
const journalBytes = 256 * mib

// sharedMemory gives memory in place of NVRAM. It has no name once it is mapped, so nothing stays
// behind however the server ends.
func sharedMemory(size int64) (*nvram.Region, error) {
	dir, err := os.MkdirTemp("/dev/shm", "weft-bench-")
	if err != nil {
		return nil, err
	}
	r, err := nvram.Open(filepath.Join(dir, "journal"), size)
	return r, errors.Join(err, os.RemoveAll(dir))
}

// openFront offers the disk by NBD and iSCSI on the loopback interface.
func (s *server) openFront(f serveFlags) error {
	var err error
	cfg := nbd.Config{Log: slog.Default(), Memory: backends.HugeBuffer}
	if s.nbd, err = nbd.New(cfg); err != nil {
		return err
	}
	if err := s.nbd.SetExports([]nbd.Export{{Name: exportName, Disk: s.disk}}); err != nil {
		return err
	}
	if s.hello.NBD, err = listen("tcp", "127.0.0.1:0", s.nbd.Serve); err != nil {
		return err
	}
	if f.socket != "" {
		if _, err := listen("unix", f.socket, s.nbd.Serve); err != nil {
			return err
		}
	}
	if s.unit, err = scsi.New(scsi.Config{Disk: s.disk, Revision: "1"}); err != nil {
		return err
	}
	if s.iscsi, err = iscsi.New(iscsi.Config{Log: slog.Default()}); err != nil {
		return err
	}
	err = s.iscsi.SetTargets([]iscsi.Target{{
		Name: targetName, AllowAny: true, LUNs: map[uint16]iscsi.LUN{0: s.unit},
	}})
	if err != nil {
		return err
	}
	s.hello.ISCSI, err = listen("tcp", "127.0.0.1:0", s.iscsi.Serve)
	return err
}

// listen lets a server accept on an address, which it gives back. The server's Close ends it.
func listen(network, addr string, run func(net.Listener) error) (string, error) {
	l, err := net.Listen(network, addr)
	if err != nil {
		return "", err
	}
	go func() {
		if err := run(l); err != nil && !errors.Is(err, net.ErrClosed) {
			slog.Error("portal", "addr", addr, "err", err)
		}
	}()
	return l.Addr().String(), nil
}

// obey runs one order.
func (s *server) obey(ctx context.Context, o order, f serveFlags) answer {
	var a answer
	var err error
	switch {
	case o.Load != nil && o.Alone:
		a.Sample.Driver, err = driverAlone(ctx, *o.Load, s.disk.Info())
	case o.Load != nil:
		a.Sample, err = drive(ctx, s.disk, *o.Load, o.Time)
	case o.Profile && f.profile != "" && s.profile == nil:
		if s.profile, err = os.Create(f.profile); err == nil {
			err = pprof.StartCPUProfile(s.profile)
		}
	}
	if err != nil {
		a.Err = err.Error()
	}
	a.Stats, a.Written = s.eng.Stats(), s.dev.Stats().WriteBytes
	return a
}

// close takes everything down that was opened, the front first.
func (s *server) close() error {
	var errs []error
	if s.nbd != nil {
		errs = append(errs, s.nbd.Close())
	}
	if s.iscsi != nil {
		s.iscsi.Close()
	}
	if s.unit != nil {
		s.unit.Close()
	}
	if s.pool != nil {
		s.pool.Close()
	}
	if s.profile != nil {
		pprof.StopCPUProfile()
		errs = append(errs, s.profile.Close())
	}
	if s.eng != nil {
		errs = append(errs, s.eng.Close())
	}
	if s.journal != nil { // what it holds goes with it, as the device does
		errs = append(errs, s.journal.Close())
	}
	if s.dev != nil {
		errs = append(errs, s.dev.Close())
	}
	return errors.Join(errs...)
}
