package cli

import (
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"weft/adapters/client"
	"weft/domain"
)

// Default addresses of a node: this machine only.
const (
	DefaultAPI   = "127.0.0.1:7780"
	DefaultNBD   = "127.0.0.1:10809"
	DefaultISCSI = "127.0.0.1:3260"
	DefaultPeer  = "127.0.0.1:7782"
	// DefaultEvents is where the clients of EventStoreDB look.
	DefaultEvents = "127.0.0.1:2113"
)

// ServeOptions are the flags of `weft serve`.
type ServeOptions struct {
	DataDir    string
	Devices    []string
	DeviceSize domain.Bytes // 0: what fits
	Media      string       // "probe", "flash" or "hdd"
	Durability string       // "durable" or "process"
	NVRAM      string       // PATH or PATH:SIZE; empty for none
	DropNVRAM  bool         // destage what it holds and give it up
	// AcceptNVRAMLoss starts although NVRAM that a device needs is gone.
	AcceptNVRAMLoss bool
	// DiscardCopies throws copies of volumes away whose other device is not there.
	DiscardCopies   bool
	API             string
	APITLS          string // "auto", "on", "off"
	APICert, APIKey string // files of the operator's own certificate
	NBD             string // "off" for none
	NBDSocket       string
	ISCSI           string // "off" for none
	AdvertiseISCSI  string
	Peer            string
	AdvertisePeer   string
	Events          string        // "off" for none
	EventsJSON      bool          // payloads as JSON, not as they are stored
	Name            string        // of the node; empty: the host's
	Join            string        // a join token
	Location        string        // failure domains; empty: as the log has it
	Init            bool          // a new cluster, also beyond this machine
	VoterGrace      time.Duration // before a silent voter's seat goes to another node
	ScrubEvery      time.Duration // between two scrubs of a device; 0: only when asked for
	ScrubRate       domain.Bytes  // a second; 0: no limit
	MigrateRate     domain.Bytes  // a second; 0: no limit
	ReadCache       domain.Bytes  // of blocks that are read again and again; 0: none
	LogTiming       string        // "fast", "calm"
	LogLevel        string        // "debug", "info", "warn", "error"
	LogFormat       string        // "text" or "json"
	JSON            bool          // one JSON object when the node is ready
	// These say that a person chose the address.
	APIGiven, NBDGiven, ISCSIGiven, PeerGiven, EventsGiven bool
	// Current is the file in which a running node leaves its data folder's path.
	Current string
	// Out takes what is asked for, Err the log, warnings and progress.
	Out, Err io.Writer
}

// voterGrace is long enough for a machine to be started anew.
const voterGrace = 10 * time.Minute

// scrubEvery finds what rots within a week, scrubRate reads a terabyte in nine hours of rest.
const (
	scrubEvery = 7 * 24 * time.Hour
	scrubRate  = sizeFlag(32 * domain.MiB)
)

// readCache is what a node may take of the machine without being asked.
const readCache = sizeFlag(128 * domain.MiB)

// DemoOptions are the flags of `weft demo`.
type DemoOptions struct {
	ServeOptions
	Size domain.Bytes // of the volume
}

// serveFlags are flags on their way to ServeOptions.
type serveFlags struct {
	o          ServeOptions
	size       sizeFlag
	media, dur *choice
	tls        *choice
	timing     *choice
	level, log *choice
	form       *choice
	rate       sizeFlag
	cache      sizeFlag
	migrate    sizeFlag
}

func newServeFlags(cmd *cobra.Command, level string) *serveFlags {
	s := &serveFlags{}
	f := cmd.Flags()
	f.StringArrayVar(&s.o.Devices, "device", nil,
		"block device or file to keep data on: PATH, or flash:PATH or hdd:PATH where --media is not\n"+
			"what it is, or hybrid:flash=PATH,hdd=PATH, a disk behind flash that takes all writes; the\n"+
			"loss of either is the loss of both. Repeatable (default: a file in the data folder)")
	f.Var(&s.size, "device-size", "size of the file made as a device (default 4GiB, or what fits)")
	s.media = choose(cmd, "media", "", "what the devices are; probe asks the kernel, and takes for\n"+
		"flash the disks of hypervisors, which often say that they turn", "probe", "flash", "hdd")
	s.dur = choose(cmd, "durability", "",
		"what an acknowledged write survives: a power cut, or only the end of the process",
		"durable", "process")
	f.StringVar(&s.o.NVRAM, "nvram", "",
		"NVRAM to acknowledge writes from: a device-dax, or a file on a DAX file system, as PATH,\n"+
			"or PATH:SIZE to make the file; on tmpfs it is volatile, for trying. Devices that used it\n"+
			"need it at every start")
	f.BoolVar(&s.o.DropNVRAM, "drop-nvram", false,
		"write what the NVRAM holds to the devices and give it up")
	f.BoolVar(&s.o.DiscardCopies, "discard-copies", false,
		"throw away copies of volumes that wait for a device which is not there")
	f.BoolVar(&s.o.AcceptNVRAMLoss, "accept-nvram-loss", false,
		"start although NVRAM that a device needs is gone, with the writes that only it held")
	// The same word as the global --api: there it is the address to call, here to listen on.
	f.StringVar(&s.o.API, "api", DefaultAPI, "address the API listens on")
	s.tls = choose(cmd, "api-tls", "",
		"whether the API speaks TLS; auto: where others than this machine reach it", "auto", "on", "off")
	f.StringVar(&s.o.APICert, "api-cert", "",
		"certificate of the API, a PEM file that may be replaced while the node runs\n"+
			"(default: one of the cluster's authority, whose file is tls/ca.pem in the data folder)")
	f.StringVar(&s.o.APIKey, "api-key", "", "key of --api-cert, a PEM file")
	f.StringVar(&s.o.NBD, "nbd", DefaultNBD, "address of the NBD server, or off")
	f.StringVar(&s.o.NBDSocket, "nbd-socket", "", "unix socket of the NBD server, besides --nbd")
	f.StringVar(&s.o.ISCSI, "iscsi", DefaultISCSI, "address of the iSCSI target, or off")
	f.StringVar(&s.o.AdvertiseISCSI, "advertise-iscsi", "",
		"address that discovery tells iSCSI hosts, where theirs is another")
	f.StringVar(&s.o.Peer, "peer", DefaultPeer, "address for other nodes of the cluster")
	f.StringVar(&s.o.AdvertisePeer, "advertise-peer", "",
		"address that other nodes are told, where theirs is another")
	f.StringVar(&s.o.Events, "events", DefaultEvents,
		"address of the event log for clients of EventStoreDB, with TLS, or off")
	f.BoolVar(&s.o.EventsJSON, "events-json", false,
		"show those clients the payloads as JSON instead of the stored bytes")
	f.StringVar(&s.o.Name, "name", "", "name of a new node (default: the host's)")
	f.StringVar(&s.o.Location, "location", "",
		"failure domains the node stands in, as zone=a,rack=r1 (default: as it was said last)")
	f.StringVar(&s.o.Join, "join", "", "join the cluster that made this token with weft node token")
	f.BoolVar(&s.o.Init, "init", false,
		"make a new cluster although the addresses reach beyond this machine")
	f.DurationVar(&s.o.VoterGrace, "voter-grace", voterGrace,
		"how long a voter of the log may be down before another node takes its vote")
	f.DurationVar(&s.o.ScrubEvery, "scrub-every", scrubEvery,
		"how often each device is read and checked; 0: only by weft node scrub start")
	s.rate = scrubRate
	f.Var(&s.rate, "scrub-rate",
		"most bytes a second that a scrub reads, a quarter of it beside hosts; 0: no limit")
	f.Var(&s.migrate, "migrate-rate",
		"most bytes a second that volumes are copied off a device that leaves; 0: no limit")
	s.cache = readCache
	f.Var(&s.cache, "read-cache",
		"memory for blocks that hosts read again and again, taken as they come; 0: none")
	s.logFlags(cmd, level)
	s.form = choose(cmd, "output", "o", "what to print when ready", "text", "json")
	return s
}

// logFlags are those of the event log, and of the node's own log, whose least level is given.
func (s *serveFlags) logFlags(cmd *cobra.Command, level string) {
	s.timing = choose(cmd, "log-timing", "",
		"how soon a leader of the event log that is silent is replaced: within a quarter to half of a\n"+
			"second, or calmly, within one to two, where hosts are loaded or far apart; the same on all",
		"fast", "calm")
	levels := []string{level}
	for _, l := range []string{"debug", "info", "warn", "error"} {
		if l != level {
			levels = append(levels, l)
		}
	}
	s.level = choose(cmd, "log-level", "", "least level that is logged", levels...)
	s.log = choose(cmd, "log-format", "", "form of the log on standard error", "text", "json")
}

// options gives what the flags said.
func (s *serveFlags) options(t *tool, cmd *cobra.Command) ServeOptions {
	o := s.o
	def := client.DefaultDataDir(t.p.Env, os.Getuid())
	o.DataDir = first(t.dataDir, def)
	o.Current = client.CurrentFile(def)
	o.DeviceSize, o.ScrubRate = domain.Bytes(s.size), domain.Bytes(s.rate)
	o.ReadCache, o.MigrateRate = domain.Bytes(s.cache), domain.Bytes(s.migrate)
	o.Media, o.Durability, o.APITLS = s.media.value, s.dur.value, s.tls.value
	o.LogTiming = s.timing.value
	o.LogLevel, o.LogFormat, o.JSON = s.level.value, s.log.value, s.form.value == "json"
	f := cmd.Flags()
	o.APIGiven, o.NBDGiven, o.ISCSIGiven = f.Changed("api"), f.Changed("nbd"), f.Changed("iscsi")
	o.PeerGiven, o.EventsGiven = f.Changed("peer"), f.Changed("events")
	o.Out, o.Err = cmd.OutOrStdout(), cmd.ErrOrStderr()
	return o
}

func (t *tool) serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "serve", Short: "Run a node", Args: cobra.NoArgs,
		Long: `Run a node until it is told to stop. On an empty data folder it makes a cluster of one:
an event log, a device as a file (unless --device names some), and the administrator's
token, which is shown once. On a folder that holds a node it continues: same volumes,
same data.

More nodes: weft node token prints a token on a node that runs; weft serve --join TOKEN
on another machine, with an empty data folder, makes it one more node of that cluster.
Nodes speak to each other over --peer alone, with TLS and certificates that the cluster
makes and renews by itself. One of two nodes, three of up to four, five of more keep the
event log; which ones is looked after.

All addresses are on this machine unless you name others; then an empty folder needs
--init or --join, so that no second cluster is made by mistake. The API speaks TLS where
others than this machine reach it, by a certificate of the cluster's authority: clients
trust tls/ca.pem of the data folder (weft --ca), or bring a certificate with --api-cert.`,
		Example: `  weft serve
  weft serve --init --peer 192.0.2.7:7782 --iscsi 192.0.2.7:3260
  weft serve --join weft-join-... --peer 192.0.2.8:7782 --iscsi 192.0.2.8:3260
  weft serve --data-dir /srv/weft --device /dev/nvme0n1
  weft serve --iscsi 192.0.2.7:3260 --nbd off`,
	}
	s := newServeFlags(cmd, "info")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return t.p.Serve(cmd.Context(), s.options(t, cmd))
	}
	return cmd
}

// demoSize is the demonstration volume's size.
const demoSize = domain.GiB

func (t *tool) demoCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "demo", Short: "Run a node with a volume, ready to attach", Args: cobra.NoArgs,
		Long: `Run a node as weft serve does, and go on: create the template gold, the application
demo and the volume disk1, wait until it is online, and print the commands that attach
it. A second run continues with the same volume and data. A default port that is taken is
replaced by a free one.

With -o json, one line tells api, token, volume, nbd and iscsi when the volume is ready.`,
		Example: "  weft demo\n  weft demo --data-dir /tmp/weft -o json",
	}
	s := newServeFlags(cmd, "warn")
	size := sizeFlag(demoSize)
	cmd.Flags().Var(&size, "size", "size of the volume, where it is not there yet")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return t.p.Demo(cmd.Context(), DemoOptions{s.options(t, cmd), domain.Bytes(size)})
	}
	return cmd
}
