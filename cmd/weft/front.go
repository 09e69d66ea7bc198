package main

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"weft/adapters/iscsi"
	"weft/adapters/nbd"
	"weft/adapters/scsi"
	"weft/backends"
	"weft/dataplane/agent"
	"weft/dataplane/vdisk"
	"weft/domain"
	"weft/domain/command"
)

// front joins the agent with the block targets: NBD takes disks as they are, iSCSI takes them as
// SCSI logical units.
type front struct {
	dir   *dataDir
	log   *slog.Logger
	nbd   *nbd.Server
	iscsi *iscsi.Server
	wg    sync.WaitGroup

	nbdAddr, iscsiAddr string // as hosts reach them; empty: not offered
	socket             string

	mu    sync.Mutex
	units map[*vdisk.Disk]*scsi.Unit
}

// openFront listens and serves nothing yet.
func openFront(o Options, d *dataDir, log *slog.Logger) (*front, func(), error) {
	f := &front{dir: d, log: log, units: map[*vdisk.Disk]*scsi.Unit{}}
	var err error
	if f.nbd, err = nbd.New(nbd.Config{Log: log, Memory: backends.HugeBuffer}); err != nil {
		return nil, nil, err
	}
	l, err := listen("tcp", o.ISCSI, "--iscsi")
	if err != nil {
		return nil, nil, err
	}
	if l != nil {
		f.iscsiAddr = reachable(l.Addr().String())
	}
	cfg := iscsi.Config{Log: log, Alias: "weft " + d.id.Name}
	// Where nobody says, discovery answers with the address that the host itself came to.
	if o.AdvertiseISCSI != "" {
		f.iscsiAddr, cfg.Advertise = o.AdvertiseISCSI, []string{o.AdvertiseISCSI}
	}
	if f.iscsi, err = iscsi.New(cfg); err != nil {
		return nil, nil, err
	}
	if l != nil {
		f.serve(l, f.iscsi.Serve)
	}
	if err := f.listenNBD(o); err != nil {
		f.close()
		return nil, nil, err
	}
	return f, f.close, nil
}

// listenNBD opens the TCP port and the unix socket.
func (f *front) listenNBD(o Options) error {
	l, err := listen("tcp", o.NBD, "--nbd")
	if err != nil {
		return err
	}
	if l != nil {
		f.nbdAddr = reachable(l.Addr().String())
		f.serve(l, f.nbd.Serve)
	}
	if o.NBDSocket == "" {
		return nil
	}
	_ = os.Remove(o.NBDSocket) // of a process that was killed; the data folder's lock is ours
	if l, err = listen("unix", o.NBDSocket, "--nbd-socket"); err != nil {
		return err
	}
	f.socket = o.NBDSocket
	f.serve(l, f.nbd.Serve)
	return nil
}

// listen opens a portal; "off" opens none.
func listen(network, addr, flag string) (net.Listener, error) {
	if addr == "off" || addr == "" {
		return nil, nil
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		return nil, &domain.Error{
			Op: "serve", Kind: domain.Unavailable, Ref: flag + " " + addr, Err: cause(err),
			Remedy: "choose another address with " + flag + ", or stop what uses this one",
		}
	}
	return l, nil
}

// cause drops what repeats the address from a network error.
func cause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// vacant tells of an address that is taken before a long start, not after it.
func vacant(o Options) error {
	for _, a := range []struct{ addr, flag string }{
		{o.API, "--api"},
		{o.NBD, "--nbd"},
		{o.ISCSI, "--iscsi"},
		{o.Peer, "--peer"},
		{o.Events, "--events"},
	} {
		l, err := listen("tcp", a.addr, a.flag)
		if err != nil {
			return err
		}
		if l != nil {
			_ = l.Close() // it held nothing yet
		}
	}
	return nil
}

func (f *front) serve(l net.Listener, run func(net.Listener) error) {
	f.wg.Go(func() {
		if err := run(l); err != nil && !errors.Is(err, net.ErrClosed) {
			f.log.Error("portal", "addr", l.Addr().String(), "err", err)
		}
	})
}

func (f *front) close() {
	if err := f.nbd.Close(); err != nil {
		f.log.Error("closing the NBD server", "err", err)
	}
	f.iscsi.Close()
	f.wg.Wait()
}

// Serve implements agent.Front.
func (f *front) Serve(list []agent.Served) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	targets, kept, err := f.targets(list)
	if err != nil {
		return err
	}
	var exports []nbd.Export
	for _, s := range list {
		if s.Export.NBD != "" {
			exports = append(exports, nbd.Export{
				Name: s.Export.NBD, Description: "weft volume " + s.Export.Name, Disk: s.Disk,
				ReadOnly: s.Export.ReadOnly,
			})
		}
	}
	if err := f.nbd.SetExports(exports); err != nil {
		return err
	}
	if err := f.iscsi.SetTargets(targets); err != nil {
		return err
	}
	for d, u := range f.units {
		if kept[d] == nil {
			u.Close()
		}
	}
	f.units = kept
	return nil
}

// Hosts implements agent.Front. A session of iSCSI is one with a target, so it counts for each of
// the target's units.
func (f *front) Hosts(x command.Export) int {
	n := 0
	if x.NBD != "" {
		n += f.nbd.Connected(x.NBD)
	}
	if x.Target != "" {
		n += f.iscsi.Sessions(x.Target)
	}
	return n
}

// targets gathers the logical units by target. A disk keeps its unit while it is served, and with
// it reservations and unit attentions.
func (f *front) targets(list []agent.Served) ([]iscsi.Target, map[*vdisk.Disk]*scsi.Unit, error) {
	var out []iscsi.Target
	kept := map[*vdisk.Disk]*scsi.Unit{}
	for _, s := range list {
		x := s.Export
		if x.Target == "" {
			continue
		}
		unit := f.units[s.Disk]
		if unit == nil {
			var err error
			if unit, err = scsi.New(scsi.Config{
				Disk: s.Disk, Revision: "1", Store: reservations{f.dir.file("reservations")},
			}); err != nil {
				return nil, nil, err
			}
		}
		kept[s.Disk] = unit
		at := slices.IndexFunc(out, func(t iscsi.Target) bool { return t.Name == x.Target })
		if at < 0 {
			t := iscsi.Target{
				Name: x.Target, AllowAny: x.AllowAny, Initiators: x.Initiators,
				LUNs: map[uint16]iscsi.LUN{},
			}
			if x.CHAP != "" {
				in, own, err := f.dir.credentials(x.CHAP)
				if err != nil {
					return nil, nil, err
				}
				t.CHAP = []iscsi.Credential{in}
				if x.Mutual {
					t.Own = own
				}
			}
			out, at = append(out, t), len(out)
		}
		out[at].LUNs[uint16(x.LUN)] = unit
	}
	return out, kept, nil
}

// NBDURI gives the URI of an NBD export, empty when NBD is off.
func (f *front) NBDURI(name string) string {
	if name == "" || f.nbdAddr == "" {
		return ""
	}
	return "nbd://" + f.nbdAddr + "/" + name
}

// ISCSIURI gives the URI of a logical unit as libiscsi and qemu take it.
func (f *front) ISCSIURI(target string, lun int) string {
	if target == "" || f.iscsiAddr == "" {
		return ""
	}
	return "iscsi://" + f.iscsiAddr + "/" + strings.ToLower(target) + "/" + strconv.Itoa(lun)
}
