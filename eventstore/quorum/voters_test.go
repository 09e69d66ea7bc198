package quorum

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/storetest"
)

var full = flag.Bool("full", false, "kill the leader 20 times, not 3")

const childNode = "WEFT_TEST_CHILD_NODE"

// TestVoterChild is a node in a process of its own: name, address, folder and seed come from the
// environment. A fifth word is a token: it then appends under that token for ever and says when it
// was acknowledged and when it was fenced.
func TestVoterChild(t *testing.T) {
	words := strings.Split(os.Getenv(childNode), "|")
	if len(words) < 4 {
		t.Skip("runs as a child only")
	}
	l, err := net.Listen("tcp", words[1])
	if err != nil {
		t.Fatal(err)
	}
	cfg := config(words[2])
	cfg.Name, cfg.Net = words[0], &Net{URL: "http://" + words[1], Port: NewPort()}
	if words[3] != "" {
		cfg.Net.Seeds = []string{words[3]}
	}
	var proto http.Protocols
	proto.SetHTTP1(true)
	proto.SetUnencryptedHTTP2(true)
	srv := &http.Server{Handler: cfg.Net.Port, Protocols: &proto}
	go func() { _ = srv.Serve(l) }()
	s, err := Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if len(words) > 4 {
		go zombie(s, words[4])
	}
	for {
		_ = s.Follow(context.Background())
		rest, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		<-rest.Done()
		cancel()
	}
}

// zombie appends under a token until it hears that the token is an old one.
func zombie(s *Store, word string) {
	var token uint64
	_, _ = fmt.Sscan(word, &token)
	for rev := domain.NoRevision; ; {
		ev := storetest.Propose(fmt.Sprintf("zombie/%d", rev), 1)
		ev[0].Token = token
		_, err := s.Append(context.Background(), "plan-1", eventstore.At(rev), ev...)
		switch {
		case err == nil:
			rev++
			_, _ = fmt.Fprintln(os.Stdout, "acked", rev)
		case errors.Is(err, eventstore.ErrFenced) && rev >= 0:
			_, _ = fmt.Fprintln(os.Stdout, "fenced")
			return
		}
	}
}

// child is a node in a process.
type child struct {
	name, addr, dir, seed string
	cmd                   *exec.Cmd
	said                  chan string
}

func newChild(t *testing.T, name, seed string) *child {
	t.Helper()
	c := &child{name: name, addr: keptAddr(t), dir: t.TempDir(), seed: seed}
	t.Cleanup(c.kill)
	return c
}

// keptAddr gives a free address that a child may come back to: no port that the system gives to
// outgoing connections by itself.
func keptAddr(t *testing.T) string {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10_000+rand.IntN(20_000)))
		if err == nil {
			_ = l.Close()
			return l.Addr().String()
		}
	}
	t.Fatal("no port is free")
	return ""
}

func (c *child) url() string { return "http://" + c.addr }

func (c *child) start(t *testing.T, more ...string) {
	t.Helper()
	c.cmd = exec.Command(os.Args[0], "-test.run=^TestVoterChild$")
	words := append([]string{c.name, c.addr, c.dir, c.seed}, more...)
	c.cmd.Env = append(os.Environ(), childNode+"="+strings.Join(words, "|"))
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := make(chan string, 1<<16)
	c.said = said
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if strings.Contains(lines.Text(), "_test.go:") {
				t.Errorf("%s ended by itself: %s", c.name, lines.Text())
			}
			select {
			case said <- lines.Text():
			default:
			}
		}
	}()
	until(t, c.name+" listens", func() bool {
		conn, err := net.Dial("tcp", c.addr)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
}

func (c *child) kill() {
	if c.cmd != nil {
		_ = c.cmd.Process.Kill()
		_ = c.cmd.Wait()
		c.cmd = nil
	}
}

// processes starts three voters in processes of their own and a client in this one.
func processes(t *testing.T) ([3]*child, *peer) {
	t.Helper()
	a := newChild(t, "a", "")
	a.start(t)
	var client *peer
	b, c := newChild(t, "b", a.url()), newChild(t, "c", a.url())
	client = newPeer(t, "client", a.url())
	b.start(t)
	c.start(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, x := range []*child{b, c} {
		if err := client.AddLearner(ctx, x.url()); err != nil {
			t.Fatal(err)
		}
	}
	var ids []uint64
	until(t, "learners in sync", func() bool {
		ids = nil
		members, _ := client.Members(ctx)
		for _, m := range members {
			if in, _ := client.CaughtUp(ctx, m); in && m.Learner {
				ids = append(ids, m.ID)
			}
		}
		return len(ids) == 2
	})
	if err := client.Promote(ctx, ids...); err != nil {
		t.Fatal(err)
	}
	return [3]*child{a, b, c}, client
}

func leading(t *testing.T, nodes [3]*child, client *peer) *child {
	t.Helper()
	var found *child
	until(t, "a leader", func() bool {
		for _, n := range nodes {
			if client.Leader() == n.url() {
				found = n
			}
		}
		return found != nil
	})
	return found
}

// SIGKILL of the leader under load, again and again: nothing acknowledged is lost, nothing stands
// twice, every node has the same log, and the time without writes is printed. As in
// TestKillLosesNothing it proves the protocol, not a power cut.
func TestKillTheLeader(t *testing.T) {
	nodes, client := processes(t)
	acks := make(chan time.Time, 1<<16)
	stop := make(chan struct{})
	var load sync.WaitGroup
	acked := make([]domain.Revision, 16)
	for w := range acked {
		acked[w] = domain.NoRevision
		load.Go(func() { write(t, client, w, &acked[w], acks, stop) })
	}
	for round := range map[bool]int{false: 3, true: 20}[*full] {
		victim := leading(t, nodes, client)
		for len(acks) > 0 {
			<-acks
		}
		<-acks // the load runs
		victim.kill()
		at := time.Now()
		gap, last, done := time.Duration(0), at, time.After(3*time.Second)
		for over := false; !over; {
			select {
			case now := <-acks:
				gap, last = max(gap, now.Sub(last)), now
			case <-done:
				over = last.After(at.Add(time.Second))
				done = time.After(time.Second)
			}
		}
		t.Logf("kill %d, of %s: %s without a write", round+1, victim.name, gap.Round(time.Millisecond))
		victim.start(t)
		until(t, "the victim is back", func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			res, err := client.single().Status(ctx, victim.url())
			return err == nil && len(res.Errors) == 0
		})
	}
	close(stop)
	load.Wait()
	check := []*peer{client}
	for _, n := range nodes { // another client per voter reads that voter's own database
		check = append(check, newPeer(t, "of-"+n.name, n.url()))
	}
	same(t, check, acked)
}

// write appends on one stream until told to stop; what is not known is repeated with the same ids.
func write(
	t *testing.T, to *peer, w int, acked *domain.Revision, acks chan<- time.Time,
	stop <-chan struct{},
) {
	id := domain.StreamID(fmt.Sprintf("w-%d", w))
	for {
		select {
		case <-stop:
			return
		default:
		}
		ev := storetest.Propose(fmt.Sprintf("%s/%d", id, *acked), 1)
		_, err := to.Append(t.Context(), id, eventstore.At(*acked), ev...)
		switch {
		case err == nil:
			*acked++
			select {
			case acks <- time.Now():
			default:
			}
		case errors.Is(err, eventstore.ErrUnknownOutcome), errors.Is(err, eventstore.ErrNoQuorum):
		default:
			t.Errorf("%s: %v", id, err)
			return
		}
	}
}

// A leader that was paused while another term began writes nothing under its old token: whatever it
// had on its way is refused, and it hears so.
func TestPausedLeaderIsFenced(t *testing.T) {
	nodes, client := processes(t)
	add(t, client.Store, eventstore.CoordinationStream, eventstore.NoStream(), "opened", 1)
	add(t, client.Store, eventstore.CoordinationStream, eventstore.At(0), "term 1", 1)
	old := leading(t, nodes, client)
	old.kill()
	old.start(t, "1")
	until(t, "the old term writes", func() bool {
		select {
		case line := <-old.said:
			return strings.HasPrefix(line, "acked 10")
		default:
			return false
		}
	})
	if err := old.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	term := append1(t, client, eventstore.CoordinationStream, 1, "term 2")
	if err := old.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	until(t, "the old term is fenced", func() bool {
		select {
		case line := <-old.said:
			return line == "fenced"
		default:
			return false
		}
	})
	if _, err := client.Head(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := 0
	for r, err := range client.ReadStream(
		t.Context(), "plan-1", 0, eventstore.Forward, eventstore.NoLimit,
	) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; r.Position > term.Position {
			t.Errorf("position %s carries token %d behind the term of %s", r.Position, r.Token,
				term.Position)
		}
	}
	t.Logf("%d events of the old term, all before position %s", n, term.Position)
}

// append1 appends one event, again while nobody knows.
func append1(
	t *testing.T, to *peer, id domain.StreamID, rev domain.Revision, seed string,
) eventstore.Appended {
	t.Helper()
	var a eventstore.Appended
	until(t, "append "+seed, func() bool {
		var err error
		a, err = to.Append(t.Context(), id, eventstore.At(rev), storetest.Propose(seed, 1)...)
		return err == nil
	})
	return a
}
