package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"weft/testing/esdouble"
	"weft/testing/oidcissuer"
)

// rewrite makes the golden files anew: review the difference like code.
var rewrite = flag.Bool("rewrite", false, "write the golden files of the command line anew")

// leakless runs the tests and then looks for goroutines they left.
type leakless struct{ m *testing.M }

// Run implements testscript.TestingM.
func (l leakless) Run() int {
	code := l.m.Run()
	if code != 0 {
		return code
	}
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// TestMain lets scripts run this program as the command weft, built as the tests are.
func TestMain(m *testing.M) {
	testscript.Main(leakless{m}, map[string]func(){"weft": main})
}

// TestScripts runs the command line against real nodes, each a process of its own with a data
// folder, a device and free ports of its own.
func TestScripts(t *testing.T) {
	golden, err := filepath.Abs(filepath.Join("testdata", "golden"))
	if err != nil {
		t.Fatal(err)
	}
	issuer, bus := oidcissuer.Serve(t), startBroker(t)
	mirror := esdouble.Serve(t, esdouble.New())
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"), RequireExplicitExec: true, RequireUniqueNames: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("XDG_STATE_HOME", filepath.Join(e.WorkDir, "state"))
			e.Setenv("XDG_CONFIG_HOME", filepath.Join(e.WorkDir, "config"))
			e.Setenv("ISSUER", issuer.URL())
			e.Setenv("CLIENT", oidcissuer.Client)
			e.Setenv("BROKER", bus.ClientURL())
			e.Setenv("MIRROR", "esdb://"+mirror.Addr+"?tls=false&keepAliveInterval=-1")
			// Under the race detector every process would wait a second before it ends.
			e.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE"))
			e.Values[nodesKey{}] = map[string]*child{}
			return os.WriteFile(filepath.Join(e.WorkDir, "issuer.pem"), []byte(issuer.CA()), 0o600)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"spoil": spoilCmd, "stands": standsCmd, "scrubbed": scrubbedCmd,
			"attach": attachCmd, "detach": detachCmd,
			"start": startCmd, "halt": haltCmd, "exits": exitsCmd, "rot": rotCmd, "signin": signinCmd,
			"login": func(ts *testscript.TestScript, neg bool, args []string) {
				loginCmd(ts, issuer, neg, args)
			},
			"idtoken": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Setenv("WEFT_TOKEN", issuer.Sign(account(ts, issuer, args[0], args[1])))
			},
			"until": untilCmd,
			"messages": func(ts *testscript.TestScript, _ bool, args []string) {
				messagesCmd(ts, bus, args)
			},
			"mirrored": func(ts *testscript.TestScript, _ bool, args []string) {
				mirroredCmd(ts, mirror.Log, args)
			},
			"golden": func(ts *testscript.TestScript, _ bool, args []string) {
				goldenCmd(ts, filepath.Join(golden, args[0]))
			},
		},
	})
}

type nodesKey struct{}

// child is a node that a script started.
type child struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // of Wait, once done is closed
	in   io.Closer
}

// stopTime is the most a node may take to stop after SIGTERM.
const stopTime = 2 * time.Minute

// startCmd is `start NAME serve|demo ARGS...`: it runs a small node and returns when the node has
// said that it is ready. What it said becomes variables: API, ADDR, TOKEN, NBD,
// ISCSI, VOLUME.
func startCmd(ts *testscript.TestScript, _ bool, args []string) {
	path, err := exec.LookPath("weft")
	if err != nil {
		path = filepath.Join(filepath.SplitList(ts.Getenv("PATH"))[0], "weft")
	}
	all := append([]string{args[1], "-o", "json", "--device-size", "256MiB", "--log-level", "warn"},
		args[2:]...)
	if !strings.Contains(strings.Join(args, " "), "--media") { // whatever the tests run on
		all = append(all, "--media", "flash")
	}
	for _, f := range []string{"--api", "--nbd", "--iscsi", "--peer", "--events"} {
		if !strings.Contains(strings.Join(args, " "), f) {
			all = append(all, f, "127.0.0.1:0")
		}
	}
	cmd := exec.Command(path, all...)
	cmd.Dir = ts.Getenv("WORK")
	for _, name := range []string{
		"PATH", "HOME", "XDG_STATE_HOME", "TMPDIR", "GOCOVERDIR", "GORACE",
	} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	errs, err := os.Create(filepath.Join(ts.Getenv("WORK"), args[0]+".stderr"))
	ts.Check(err)
	cmd.Stderr = errs
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	ts.Check(errs.Close())
	line, rerr := bufio.NewReader(out).ReadBytes('\n')
	c := &child{cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		_, _ = io.Copy(io.Discard, out)
		c.err = cmd.Wait()
	}()
	ts.Value(nodesKey{}).(map[string]*child)[args[0]] = c
	ts.Defer(func() {
		_ = cmd.Process.Kill() // it may have ended
		<-c.done
	})
	if rerr != nil {
		<-c.done
		ts.Fatalf("the node did not start: %v\n%s", c.err, ts.ReadFile(args[0]+".stderr"))
	}
	var said map[string]string
	ts.Check(json.Unmarshal(line, &said))
	for _, name := range []string{"api", "token", "nbd", "iscsi", "volume"} {
		ts.Setenv(strings.ToUpper(name), said[name])
	}
	_, addr, _ := strings.Cut(said["api"], "://")
	ts.Setenv("ADDR", addr)
}

// haltCmd is `halt NAME [KILL]`: SIGTERM, and the node ends by itself with success in time; or
// SIGKILL.
func haltCmd(ts *testscript.TestScript, _ bool, args []string) {
	c := ts.Value(nodesKey{}).(map[string]*child)[args[0]]
	sig := syscall.SIGTERM
	if len(args) > 1 && args[1] == "KILL" {
		sig = syscall.SIGKILL
	}
	ts.Check(c.cmd.Process.Signal(sig))
	// Signals come in twos where a process group is told: the second must not cut the stop short.
	_ = c.cmd.Process.Signal(sig)
	select {
	case <-c.done:
	case <-time.After(stopTime):
		ts.Fatalf("the node did not stop within %s", stopTime)
	}
	if c.err != nil && sig == syscall.SIGTERM {
		ts.Fatalf("the node ended with %v\n%s", c.err, ts.ReadFile(args[0]+".stderr"))
	}
}

// scrubbedCmd is `scrubbed NODE N`: it follows the log until so many passes have come to their end,
// and then asks until the node's views have taken that up.
func scrubbedCmd(ts *testscript.TestScript, _ bool, args []string) {
	weft := func(args ...string) *exec.Cmd {
		path, err := exec.LookPath("weft")
		if err != nil {
			path = filepath.Join(filepath.SplitList(ts.Getenv("PATH"))[0], "weft")
		}
		cmd := exec.Command(path, args...)
		cmd.Dir = ts.Getenv("WORK")
		for _, name := range []string{"PATH", "HOME", "XDG_STATE_HOME", "TMPDIR", "GORACE"} {
			cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
		}
		return cmd
	}
	cmd := weft("events", "watch", "--since", "0", "-o", "json")
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	seen := 0
	for lines := bufio.NewScanner(out); fmt.Sprint(seen) != args[1]; {
		if !lines.Scan() {
			ts.Fatalf("the log ended before %s passes had", args[1])
		}
		if strings.Contains(lines.Text(), `"ScrubFinished"`) {
			seen++
		}
	}
	for {
		told, _ := weft("node", "scrub", "status", args[0], "-o", "json").Output() // or exit code 4
		if strings.Contains(string(told), `"state": "finished"`) {
			return
		}
	}
}

// spoilCmd is `spoil FILE BYTE`: in the middle of a file it looks for a block that is this byte all
// over, and turns one of its bits.
func spoilCmd(ts *testscript.TestScript, _ bool, args []string) {
	b, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	at := bytes.Index(b, bytes.Repeat([]byte{byte(n)}, 4096))
	if at < 0 {
		ts.Fatalf("no block of %d", n)
	}
	at = (at + 4095) / 4096 * 4096
	b[at+100] ^= 1
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o600))
}

// standsCmd is `stands FILE BYTE`: 64 of this byte stand in the file side by side.
func standsCmd(ts *testscript.TestScript, neg bool, args []string) {
	b, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	if bytes.Contains(b, bytes.Repeat([]byte{byte(n)}, 64)) == neg {
		ts.Fatalf("%s: 64 of %d stand there: %t", args[0], n, neg)
	}
}

// attachCmd is `attach NAME URI`: a host that connects to an export and stays until `detach NAME`.
func attachCmd(ts *testscript.TestScript, _ bool, args []string) {
	cmd := exec.Command("qemu-io", "-f", "raw", args[1])
	in, err := cmd.StdinPipe()
	ts.Check(err)
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	c := &child{cmd: cmd, done: make(chan struct{}), in: in}
	ts.Value(nodesKey{}).(map[string]*child)[args[0]] = c
	ts.Defer(func() {
		_ = cmd.Process.Kill() // it may have ended
		<-c.done
	})
	_, err = io.WriteString(in, "read 0 512\n") // it answers once it is connected
	ts.Check(err)
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.Contains(lines.Text(), "read 512/512") {
	}
	go func() {
		defer close(c.done)
		_, _ = io.Copy(io.Discard, out)
		c.err = cmd.Wait()
	}()
	ts.Check(lines.Err())
}

// detachCmd is `detach NAME`.
func detachCmd(ts *testscript.TestScript, _ bool, args []string) {
	c := ts.Value(nodesKey{}).(map[string]*child)[args[0]]
	ts.Check(c.in.Close())
	<-c.done
}

// rotCmd is `rot FILE`: it turns a bit in the middle of a file.
func rotCmd(ts *testscript.TestScript, _ bool, args []string) {
	path := ts.MkAbs(args[0])
	b, err := os.ReadFile(path)
	ts.Check(err)
	b[len(b)/2] ^= 1
	ts.Check(os.WriteFile(path, b, 0o600))
}

// signinCmd is `signin`: the token that the last `weft token issue` showed is the one to use, and
// again with every later one.
func signinCmd(ts *testscript.TestScript, _ bool, _ []string) {
	if out := strings.TrimSpace(ts.ReadFile("stdout")); strings.HasPrefix(out, "weftu-") {
		ts.Setenv("ISSUED", out)
	}
	ts.Setenv("WEFT_TOKEN", ts.Getenv("ISSUED"))
}

// account gives the claims of an account, which is in the groups of the variable GROUPS.
func account(
	ts *testscript.TestScript, i *oidcissuer.Issuer, subject, email string,
) map[string]any {
	claims := i.Claims(subject, email, time.Now())
	if groups := strings.Fields(ts.Getenv("GROUPS")); len(groups) > 0 {
		claims["groups"] = groups
	}
	return claims
}

// loginCmd is `login SUBJECT EMAIL ARGS...`: it signs in with weft login, and as the account of
// that subject and address grants it; with "-" the user refuses. What was said is in login.out.
func loginCmd(ts *testscript.TestScript, i *oidcissuer.Issuer, neg bool, args []string) {
	path, err := exec.LookPath("weft")
	if err != nil {
		path = filepath.Join(filepath.SplitList(ts.Getenv("PATH"))[0], "weft")
	}
	cmd := exec.Command(path, append([]string{"login"}, args[2:]...)...)
	cmd.Dir = ts.Getenv("WORK")
	for _, name := range []string{
		"PATH", "HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "TMPDIR", "GOCOVERDIR", "GORACE", "WEFT_API",
		"WEFT_TOKEN",
	} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	var out bytes.Buffer // the command's alone: it is filled by a goroutine of its own
	told := ""
	cmd.Stdout = &out
	errs, err := cmd.StderrPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	for lines := bufio.NewScanner(errs); lines.Scan(); {
		if code, ok := strings.CutPrefix(lines.Text(), "and enter the code "); ok {
			claims := account(ts, i, args[0], args[1])
			if args[0] == "-" {
				claims = nil
			}
			ts.Check(i.Decide(code, claims))
		}
		told += lines.Text() + "\n"
	}
	err = cmd.Wait()
	told += out.String()
	ts.Check(os.WriteFile(filepath.Join(ts.Getenv("WORK"), "login.out"), []byte(told), 0o600))
	if (err != nil) != neg {
		ts.Fatalf("login: %v\n%s", err, told)
	}
}

// exitsCmd is `exits CODE COMMAND ARGS...`.
func exitsCmd(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	var e *exec.ExitError
	if errors.As(err, &e) {
		code = e.ExitCode()
	} else {
		ts.Check(err)
	}
	if fmt.Sprint(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

// changing lists what differs from run to run, and what stands for it in a golden file.
var changing = []struct {
	what *regexp.Regexp
	by   string
}{
	{regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`), "<uuid>"},
	{regexp.MustCompile(`[0-9a-f]{64}`), "<hash>"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT[0-9:.]+Z`), "<time>"},
	{regexp.MustCompile(`127\.0\.0\.1:\d+`), "<addr>"},
	{
		regexp.MustCompile(`("(position|base|checked|request|incarnation)": )"?[0-9a-f]+"?`), `$1"<n>"`,
	},
	{regexp.MustCompile(`"(client|node|version|to)": "\d+\.\d+\.\d+[^"]*"`), `"$1": "<version>"`},
	{regexp.MustCompile(`"(usable|garbage|segments|free_segments|score)": \d+`), `"$1": "<n>"`},
}

// goldenCmd is `golden FILE`: the last standard output, without what differs from run to run, is
// the file.
func goldenCmd(ts *testscript.TestScript, file string) {
	got := ts.ReadFile("stdout")
	host, _ := os.Hostname()
	host, _, _ = strings.Cut(host, ".")
	got = strings.ReplaceAll(got, ts.Getenv("WORK"), "<work>")
	got = strings.ReplaceAll(got, `"name": "`+host+`"`, `"name": "<host>"`)
	for _, c := range changing {
		got = c.what.ReplaceAllString(got, c.by)
	}
	if *rewrite {
		ts.Check(os.WriteFile(file, []byte(got), 0o644))
		return
	}
	want, err := os.ReadFile(file)
	ts.Check(err)
	if got != string(want) {
		ts.Fatalf("%s differs; go test -rewrite shows how.\ngot:\n%s\nwant:\n%s", file, got, want)
	}
}
