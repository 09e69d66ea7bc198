package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"weft/adapters/cli"
	"weft/adapters/client"
	"weft/domain"
	"weft/domain/cluster"
)

// schedulers is the least number of goroutines that may run at once. A direct read blocks its
// thread in the kernel, and the runtime notices only after a while that the thread's place is free:
// with one place for each of two cores, two reads would stop everything else for that long.
const schedulers = 16

// serve is `weft serve`. A node whose log was recovered without part of what it knows is taken down
// and brought up again: everything it shows was folded from a history that is none any more.
func serve(ctx context.Context, o cli.ServeOptions) error {
	r, err := up(ctx, o)
	if err != nil {
		return err
	}
	defer func() { r.down() }()
	if err := r.announce(o); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.backend.store.Superseded():
		}
		r.down()
		r.down = func() {}
		again, err := up(ctx, o)
		if err != nil {
			return err
		}
		r = again
	}
}

// running is a node that is up.
type running struct {
	*Node
	api   string // URL
	token string // empty when only its hash is left
	first bool   // it was never up before
	down  func()
}

// up brings a node up from flags.
func up(ctx context.Context, o cli.ServeOptions) (*running, error) {
	runtime.GOMAXPROCS(max(schedulers, runtime.NumCPU()))
	if err := checkOptions(o); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(o.DataDir)
	if err != nil {
		return nil, asDomain(err)
	}
	warn(o)
	log := logger(o.Err, o.LogLevel, o.LogFormat)
	// A signal cuts a start short. After it, the node is taken down in order, not by the signal.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	started := context.AfterFunc(ctx, end)
	n, down, err := Start(life, Options{
		DataDir: dir, Devices: o.Devices, DeviceSize: o.DeviceSize, Media: o.Media,
		Durability: o.Durability, NVRAM: o.NVRAM, DropNVRAM: o.DropNVRAM,
		AcceptNVRAMLoss: o.AcceptNVRAMLoss, DiscardCopies: o.DiscardCopies,
		APITLS: o.APITLS, APICert: o.APICert, APIKey: o.APIKey,
		API: o.API, NBD: o.NBD, NBDSocket: o.NBDSocket, ISCSI: o.ISCSI,
		AdvertiseISCSI: o.AdvertiseISCSI, Peer: o.Peer, AdvertisePeer: o.AdvertisePeer, Name: o.Name,
		Events: o.Events, EventsJSON: o.EventsJSON,
		Join: o.Join, Init: o.Init, VoterGrace: o.VoterGrace, Location: o.Location,
		ScrubEvery: o.ScrubEvery, ScrubRate: int64(o.ScrubRate), MigrateRate: int64(o.MigrateRate),
		ReadCache: int64(o.ReadCache), Calm: o.LogTiming == "calm", Logger: log,
		Progress: func(s string) { _, _ = fmt.Fprintln(o.Err, s) },
	})
	if err != nil {
		end()
		if ctx.Err() != nil {
			err = &domain.Error{Op: "serve", Kind: domain.Aborted, Msg: "stopped while starting", Err: err}
		}
		return nil, err
	}
	started()
	r := &running{Node: n, api: n.api.url}
	forget := remember(o.Current, dir, log)
	returned := startReturning()
	r.down = func() {
		returned()
		forget()
		down()
		end()
	}
	if r.token, r.first, err = n.dir.ready(r.api, n.api.ca); err != nil {
		r.down()
		return nil, err
	}
	return r, nil
}

// checkOptions refuses what could only fail later, all of it at once.
func checkOptions(o cli.ServeOptions) error {
	var c domain.Checker
	for _, a := range []struct{ flag, addr string }{
		{"--api", o.API},
		{"--nbd", o.NBD},
		{"--iscsi", o.ISCSI},
		{"--peer", o.Peer},
		{"--events", o.Events},
	} {
		if a.addr == "off" && a.flag != "--api" && a.flag != "--peer" {
			continue
		}
		_, port, err := net.SplitHostPort(a.addr)
		c.Check(err == nil && port != "", a.flag, "%q is no address; write it as 127.0.0.1:7780", a.addr)
	}
	c.Check((o.APICert == "") == (o.APIKey == ""), "--api-cert", "belongs with --api-key: give both")
	c.Check(o.APICert == "" || secured(o.APITLS, o.API), "--api-cert",
		"the API speaks no TLS at %s; give --api-tls on", o.API)
	c.Check(o.Join == "" || !o.Init, "--join",
		"a node joins a cluster or makes one (--init), not both")
	if path, size := splitNVRAM(o.NVRAM); o.NVRAM != "" {
		c.Check(path != "" && path[0] != ':', "--nvram", "names no path; write it as /mnt/pmem/weft:8GiB")
		c.Check(size == 0 || size >= shareLeast, "--nvram", "%s is too small: %s is the least", size,
			shareLeast)
	}
	c.Check(!o.DropNVRAM || o.NVRAM != "", "--drop-nvram", "needs --nvram: what it holds is destaged")
	c.Check(!o.DropNVRAM || !o.AcceptNVRAMLoss, "--drop-nvram",
		"NVRAM is given up with what it holds, or was lost, not both")
	if _, err := cluster.ParseLocation(o.Location); err != nil {
		c.Check(false, "--location", "%v", err)
	}
	for _, d := range o.Devices {
		_, err := parseDevice(d)
		c.Check(err == nil, "--device", "%v; %s", err, deviceForms)
	}
	c.Check(o.DeviceSize == 0 || o.DeviceSize >= deviceMin, "--device-size",
		"%s is too small: %s is the least", o.DeviceSize, deviceMin)
	return c.Err("serve", "")
}

// warn says what a person may not have meant.
func warn(o cli.ServeOptions) {
	say := func(s string) { _, _ = fmt.Fprintln(o.Err, "warning: "+s) }
	if o.Durability == "process" {
		say("--durability process: acknowledged writes survive the end of weft, not a power cut")
	}
	if !loopback(o.API) && !secured(o.APITLS, o.API) {
		say("--api " + o.API + ": the API is plain HTTP; others on the network can read the token")
	}
	if o.NBD != "off" && !loopback(o.NBD) {
		say("--nbd " + o.NBD + ": NBD asks for no password; whoever reaches it can write")
	}
}

// loopback tells whether an address is reached from this machine only.
func loopback(addr string) bool {
	host, _, _ := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// reachable makes an address that a client on this machine can call of one that was listened on.
func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); err == nil && ip != nil && ip.IsUnspecified() {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return addr
}

func logger(w io.Writer, level, format string) *slog.Logger {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		l = slog.LevelInfo // the flag takes known words only
	}
	opt := &slog.HandlerOptions{Level: l}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, opt))
	}
	return slog.New(slog.NewTextHandler(w, opt))
}

// remember leaves the folder's path where the command line looks for the local node, and gives the
// function that takes it away again. Without it --data-dir is needed; nothing else is lost.
func remember(file, dir string, log *slog.Logger) func() {
	err := os.MkdirAll(filepath.Dir(file), 0o700)
	if err == nil {
		err = writeDurably(file, []byte(dir+"\n"))
	}
	if err != nil {
		log.Warn("the command line will need --data-dir", "err", err)
		return func() {}
	}
	return func() {
		b, err := os.ReadFile(file)
		if err != nil || strings.TrimSpace(string(b)) != dir {
			return // another node has come since
		}
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
			log.Warn("the path of the running node", "err", err)
		}
	}
}

// readyDoc is what `weft serve -o json` prints when the node is ready, on one line.
type readyDoc struct {
	API     string `json:"api"`
	APICA   string `json:"api_ca,omitempty"` // file that its clients are to trust, with TLS
	Token   string `json:"token,omitempty"`  // at the first start only
	NBD     string `json:"nbd,omitempty"`
	ISCSI   string `json:"iscsi,omitempty"`
	Peer    string `json:"peer"`
	Events  string `json:"events,omitempty"`    // esdb://host:port
	EventCA string `json:"events_ca,omitempty"` // file that its clients are to trust
	Node    string `json:"node"`
	DataDir string `json:"data_dir"`
}

// announce says that the node is ready, and what to do next.
func (r *running) announce(o cli.ServeOptions) error {
	f := r.backend.front
	d := readyDoc{
		API: r.api, APICA: r.Node.api.ca, NBD: f.nbdAddr, ISCSI: f.iscsiAddr, Peer: r.peer.url,
		Node: r.dir.id.Node.String(), DataDir: r.dir.path, Events: r.log.uri(), EventCA: r.log.ca,
	}
	if r.first {
		d.Token = r.token
	}
	if o.JSON {
		return printLine(o.Out, d)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Weft %s is serving.\n\n", version())
	r.facts(&b)
	b.WriteString("\nNext, in another terminal:\n")
	if r.first {
		b.WriteString("  weft template create gold --replicas 1 --capacity " + r.media() + "\n" +
			"  weft volume create disk1 --app web --template gold --size 1GiB\n" +
			"  weft describe volume disk1\n")
	} else {
		b.WriteString("  weft status\n  weft get volumes -o wide\n")
	}
	b.WriteString("\nCtrl-C stops it; the same command continues with the same data.\n")
	_, err := io.WriteString(o.Out, b.String())
	return err
}

// media gives the class of the node's first device, which a first volume may ask for.
func (r *running) media() string {
	for _, u := range r.backend.devices.all() {
		return classOf(u.device.Geometry())
	}
	return "flash" // none is there
}

// facts lists the addresses, and at the first start the token.
func (r *running) facts(w io.Writer) {
	f := r.backend.front
	for _, x := range []struct{ name, value string }{
		{"API", r.api},
		{"docs", r.api + "/docs"},
		{"NBD", f.nbdAddr},
		{"NBD", f.socket},
		{"iSCSI", f.iscsiAddr},
		{"nodes", r.peer.url},
		{"events", r.log.uri()},
		{"data", r.dir.path},
	} {
		if x.value != "" {
			_, _ = fmt.Fprintf(w, "  %-6s %s\n", x.name, x.value)
		}
	}
	if r.first {
		_, _ = fmt.Fprintf(w, "  %-6s %s\n         shown once; %s keeps it for you\n", "token", r.token,
			filepath.Join(r.dir.path, client.LocalFile))
	}
}

func printLine(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, string(b))
	return err
}
