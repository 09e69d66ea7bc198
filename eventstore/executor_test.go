package eventstore_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"testing"
	"time"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/codec"
	"weft/eventstore/memory"
)

// The aggregate of these tests is an account that refuses to fall below zero.
type deposited struct {
	Amount int64     `msgpack:"amount,omitempty"`
	At     time.Time `msgpack:"at,omitempty"`
}

func (deposited) EventType() string { return "Deposited" }

type deposit struct {
	Account string
	Amount  int64
	Fail    bool
}

func (deposit) CommandType() string       { return "Deposit" }
func (d deposit) Stream() domain.StreamID { return domain.StreamID("account-" + d.Account) }

// transfer takes from one account first, and notes itself on a third afterwards.
type transfer struct{ From, To string }

func (transfer) CommandType() string       { return "Transfer" }
func (c transfer) Stream() domain.StreamID { return domain.StreamID("account-" + c.To) }
func (c transfer) Before() []domain.Command {
	return []domain.Command{deposit{Account: c.From, Amount: -1}}
}

func (transfer) After() []domain.Command {
	return []domain.Command{deposit{Account: "journal", Amount: 1}}
}

// loan takes from one account first and gives it back when it is refused itself.
type loan struct {
	From, To string
	Amount   int64
	Bad      bool
}

func (loan) CommandType() string       { return "Loan" }
func (c loan) Stream() domain.StreamID { return domain.StreamID("account-" + c.To) }
func (c loan) Before() []domain.Command {
	return []domain.Command{deposit{Account: c.From, Amount: -1}}
}

func (c loan) Undo() []domain.Command {
	return []domain.Command{deposit{Account: c.From, Amount: 1}}
}

func (c loan) Validate() error {
	if c.Bad {
		return domain.Errorf(domain.Invalid, "bad")
	}
	return nil
}

// nested needs itself first, for ever.
type nested struct{ deposit }

func (n nested) Before() []domain.Command { return []domain.Command{n} }

func account() domain.Aggregate[int64] {
	return domain.Aggregate[int64]{
		Category: "account",
		Evolve: func(s int64, e domain.Event) int64 {
			if d, ok := e.(deposited); ok {
				s += d.Amount
			}
			return s
		},
		Decide: func(s int64, r domain.Request) ([]domain.Event, error) {
			d, ok := r.Command.(deposit)
			if n, is := r.Command.(nested); is {
				d, ok = n.deposit, true
			}
			if l, is := r.Command.(loan); is {
				d, ok = deposit{Amount: l.Amount}, true
			}
			if !ok {
				d = deposit{Amount: 1}
			}
			switch {
			case d.Fail || s+d.Amount < 0:
				return nil, domain.Errorf(domain.NoSpace, "the account holds %d", s)
			case d.Amount == 0:
				return nil, nil
			}
			return []domain.Event{deposited{Amount: d.Amount, At: r.Stamped}, deposited{}}, nil
		},
	}
}

type bench struct {
	x     *eventstore.Executor
	store *memory.Store
	now   time.Time
	fault func(domain.StreamID, []eventstore.Proposed) memory.Fault
	gate  func(context.Context) error
}

func newBench(t testing.TB) *bench {
	b := &bench{
		now:   time.Date(2026, 5, 6, 7, 8, 9, 123456789, time.UTC),
		fault: func(domain.StreamID, []eventstore.Proposed) memory.Fault { return memory.None },
		gate:  func(context.Context) error { return nil },
	}
	b.store = memory.New(
		memory.WithFaults(func(s domain.StreamID, ev []eventstore.Proposed) memory.Fault {
			return b.fault(s, ev)
		}),
		memory.WithGate(func(ctx context.Context) error { return b.gate(ctx) }),
	)
	r := codec.New()
	r.Register(deposited{}, 1, true)
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	x, err := eventstore.NewExecutor(eventstore.ExecutorConfig{
		Store: b.store, Codec: r, Clock: func() time.Time { return b.now },
	})
	if err != nil {
		t.Fatal(err)
	}
	eventstore.Register(x, account())
	b.x = x
	return b
}

func key(s string) domain.CommandID {
	return domain.CommandID{UUID: domain.DeriveUUID(domain.UUID{}, "key", s)}
}

func (b *bench) do(t testing.TB, k string, c domain.Command) eventstore.Result {
	t.Helper()
	res, err := b.x.Do(t.Context(), domain.Request{Command: c, ID: key(k)})
	if err != nil {
		t.Fatalf("%s: %v", k, err)
	}
	return res
}

func (b *bench) count(t testing.TB) (n int) {
	t.Helper()
	for _, err := range b.store.ReadAll(
		t.Context(), 0, eventstore.Forward, domain.Filter{}, eventstore.NoLimit,
	) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	return n
}

// What a command leaves in the log: ids that follow from the command, who asked, and a time cut to
// 100 ns.
func TestDoRecordsTheRequest(t *testing.T) {
	b := newBench(t)
	req := domain.Request{
		Command: deposit{Account: "1", Amount: 5}, ID: key("a"), Token: 0,
		Caller: domain.Caller{
			Actor: "user/admin", Tenant: "acme", Source: "192.0.2.1:9", RequestID: "r",
		},
		Causation: key("cause").EventID(3),
	}
	res, err := b.x.Do(t.Context(), req)
	if err != nil || res.Stream != "account-1" || res.Revision != 1 || res.Position != 2 ||
		len(res.Events) != 2 || res.Duplicate {
		t.Fatalf("%+v, %v", res, err)
	}
	i := 0
	for r, err := range b.store.ReadStream(t.Context(), "account-1", 0, eventstore.Forward, 9) {
		if err != nil {
			t.Fatal(err)
		}
		if r.ID != key("a").EventID(i) || r.Command != key("a") || r.Type != "Deposited" ||
			r.Actor != "user/admin" || r.Tenant != "acme" || r.Source != "192.0.2.1:9" ||
			r.RequestID != "r" || r.Causation != req.Causation || r.RequestHash == [16]byte{} ||
			r.Correlation.UUID != key("a").UUID || !r.Created.Equal(b.now.Truncate(100)) {
			t.Errorf("%+v", r)
		}
		i++
	}
}

// POST, the reply is lost, the client retries: one effect, and the old result (E7), also when 300
// other commands came between, and after the stream moved on.
func TestLostReplyMakesOne(t *testing.T) {
	b := newBench(t)
	first := b.do(t, "a", deposit{Account: "1", Amount: 5})
	for i := range 300 {
		b.do(t, fmt.Sprint("other", i), deposit{Account: "1", Amount: 1})
	}
	again := b.do(t, "a", deposit{Account: "1", Amount: 5})
	if !again.Duplicate || again.Position != first.Position || again.Revision != first.Revision ||
		fmt.Sprint(again.Events) != fmt.Sprint(first.Events) {
		t.Errorf("%+v, want %+v", again, first)
	}
	if n := b.count(t); n != 602 {
		t.Errorf("%d events", n)
	}
}

// Both kinds of unknown outcome: the retry of the same request makes one effect.
func TestUnknownOutcomeThenRetry(t *testing.T) {
	for _, fault := range []memory.Fault{memory.UnknownApplied, memory.UnknownLost} {
		b := newBench(t)
		b.do(t, "start", deposit{Account: "1", Amount: 5})
		b.fault = func(domain.StreamID, []eventstore.Proposed) memory.Fault { return fault }
		req := domain.Request{Command: deposit{Account: "1", Amount: 2}, ID: key("a")}
		if _, err := b.x.Do(t.Context(), req); !errors.Is(err, eventstore.ErrUnknownOutcome) {
			t.Fatal(err)
		}
		b.fault = func(domain.StreamID, []eventstore.Proposed) memory.Fault { return memory.None }
		res, err := b.x.Do(t.Context(), req)
		if err != nil || res.Position != 4 || res.Duplicate != (fault == memory.UnknownApplied) {
			t.Errorf("fault %d: %+v, %v", fault, res, err)
		}
		if n := b.count(t); n != 4 {
			t.Errorf("fault %d: %d events", fault, n)
		}
	}
}

func TestKeyWithOtherBody(t *testing.T) {
	b := newBench(t)
	b.do(t, "a", deposit{Account: "1", Amount: 5})
	_, err := b.x.Do(t.Context(), domain.Request{
		Command: deposit{Account: "1", Amount: 6}, ID: key("a"),
	})
	if domain.KindOf(err) != domain.Mismatch {
		t.Fatal(err)
	}
}

// Stamped over 24 h ago: found is answered, not found is refused. At 24 h exactly it still runs.
func TestStaleCommandRefused(t *testing.T) {
	b := newBench(t)
	b.do(t, "found", deposit{Account: "1", Amount: 5})
	run := func(k string, age time.Duration) error {
		_, err := b.x.Do(t.Context(), domain.Request{
			Command: deposit{Account: "1", Amount: 5}, ID: key(k), Stamped: b.now.Add(-age),
		})
		return err
	}
	if err := run("found", 25*time.Hour); err != nil {
		t.Error(err)
	}
	if err := run("new", eventstore.CommandAge); err != nil {
		t.Error(err)
	}
	if err := run("late", eventstore.CommandAge+1); domain.KindOf(err) != domain.Expired {
		t.Error(err)
	}
}

// CommandsMin commands are remembered whatever their age, and the older ones only for CommandAge.
func TestCommandsMin(t *testing.T) {
	b := newBench(t)
	for i := range eventstore.CommandsMin + 1 {
		b.do(t, fmt.Sprint(i), deposit{Account: "1", Amount: 1})
	}
	b.now = b.now.Add(eventstore.CommandAge)
	b.do(t, "in time", deposit{Account: "1", Amount: 1})
	if again := b.do(t, "0", deposit{Account: "1", Amount: 1}); !again.Duplicate {
		t.Errorf("at the age: %+v", again)
	}
	b.now = b.now.Add(1)
	b.do(t, "late", deposit{Account: "1", Amount: 1})
	st := b.count(t)
	for _, k := range []string{"5", "200"} {
		if again := b.do(t, k, deposit{Account: "1", Amount: 1}); !again.Duplicate {
			t.Errorf("command %s: %+v", k, again)
		}
	}
	// The executor has forgotten the first; the store has not, so its repeat has no effect either.
	if again := b.do(t, "0", deposit{Account: "1", Amount: 1}); !again.Duplicate || b.count(t) != st {
		t.Errorf("forgotten: %+v", again)
	}
}

// IfRevision guards the first run and never a repeat.
func TestIfRevision(t *testing.T) {
	b := newBench(t)
	b.do(t, "start", deposit{Account: "1", Amount: 5})
	run := func(k string, rev domain.Revision) error {
		_, err := b.x.Do(t.Context(), domain.Request{
			Command: deposit{Account: "1", Amount: 1}, ID: key(k), IfRevision: &rev,
		})
		return err
	}
	if err := run("a", 0); domain.KindOf(err) != domain.Conflict {
		t.Error(err)
	}
	for range 2 {
		if err := run("b", 1); err != nil {
			t.Error(err)
		}
	}
}

// A command that decides nothing appends nothing and answers with the head.
func TestDecidesNothing(t *testing.T) {
	b := newBench(t)
	b.do(t, "other", deposit{Account: "2", Amount: 5})
	res := b.do(t, "a", deposit{Account: "1", Amount: 0})
	if res.Revision != domain.NoRevision || res.Position != 2 || len(res.Events) != 0 ||
		b.count(t) != 2 {
		t.Errorf("%+v", res)
	}
	_, err := b.x.Do(t.Context(), domain.Request{Command: deposit{Account: "1", Fail: true}})
	if domain.KindOf(err) != domain.NoSpace {
		t.Errorf("a refusal keeps its kind: %v", err)
	}
}

// Conflicts are retried ConflictRetryMax times and no more.
func TestConflictRetries(t *testing.T) {
	for conflicts, ok := range map[int]bool{
		eventstore.ConflictRetryMax: true, eventstore.ConflictRetryMax + 1: false,
	} {
		b, met := newBench(t), 0
		b.fault = func(domain.StreamID, []eventstore.Proposed) memory.Fault {
			if met++; met <= conflicts {
				return memory.Conflict
			}
			return memory.None
		}
		_, err := b.x.Do(t.Context(), domain.Request{Command: deposit{Account: "1", Amount: 1}})
		if (err == nil) != ok || !ok && domain.KindOf(err) != domain.Conflict {
			t.Errorf("%d conflicts: %v", conflicts, err)
		}
	}
}

// Another writer moves the stream under a kept state: the command is decided again on what is
// there.
func TestKeptStateIsBroughtUpToDate(t *testing.T) {
	one := newBench(t)
	two := newBench(t)
	two.store = one.store
	x, err := eventstore.NewExecutor(eventstore.ExecutorConfig{
		Store: one.store, Codec: registry(t), Clock: func() time.Time { return one.now },
	})
	if err != nil {
		t.Fatal(err)
	}
	eventstore.Register(x, account())
	two.x = x
	one.do(t, "a", deposit{Account: "1", Amount: 5})
	two.do(t, "b", deposit{Account: "1", Amount: -5})
	_, err = one.x.Do(t.Context(), domain.Request{
		Command: deposit{Account: "1", Amount: -1}, ID: key("c"),
	})
	if domain.KindOf(err) != domain.NoSpace {
		t.Errorf("decided on an old state: %v", err)
	}
	if again := two.do(t, "a", deposit{Account: "1", Amount: 5}); !again.Duplicate {
		t.Errorf("%+v", again)
	}
}

func registry(t testing.TB) *codec.Registry {
	r := codec.New()
	r.Register(deposited{}, 1, true)
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	return r
}

// What must come before and what follows: in order, once each, also when the whole is retried after
// the middle failed; and nothing comes before a request that was done or cannot be.
func TestPreludeAndPostlude(t *testing.T) {
	b := newBench(t)
	b.do(t, "start", deposit{Account: "from", Amount: 2})
	fail := true
	b.fault = func(s domain.StreamID, _ []eventstore.Proposed) memory.Fault {
		if s == "account-journal" && fail {
			return memory.NoSpace
		}
		return memory.None
	}
	req := domain.Request{Command: transfer{"from", "to"}, ID: key("t")}
	res, err := b.x.Do(t.Context(), req)
	if !errors.Is(err, eventstore.ErrNoSpace) || res.Position != 6 {
		t.Fatalf("%+v, %v", res, err)
	}
	fail = false
	for range 2 {
		if res, err = b.x.Do(t.Context(), req); err != nil || !res.Duplicate || res.Position != 6 {
			t.Fatalf("%+v, %v", res, err)
		}
	}
	var order []domain.StreamID
	for r, err := range b.store.ReadAll(t.Context(), 2, eventstore.Forward, domain.Filter{}, -1) {
		if err != nil {
			t.Fatal(err)
		}
		order = append(order, r.Stream)
	}
	want := []domain.StreamID{
		"account-from", "account-from", "account-to", "account-to", "account-journal", "account-journal",
	}
	if !slices.Equal(order, want) {
		t.Errorf("%v", order)
	}
	wrong := domain.Revision(7)
	if _, err := b.x.Do(t.Context(), domain.Request{
		Command: transfer{"from", "to"}, ID: key("u"), IfRevision: &wrong,
	}); domain.KindOf(err) != domain.Conflict || b.count(t) != 8 {
		t.Errorf("%v, %d events", err, b.count(t))
	}
	if _, err := b.x.Do(t.Context(), domain.Request{
		Command: nested{deposit{Account: "n", Amount: 1}},
	}); domain.KindOf(err) != domain.Internal {
		t.Errorf("nesting without end: %v", err)
	}
}

// A refused command takes back what came before it, once; a malformed one reserves nothing; a
// failure that a retry may overcome takes nothing back; and what was taken back cannot be run again
// as if it still held.
func TestReversal(t *testing.T) {
	b := newBench(t)
	b.do(t, "start", deposit{Account: "from", Amount: 5})
	run := func(k string, c loan) error {
		_, err := b.x.Do(t.Context(), domain.Request{Command: c, ID: key(k)})
		return err
	}
	err := run("bad", loan{From: "from", To: "to", Bad: true})
	if domain.KindOf(err) != domain.Invalid || b.count(t) != 2 {
		t.Errorf("malformed: %v, %d events", err, b.count(t))
	}
	err = run("no", loan{From: "from", To: "to", Amount: -9})
	if domain.KindOf(err) != domain.NoSpace || b.count(t) != 6 {
		t.Errorf("refused: %v, %d events", err, b.count(t))
	}
	b.do(t, "help", deposit{Account: "to", Amount: 20})
	err = run("no", loan{From: "from", To: "to", Amount: -9})
	if domain.KindOf(err) != domain.Expired || b.count(t) != 8 {
		t.Errorf("taken back and run again: %v, %d events", err, b.count(t))
	}
	full := true
	b.fault = func(s domain.StreamID, _ []eventstore.Proposed) memory.Fault {
		if s == "account-to" && full {
			return memory.UnknownLost
		}
		return memory.None
	}
	if err := run("later", loan{From: "from", To: "to", Amount: 1}); !errors.Is(err,
		eventstore.ErrUnknownOutcome) || b.count(t) != 10 {
		t.Errorf("unknown: %v, %d events", err, b.count(t))
	}
	full = false
	for range 2 {
		if err := run("later", loan{From: "from", To: "to", Amount: 1}); err != nil || b.count(t) != 12 {
			t.Errorf("the retry: %v, %d events", err, b.count(t))
		}
	}
	if err := run("poor", loan{From: "none", To: "to", Amount: 1}); domain.KindOf(err) !=
		domain.NoSpace || b.count(t) != 12 {
		t.Errorf("the prelude is refused: %v, %d events", err, b.count(t))
	}
}

// 500 commands at once on one stream all succeed: they queue, they do not fight.
func TestStormOnOneStream(t *testing.T) {
	b := newBench(t)
	var wg sync.WaitGroup
	for i := range 500 {
		wg.Go(func() { b.do(t, fmt.Sprint(i), deposit{Account: "1", Amount: 1}) })
	}
	wg.Wait()
	if n := b.count(t); n != 1000 {
		t.Errorf("%d events", n)
	}
}

// One works and WaitersMax wait; the next is Busy. One that gives up makes room.
func TestWaitersMax(t *testing.T) {
	b := newBench(t)
	inside, release := make(chan struct{}, 1), make(chan struct{})
	b.gate = func(context.Context) error {
		select {
		case inside <- struct{}{}:
		default:
		}
		<-release
		return nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	busy := make(chan error, eventstore.WaitersMax+2)
	run := func() {
		wg.Go(func() {
			_, err := b.x.Do(ctx, domain.Request{Command: deposit{Account: "1", Amount: 1}})
			if domain.KindOf(err) == domain.Busy {
				busy <- err
			} else if err != nil && domain.KindOf(err) != domain.Aborted {
				t.Error(err)
			}
		})
	}
	run()
	<-inside
	for range eventstore.WaitersMax + 1 {
		run()
	}
	if err := <-busy; domain.KindOf(err) != domain.Busy {
		t.Fatal(err)
	}
	cancel()
	close(release)
	wg.Wait()
	if len(busy) != 0 {
		t.Errorf("%d more were refused", len(busy))
	}
	b.do(t, "after", deposit{Account: "1", Amount: 1})
}

func TestDoRefuses(t *testing.T) {
	b := newBench(t)
	for name, c := range map[string]struct {
		command domain.Command
		want    domain.Kind
	}{
		"none":     {nil, domain.Invalid},
		"stream":   {deposit{Account: "/"}, domain.Invalid},
		"category": {stranger{}, domain.Unsupported},
	} {
		_, err := b.x.Do(t.Context(), domain.Request{Command: c.command})
		if domain.KindOf(err) != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := eventstore.NewExecutor(eventstore.ExecutorConfig{})
	if len(domain.ViolationsOf(err)) != 3 {
		t.Error(err)
	}
}

type stranger struct{}

func (stranger) CommandType() string     { return "Stranger" }
func (stranger) Stream() domain.StreamID { return "stranger-1" }

// More streams than are kept: the oldest is folded again and nothing is lost.
func TestStatesMax(t *testing.T) {
	b := newBench(t)
	for i := range eventstore.StatesMax + 2 {
		b.do(t, fmt.Sprint(i), deposit{Account: fmt.Sprint(i), Amount: 1})
	}
	if again := b.do(t, "0", deposit{Account: "0", Amount: 1}); !again.Duplicate {
		t.Errorf("%+v", again)
	}
}

func BenchmarkDo(b *testing.B) {
	bench := newBench(b)
	for b.Loop() {
		if _, err := bench.x.Do(b.Context(), domain.Request{
			Command: deposit{Account: "1", Amount: 1},
		}); err != nil {
			b.Fatal(err)
		}
	}
}

// impatient is a store whose reader leaves after a few events of a stream.
type impatient struct {
	eventstore.Store
	after int
	leave context.CancelFunc
}

func (s *impatient) ReadStream(
	ctx context.Context, id domain.StreamID, from domain.Revision, d eventstore.Direction, limit int,
) iter.Seq2[eventstore.Recorded, error] {
	return func(yield func(eventstore.Recorded, error) bool) {
		n := 0
		for r, err := range s.Store.ReadStream(ctx, id, from, d, limit) {
			if n++; n > s.after {
				s.leave()
			}
			if !yield(r, err) {
				return
			}
		}
	}
}

// Callers that wait less than a long stream takes to fold get further with each try: what was
// folded for one that left is kept.
func TestImpatientCallersGetThere(t *testing.T) {
	b := newBench(t)
	for i := range 50 {
		b.do(t, fmt.Sprint("fill", i), deposit{Account: "1", Amount: 1})
	}
	r := codec.New()
	r.Register(deposited{}, 1, true)
	store := &impatient{Store: b.store, after: 30}
	cold, err := eventstore.NewExecutor(eventstore.ExecutorConfig{
		Store: store, Codec: r, Clock: func() time.Time { return b.now },
	})
	if err != nil {
		t.Fatal(err)
	}
	eventstore.Register(cold, account())
	for try := range 10 {
		ctx, cancel := context.WithCancel(t.Context())
		store.leave = cancel
		res, err := cold.Do(ctx, domain.Request{Command: deposit{Account: "1", Amount: 1}, ID: key("x")})
		cancel()
		if err == nil {
			if res.Revision != 101 || try == 0 {
				t.Errorf("try %d: %+v", try, res)
			}
			return
		}
		if !domain.IsKind(err, domain.Aborted) {
			t.Fatal(err)
		}
	}
	t.Error("never folded to the end")
}
