package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"weft/adapters/client"
	"weft/domain"
)

var full = flag.Bool("full", false, "kill the leader 20 times, not 3")

// limit bounds what must happen in the end. No test measures by it.
const limit = 5 * time.Minute

// machine is a node in a process of its own. It keeps its folder over starts.
type machine struct {
	t    *testing.T
	name string
	dir  string
	bin  string
	args []string
	cmd  *exec.Cmd
	doc  readyDoc
	api  *client.Client
}

// newMachine makes a node that has not started. This program, under the name weft, is the command.
func newMachine(t *testing.T, name string, args ...string) *machine {
	t.Helper()
	args = append(args, "--events", ownAddr("127.0.0.1:0")) // the same over its starts
	m := &machine{t: t, name: name, dir: filepath.Join(t.TempDir(), name), args: args}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	m.bin = filepath.Join(t.TempDir(), "weft")
	if err := os.Symlink(self, m.bin); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.kill()
		if said, err := os.ReadFile(m.dir + ".log"); err == nil && t.Failed() {
			t.Logf("%s said:\n%s", m.name, said[max(0, len(said)-2000):])
		}
	})
	return m
}

// start brings the node up and waits until it says that it is ready.
func (m *machine) start(more ...string) {
	m.t.Helper()
	args := append([]string{
		"serve", "--data-dir", m.dir, "--name", m.name, "--device-size", "128MiB", "-o", "json",
		"--nbd", "127.0.0.1:0", "--iscsi", "off", "--voter-grace", "10s", "--log-level", "error",
	}, append(m.args, more...)...)
	m.cmd = exec.Command(m.bin, args...)
	m.cmd.Env = append(os.Environ(), "XDG_STATE_HOME="+m.dir+".state")
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := os.OpenFile(m.dir+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		m.t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	m.cmd.Stderr = log
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &m.doc)
	}
	if err != nil {
		said, _ := os.ReadFile(m.dir + ".log")
		m.t.Fatalf("%s did not start: %v\n%s", m.name, err, said)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	l, err := client.ReadLocal(m.dir)
	if err != nil {
		m.t.Fatal(err)
	}
	m.api, err = client.New(client.Config{URL: m.doc.API, Token: l.Token, Tries: 1})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(m.api.Close)
}

func (m *machine) kill() {
	if m.cmd != nil {
		_ = m.cmd.Process.Kill()
		_ = m.cmd.Wait()
		m.cmd = nil
	}
}

func (m *machine) signal(s syscall.Signal) {
	if err := m.cmd.Process.Signal(s); err != nil {
		m.t.Fatal(err)
	}
}

// until waits for a condition.
func until(t *testing.T, what string, holds func(ctx context.Context) bool) time.Duration {
	t.Helper()
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for !holds(ctx) {
		pause(ctx, 20*time.Millisecond)
		if ctx.Err() != nil {
			t.Fatalf("%s: not within %s", what, limit)
		}
	}
	return time.Since(began)
}

func (m *machine) nodes(ctx context.Context) []client.Node {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	r, err := m.api.Nodes(ctx, client.At{})
	if err != nil {
		return nil
	}
	return r.Value.Items
}

func (m *machine) voters(ctx context.Context) (n int) {
	for _, x := range m.nodes(ctx) {
		if x.Vote == "voter" {
			n++
		}
	}
	return n
}

// join makes and starts more nodes by one token each and waits for the voters that follow.
func (m *machine) join(voters int, names ...string) []*machine {
	m.t.Helper()
	var list []*machine
	for _, name := range names {
		tok, err := m.api.CreateJoinToken(m.t.Context(), client.TokenBody{}, client.Change{})
		if err != nil {
			m.t.Fatal(err)
		}
		n := newMachine(m.t, name, "--join", tok.Value.Token, "--api", ownAddr("127.0.0.1:0"))
		n.start()
		list = append(list, n)
	}
	took := until(m.t, fmt.Sprintf("%d voters", voters), func(ctx context.Context) bool {
		return m.voters(ctx) == voters
	})
	m.t.Logf("%v joined: %d voters after %s", names, voters, took.Round(10*time.Millisecond))
	return list
}

func cluster3(t *testing.T) []*machine {
	t.Helper()
	a := newMachine(t, "a", "--api", ownAddr("127.0.0.1:0"), "--peer", ownAddr("127.0.0.1:0"))
	a.start()
	return append([]*machine{a}, a.join(3, "b", "c")...)
}

// leader gives the node that runs the reconciler, by what another one says.
func leader(t *testing.T, list []*machine, but *machine) *machine {
	t.Helper()
	var found *machine
	until(t, "a leader", func(ctx context.Context) bool {
		for _, m := range list {
			if m == but || m.cmd == nil {
				continue
			}
			for _, n := range m.nodes(ctx) {
				at := slices.IndexFunc(list, func(x *machine) bool { return x.name == n.Name })
				if n.Leader && n.State == "ready" && at >= 0 && list[at] != but {
					found = list[at]
				}
			}
			return found != nil
		}
		return false
	})
	return found
}

// load makes templates through nodes in turn and notes which were acknowledged, and when.
type load struct {
	mu    sync.Mutex
	names []string
	last  time.Time
	gap   time.Duration
	stop  context.CancelFunc
	wg    sync.WaitGroup
	gate  chan struct{} // while it is not nil, each write waits for a word from it
}

// hold lets writes through only when the function that it gives is called, one each time, until
// they are let go.
func (l *load) hold() (one, release func()) {
	gate := make(chan struct{}, 1)
	l.mu.Lock()
	l.gate = gate
	l.mu.Unlock()
	one = func() {
		select {
		case gate <- struct{}{}:
		default:
		}
	}
	return one, func() {
		l.mu.Lock()
		l.gate = nil
		l.mu.Unlock()
		close(gate)
	}
}

// pass waits until the next write may begin.
func (l *load) pass(ctx context.Context) {
	l.mu.Lock()
	gate := l.gate
	l.mu.Unlock()
	if gate == nil {
		return
	}
	select {
	case <-gate:
	case <-ctx.Done():
	}
}

func newLoad(t *testing.T, list []*machine) *load {
	l := &load{last: time.Now()}
	ctx, cancel := context.WithCancel(t.Context())
	l.stop = cancel
	apis := make([]*client.Client, len(list))
	for i, m := range list {
		apis[i] = m.api
	}
	for w := range 4 {
		l.wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				l.pass(ctx)
				name := fmt.Sprintf("t-%d-%d", w, i)
				body := client.TemplateBody{Name: name, Intent: &client.Intent{}}
				key := client.Change{Key: "load-" + name} // so that a repeat is the same
				for try := 0; ctx.Err() == nil; try++ {
					within, done := context.WithTimeout(ctx, time.Second)
					_, err := apis[(w+try)%len(apis)].CreateTemplate(within, body, key)
					done()
					if err == nil || domain.IsKind(err, domain.Exists) {
						l.note(name)
						break
					}
				}
			}
		})
	}
	return l
}

func (l *load) note(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.gap, l.last = max(l.gap, now.Sub(l.last)), now
	l.names = append(l.names, name)
}

// take gives the longest time without an acknowledgement since the last call.
func (l *load) take() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	gap := l.gap
	l.gap = 0
	return gap
}

func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.names)
}

// history lists a node's whole log, once it is as long as asked.
func (m *machine) history(to domain.Position) []string {
	m.t.Helper()
	var out []string
	var since domain.Position
	ctx, cancel := context.WithTimeout(m.t.Context(), limit)
	defer cancel()
	for since < to {
		r, err := m.api.Events(ctx, client.Selection{Since: since, Limit: 1000})
		if err != nil {
			m.t.Fatalf("%s: %v", m.name, err)
		}
		for _, e := range r.Value.Items {
			p, err := domain.ParsePosition(e.Position)
			if err != nil {
				m.t.Fatal(err)
			}
			if since = p; p <= to {
				out = append(out, e.Position+" "+e.ID+" "+e.Type+" "+e.Stream)
			}
		}
		if len(r.Value.Items) == 0 {
			pause(ctx, 20*time.Millisecond)
		}
	}
	return out
}

// same compares the logs of all nodes and looks for what was acknowledged.
func same(t *testing.T, list []*machine, names []string) {
	t.Helper()
	r, err := list[0].api.Nodes(t.Context(), client.At{})
	if err != nil {
		t.Fatal(err)
	}
	want := list[0].history(r.Position)
	seen := map[string]bool{}
	for _, line := range want {
		id := strings.Fields(line)[1]
		if seen[id] {
			t.Errorf("%s stands twice", line)
		}
		seen[id] = true
	}
	for _, m := range list[1:] {
		if got := m.history(r.Position); !slices.Equal(got, want) {
			t.Errorf("%s has another log than %s", m.name, list[0].name)
		}
	}
	have := map[string]int{}
	all, err := list[1].api.Templates(t.Context(), client.At{Min: r.Position})
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range all.Value.Items {
		have[x.Name]++
	}
	for _, n := range names {
		if have[n] != 1 {
			t.Errorf("template %s was acknowledged and is there %d times", n, have[n])
		}
	}
	t.Logf("%d events, the same on %d nodes; %d acknowledged commands, each once", len(want),
		len(list), len(names))
}

// Three nodes of one machine, from one command each: volumes land on all of them, any node takes
// any call, SIGKILL of the leader again and again loses nothing and doubles nothing, and every node
// has the same log in the same order. The times without an acknowledgement are printed.
func TestKillTheLeaderOfThree(t *testing.T) {
	list := cluster3(t)
	volumes(t, list)
	l := newLoad(t, list)
	defer l.wg.Wait()
	defer l.stop()
	for round := range map[bool]int{false: 3, true: 20}[*full] {
		victim := leader(t, list, nil)
		before := l.count()
		until(t, "load", func(context.Context) bool { return l.count() > before+20 })
		l.take()
		victim.kill()
		killed := l.count()
		until(t, "writes again", func(context.Context) bool { return l.count() > killed+20 })
		next := leader(t, list, victim)
		t.Logf("kill %d, of %s: %s without an acknowledgement, %s leads", round+1, victim.name,
			l.take().Round(time.Millisecond), next.name)
		victim.start()
	}
	l.stop()
	l.wg.Wait()
	same(t, list, l.names)
}

// volumes makes volumes until every node serves one, through nodes in turn.
func volumes(t *testing.T, list []*machine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	gold, err := list[1].api.CreateTemplate(ctx, client.TemplateBody{
		Name: "gold", Intent: &client.Intent{Availability: &client.Availability{Replicas: 1}},
	}, client.Change{})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list { // each is asked for a volume, and must have heard of the template
		if _, err := m.api.Nodes(ctx, client.At{Min: gold.Position}); err != nil {
			t.Fatal(err)
		}
	}
	homes := map[string]bool{}
	for i := 0; len(homes) < len(list); i++ {
		if i > 20 {
			t.Fatalf("20 volumes stand on %d nodes", len(homes))
		}
		c := list[i%len(list)].api
		app := fmt.Sprintf("app%d", i)
		a, err := c.CreateApp(ctx, client.AppBody{
			Name: app, Template: "gold", Volumes: []client.VolumeBody{{Name: "v", Size: 16 * domain.MiB}},
		}, client.Change{})
		if err != nil {
			t.Fatal(err)
		}
		other := list[(i+1)%len(list)].api
		got, err := other.Online(ctx, a.Position, "", app, "v")
		if err != nil {
			t.Fatal(err)
		}
		v := got.Volumes[0]
		homes[v.Node] = true
		if v.NBD == "" {
			t.Errorf("%s does not say how %s is reached", other.URL(), app)
		}
	}
}

// A leader that is stopped in the middle of its work and goes on after another one has taken the
// role changes nothing under its old token, and then follows the new one.
func TestPausedLeader(t *testing.T) {
	list := cluster3(t)
	old := leader(t, list, nil)
	volumes(t, list)
	old.signal(syscall.SIGSTOP)
	next := leader(t, list, old)
	name := "after"
	until(t, "a write under the new leader", func(ctx context.Context) bool {
		within, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		_, err := next.api.CreateTemplate(within, client.TemplateBody{
			Name: name, Intent: &client.Intent{},
		}, client.Change{Key: "once"})
		return err == nil
	})
	old.signal(syscall.SIGCONT)
	until(t, "the old leader sees it", func(ctx context.Context) bool {
		for _, n := range old.nodes(ctx) {
			if n.Leader && n.Name == next.name {
				return true
			}
		}
		return false
	})
	volumesAgain(t, old)
	same(t, list, []string{name})
}

// volumesAgain makes one more volume through a node, under whoever leads now.
func volumesAgain(t *testing.T, m *machine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	a, err := m.api.CreateApp(ctx, client.AppBody{
		Name: "later", Template: "gold", Volumes: []client.VolumeBody{{Name: "v", Size: 16 * domain.MiB}},
	}, client.Change{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.api.Online(ctx, a.Position, "", "later", "v"); err != nil {
		t.Fatal(err)
	}
}

// A cluster grows from one node to three and to five under load, a dead voter's seat goes to
// another node, and a node leaves: nothing is lost, and who has left is not let in again.
func TestGrowReplaceAndLeave(t *testing.T) {
	a := newMachine(t, "a", "--api", ownAddr("127.0.0.1:0"), "--peer", ownAddr("127.0.0.1:0"))
	a.start()
	l := newLoad(t, []*machine{a})
	defer l.wg.Wait()
	defer l.stop()
	list := append([]*machine{a}, a.join(3, "b", "c")...)
	list = append(list, a.join(3, "d")...)
	a.spread(t)
	list = append(list, a.join(5, "e")...)
	list = append(list, a.join(5, "f")...)
	t.Logf("the longest time without an acknowledgement: %s", l.take().Round(time.Millisecond))
	dead := list[1]
	dead.kill()
	took := until(t, "another node takes the seat", func(ctx context.Context) bool {
		return a.voters(ctx) == 5 && a.seat(ctx, "b") == "" && a.seat(ctx, "f") == "voter"
	})
	t.Logf("a dead voter was replaced after %s, of which 13 s are grace", took.Round(time.Millisecond))
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if _, err := a.api.RemoveNode(ctx, "b", client.Change{}); !domain.IsKind(err, domain.Conflict) {
		t.Errorf("removed a node that takes part: %v", err)
	}
	if _, err := a.api.DrainNode(ctx, "b", client.Change{}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.api.RemoveNode(ctx, "b", client.Change{}); err != nil {
		t.Fatal(err)
	}
	if said := dead.refused(); !strings.Contains(said, "removed") {
		t.Errorf("a removed node heard: %s", said)
	}
	l.stop()
	l.wg.Wait()
	same(t, slices.Delete(list, 1, 2), l.names)
}

// spread tells of the four nodes a, b, c and d, three of which vote, that d alone stands in another
// zone, waits until it votes in the place of one of the others, and takes the locations back.
func (m *machine) spread(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	locate := func(of ...string) {
		for i, name := range []string{"a", "b", "c", "d"} {
			if _, err := m.api.SetNodeLocation(ctx, name, of[i], client.Change{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	locate("zone=1", "zone=1", "zone=1", "zone=2")
	took := until(t, "the node of the other zone votes", func(ctx context.Context) bool {
		return m.voters(ctx) == 3 && m.seat(ctx, "d") == "voter"
	})
	t.Logf("a vote went to another zone after %s", took.Round(time.Millisecond))
	locate("none", "none", "none", "none")
}

func (m *machine) seat(ctx context.Context, name string) string {
	for _, n := range m.nodes(ctx) {
		if n.Name == name {
			return n.Vote
		}
	}
	return "unknown"
}

// refused starts a node that must not come up and gives what it says.
func (m *machine) refused() string {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, m.bin, append([]string{
		"serve", "--data-dir", m.dir, "-o", "json", "--nbd", "off", "--iscsi", "off",
	}, m.args...)...)
	out, err := cmd.CombinedOutput()
	if err == nil || ctx.Err() != nil {
		m.t.Errorf("%s came up, or hung", m.name)
	}
	return string(out)
}
