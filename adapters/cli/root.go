package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"weft/adapters/client"
	"weft/domain"
)

// Programs are what the command line cannot do through the API.
type Programs struct {
	// Serve runs a node until ctx ends.
	Serve func(ctx context.Context, o ServeOptions) error
	// Demo runs a node with a demonstration volume until ctx ends.
	Demo func(ctx context.Context, o DemoOptions) error
	// NewToken makes a new administrator's token in a data folder and gives it.
	NewToken func(dataDir string) (string, error)
	// VerifyLog reads the event log in the data folder of a stopped node and checks it.
	VerifyLog func(ctx context.Context, dataDir string) (client.Verdict, error)
	// SignIn gets an ID token of an identity provider; show tells the user where to enter which code.
	SignIn func(ctx context.Context, p client.Provider,
		show func(address, code, complete string)) (string, error)
	BackupPrograms
	RecoverPrograms
	InspectPrograms
	// Version is this build's.
	Version string
	// Env reads the environment: no other place of the command line does. Nil: an empty one.
	Env func(string) string
}

// tool is one run of the command line.
type tool struct {
	p Programs

	api, token, ca, dataDir, tenant string
}

// Groups of the help.
const (
	groupRun   = "run"
	groupState = "state"
	groupWho   = "who"
	groupSee   = "see"
)

// New makes the command line.
func New(p Programs) *cobra.Command {
	if p.Env == nil {
		p.Env = func(string) string { return "" }
	}
	t := &tool{p: p}
	root := &cobra.Command{
		Use:   "weft",
		Short: "Event-sourced, software-defined block storage in one binary",
		Long: `Weft is event-sourced, software-defined block storage in one binary.

You say what you want: templates hold the demands, applications hold volumes. Weft
places the volumes, serves them to hosts over NBD and iSCSI, and keeps every change
as an event, so that you can ask why something is as it is, and how it was.

Exit codes: 0 ok, 1 error, 2 the request is not valid, 3 conflict, 4 degraded, 5 timeout.`,
		Example: `  weft demo                                      # a node with a volume, ready to attach
  weft serve                                     # a node without one
  weft volume create disk1 --app web --size 10GiB
  weft get volumes -o wide
  weft why volume/disk1`,
		SilenceErrors: true, SilenceUsage: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	f := root.PersistentFlags()
	f.StringVar(&t.api, "api", "", "address of the API (env WEFT_API; default: the local node's)")
	f.StringVar(&t.ca, "ca", "",
		"file of the authority of an API with TLS (env WEFT_CA; default: the local node's, and those "+
			"of the system)")
	f.StringVar(&t.token, "token", "",
		"token to sign in with (env WEFT_TOKEN; default: that of weft login, then the node's)")
	f.StringVar(&t.dataDir, "data-dir", "", "data folder of the local node (default "+
		client.DefaultDataDir(p.Env, os.Getuid())+")")
	f.StringVar(&t.tenant, "tenant", "", "tenant to act for (env WEFT_TENANT; default: default)")
	root.AddGroup(
		&cobra.Group{ID: groupRun, Title: "Run a node:"},
		&cobra.Group{ID: groupState, Title: "Say what you want:"},
		&cobra.Group{ID: groupWho, Title: "Say who may do it:"},
		&cobra.Group{ID: groupSee, Title: "See what is:"},
	)
	add(root, groupRun, t.serveCommand(), t.demoCommand(), t.restoreCommand(),
		t.recoverCommand())
	add(root, groupState, t.templateCommand(), t.appCommand(), t.volumeCommand(), t.snapshotCommand(),
		t.applyCommand(), t.deleteCommand(), t.secretCommand())
	add(root, groupWho, t.tenantCommand(), t.userCommand(), t.tokenCommand(), t.providerCommand(),
		t.loginCommand(), t.logoutCommand(), t.whoamiCommand())
	add(root, groupSee, t.getCommand(), t.describeCommand(), t.whyCommand(), t.statusCommand(),
		t.nodeCommand(), t.deviceCommand(), t.eventsCommand(), t.outletCommand(), t.auditCommand(),
		t.backupCommand(), t.inspectCommand(), t.fsckCommand())
	root.AddCommand(t.versionCommand())
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &usage{err, cmd.CommandPath()}
	})
	understand(root)
	return root
}

func add(parent *cobra.Command, group string, list ...*cobra.Command) {
	for _, c := range list {
		c.GroupID = group
		parent.AddCommand(c)
	}
}

// understand makes every complaint about arguments a usage error, and makes a command that only
// holds others refuse a word it does not know instead of showing help with success.
func understand(cmd *cobra.Command) {
	check := cmd.Args
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		var err error
		switch {
		case cmd.HasSubCommands() && len(args) > 0:
			err = fmt.Errorf("%s knows no %q", cmd.CommandPath(), args[0])
		case check != nil:
			err = check(cmd, args)
		}
		if err == nil {
			err = cmd.ValidateRequiredFlags() // cobra's own turn comes after this
		}
		if err != nil {
			return &usage{err, cmd.CommandPath()}
		}
		return nil
	}
	if cmd.HasSubCommands() && cmd.RunE == nil {
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
	for _, sub := range cmd.Commands() {
		understand(sub)
	}
}

// Main runs the command line once and gives the exit code.
func Main(ctx context.Context, p Programs, args []string, in io.Reader, out, errs io.Writer) int {
	root := New(p)
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errs)
	err := root.ExecuteContext(ctx)
	if err != nil {
		printError(errs, err, wantsJSON(args))
	}
	return ExitCode(err)
}

// wantsJSON looks for -o json in the words themselves: an error may come before flags are read.
func wantsJSON(args []string) bool {
	for i, a := range args {
		switch {
		case a == "--":
			return false
		case a == "-ojson", a == "-o=json", a == "--output=json":
			return true
		case (a == "-o" || a == "--output") && i+1 < len(args):
			return args[i+1] == "json"
		}
	}
	return false
}

// connect makes the client: flags, then the environment, then what the local node left; of tokens,
// that of a sign-in comes before the node's.
func (t *tool) connect() (*client.Client, error) {
	api, token, err := t.find()
	if err != nil {
		return nil, err
	}
	return client.New(client.Config{
		URL: api, Token: token, CA: t.ca, Agent: "weft/" + t.p.Version,
	})
}

func (t *tool) find() (api, token string, err error) {
	def := client.DefaultDataDir(t.p.Env, os.Getuid())
	t.tenant = first(t.tenant, t.p.Env("WEFT_TENANT"))
	api, token = first(t.api, t.p.Env("WEFT_API")), first(t.token, t.p.Env("WEFT_TOKEN"))
	t.ca = first(t.ca, t.p.Env("WEFT_CA"))
	dir := first(t.dataDir, client.CurrentDataDir(def))
	l, lerr := client.ReadLocal(dir)
	// A token is only given to the node it belongs to.
	own := lerr == nil && (api == "" || names(api, l.API))
	if own {
		api = l.API
	}
	t.ca = first(t.ca, l.CA) // for other nodes of its cluster, too
	if token == "" {
		keyring, err := client.ReadKeyring(t.p.Env)
		if err != nil {
			return "", "", err
		}
		token = keyring.Token(api, time.Now())
		if own {
			token = first(token, l.Token)
		}
		if lerr != nil && !domain.IsKind(lerr, domain.NotFound) && token == "" {
			return "", "", noLocal(dir, lerr)
		}
	}
	if api == "" {
		return "", "", &domain.Error{
			Kind: domain.Unavailable, Msg: "no Weft node is known here",
			Remedy: "start one with: weft demo (or weft serve); or name one with --api and --token",
		}
	}
	return api, token, nil
}

// names tells whether a word is the address of an API. The scheme may be left out of it, and is not
// taken for another: a token never goes in the clear to a node that speaks TLS.
func names(word, api string) bool {
	word = strings.TrimSuffix(word, "/")
	if !strings.Contains(word, "://") {
		_, api, _ = strings.Cut(api, "://")
	}
	return word == strings.TrimSuffix(api, "/")
}

// noLocal says that the local node's token is there and cannot be had.
func noLocal(dir string, err error) error {
	e := &domain.Error{Kind: domain.KindOf(err), Msg: "the local node's token", Err: err}
	e.Remedy = "give --token, or run this as the user who runs the node"
	if u, uerr := user.Current(); uerr == nil {
		e.Msg += " in " + dir + " cannot be read as " + u.Username
	}
	return e
}

// run makes a command's function from one that talks to the node.
func (t *tool) run(fn func(cmd *cobra.Command, c *client.Client, args []string) error) func(
	*cobra.Command, []string,
) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := t.connect()
		if err != nil {
			return err
		}
		defer c.Close()
		return fn(cmd, c, args)
	}
}

// choice is a flag that takes one of a few words.
type choice struct {
	value   string
	allowed []string
}

// String implements pflag.Value.
func (c *choice) String() string { return c.value }

// Type implements pflag.Value.
func (*choice) Type() string { return "word" }

// Set implements pflag.Value.
func (c *choice) Set(s string) error {
	if !slices.Contains(c.allowed, s) {
		return fmt.Errorf("%q is not one of %s", s, strings.Join(c.allowed, ", "))
	}
	c.value = s
	return nil
}

// choose adds such a flag; the first word is the default.
func choose(cmd *cobra.Command, name, short, help string, allowed ...string) *choice {
	c := &choice{allowed[0], allowed}
	cmd.Flags().VarP(c, name, short, help+": "+strings.Join(allowed, ", "))
	complete(cmd, name, allowed...)
	return c
}

// complete makes a flag offer words. The flag exists: an error here is a bug that a test finds.
func complete(cmd *cobra.Command, flag string, words ...string) {
	err := cmd.RegisterFlagCompletionFunc(flag,
		cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic(err)
	}
}

// sizeFlag is a flag that takes a size.
type sizeFlag domain.Bytes

// String implements pflag.Value.
func (s *sizeFlag) String() string {
	if *s == 0 {
		return ""
	}
	return domain.Bytes(*s).String()
}

// Type implements pflag.Value.
func (*sizeFlag) Type() string { return "size" }

// Set implements pflag.Value.
func (s *sizeFlag) Set(text string) error {
	b, err := domain.ParseBytes(text)
	if err != nil {
		return err
	}
	*s = sizeFlag(b)
	return nil
}

// positionFlag is a flag that takes a position of the log; nil until it is given.
type positionFlag struct{ p *domain.Position }

// String implements pflag.Value.
func (f *positionFlag) String() string {
	if f.p == nil {
		return ""
	}
	return f.p.String()
}

// Type implements pflag.Value.
func (*positionFlag) Type() string { return "position" }

// Set implements pflag.Value.
func (f *positionFlag) Set(s string) error {
	p, err := domain.ParsePosition(s)
	if err != nil {
		return err
	}
	f.p = &p
	return nil
}

// waiting are the flags of every change that takes time to come true.
type waiting struct {
	wait    bool
	timeout time.Duration
}

// waitDefault is how long a change waits.
const waitDefault = 30 * time.Second

func waitFlags(cmd *cobra.Command, until string) *waiting {
	w := &waiting{}
	cmd.Flags().BoolVar(&w.wait, "wait", true, "wait until "+until)
	cmd.Flags().DurationVar(&w.timeout, "timeout", waitDefault, "give up waiting after")
	return w
}

// do runs fn within the timeout, unless waiting is off.
func (w *waiting) do(ctx context.Context, fn func(context.Context) error) error {
	if !w.wait {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	return fn(ctx)
}

// terminal tells whether a stream is one.
func terminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// next tells a person at a terminal what usually comes next (L5).
func next(cmd *cobra.Command, format string, args ...any) {
	if terminal(cmd.ErrOrStderr()) {
		_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "next: "+format+"\n", args...)
	}
}

// colours tells whether standard output takes them.
func (t *tool) colours(cmd *cobra.Command) bool {
	return terminal(cmd.OutOrStdout()) && t.p.Env("NO_COLOR") == "" && t.p.Env("TERM") != "dumb"
}

// confirm asks before data is lost, when a person is there to answer.
func confirm(cmd *cobra.Command, yes bool, what string) error {
	if yes || !terminal(cmd.InOrStdin()) || !terminal(cmd.ErrOrStderr()) {
		return nil
	}
	_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "%s and all its data will be lost. Go on? [y/N] ", what)
	var answer string
	_, _ = fmt.Fscanln(cmd.InOrStdin(), &answer)
	if strings.EqualFold(answer, "y") || strings.EqualFold(answer, "yes") {
		return nil
	}
	return domain.Errorf(domain.Aborted, "nothing was deleted")
}

func itoa[N ~int | ~int64](n N) string { return strconv.FormatInt(int64(n), 10) }
