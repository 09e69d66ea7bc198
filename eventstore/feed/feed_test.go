package feed_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"go.uber.org/goleak"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/feed"
	"weft/eventstore/memory"
	"weft/eventstore/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds a test that would otherwise hang. It judges nothing.
const patience = 5 * time.Minute

func limited(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func yield(ctx context.Context, _ int) error {
	runtime.Gosched()
	return ctx.Err()
}

// cursors are durable as long as the test runs.
type cursors struct {
	mu   sync.Mutex
	kept map[string]feed.Cursor
	log  []feed.Cursor
	fail func(feed.Cursor) error
}

func (c *cursors) Load(_ context.Context, name string) (feed.Cursor, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.kept[name], nil
}

func (c *cursors) Save(_ context.Context, name string, at feed.Cursor) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fail != nil {
		if err := c.fail(at); err != nil {
			return err
		}
	}
	if c.kept == nil {
		c.kept = map[string]feed.Cursor{}
	}
	c.kept[name] = at
	c.log = append(c.log, at)
	return nil
}

// rig is a log with consumers.
type rig struct {
	t       testing.TB
	store   *memory.Store
	cursors *cursors
	told    []feed.Failure
	refuse  error // what the hook answers
}

func newRig(t testing.TB) *rig {
	r := &rig{t: t, store: memory.New(), cursors: &cursors{}}
	t.Cleanup(func() { _ = r.store.Close() })
	return r
}

func (r *rig) consumer(change ...func(*feed.Config)) *feed.Subscriber {
	r.t.Helper()
	c := feed.Config{
		Store: r.store, Cursors: r.cursors, Consumer: "c", Pause: yield,
		Poisoned: func(_ context.Context, f feed.Failure) error {
			r.told = append(r.told, f)
			return r.refuse
		},
	}
	for _, f := range change {
		f(&c)
	}
	s, err := feed.New(c)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = s.Close() })
	return s
}

// fill appends n events in turn to three streams of two tenants, with two types.
func (r *rig) fill(n int) []eventstore.Recorded {
	r.t.Helper()
	head, err := r.store.Head(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	for i := range n {
		ev := storetest.Propose(fmt.Sprintf("%s+%d", head.Position, i), 1)
		ev[0].Type = []string{"VolumeCreated", "NodeJoined"}[i%2]
		ev[0].Tenant = []string{"acme", "other", "acme"}[i%3]
		id := domain.StreamID(fmt.Sprintf("s-%d", i%3))
		if _, err := r.store.Append(r.t.Context(), id, eventstore.Any(), ev...); err != nil {
			r.t.Fatal(err)
		}
	}
	var out []eventstore.Recorded
	for e, err := range r.store.ReadAll(r.t.Context(), 0, eventstore.Forward, domain.Filter{},
		eventstore.NoLimit) {
		if err != nil {
			r.t.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

func (r *rig) subscribe(s *feed.Subscriber) <-chan *message.Message {
	r.t.Helper()
	ch, err := s.Subscribe(limited(r.t), "any")
	if err != nil {
		r.t.Fatal(err)
	}
	return ch
}

// TestOneAtATime refuses every third message once: the order is that of the log, a refused event
// comes again before any other, and the cursor never stands beyond what was acknowledged.
func TestOneAtATime(t *testing.T) {
	r := newRig(t)
	events := r.fill(40)
	s := r.consumer()
	ch := r.subscribe(s)
	for i := 0; i < len(events); i++ {
		want := events[i]
		for try := range 1 + (i%3)/2 {
			m := <-ch
			e, ok := feed.Event(m)
			if !ok || e.Header != want.Header || m.UUID != want.ID.String() ||
				string(m.Payload) != string(want.Data) {
				t.Fatalf("event %d, try %d: %+v", i, try, m)
			}
			select {
			case early := <-ch:
				t.Fatalf("%s before %s was answered", early.UUID, m.UUID)
			default:
			}
			if try < (i%3)/2 {
				m.Nack()
			} else {
				m.Ack()
			}
		}
	}
	if err := s.Close(); err != nil || s.Err() != nil {
		t.Fatal(err, s.Err())
	}
	if _, open := <-ch; open {
		t.Error("a message after Close")
	}
	for e := range r.cursors.log[:len(r.cursors.log)-1] {
		if r.cursors.log[e].Position > r.cursors.log[e+1].Position {
			t.Fatalf("the cursor went back: %+v", r.cursors.log)
		}
	}
}

// TestMetadata proves what a message says of its event.
func TestMetadata(t *testing.T) {
	r := newRig(t)
	e := r.fill(1)[0]
	m := <-r.subscribe(r.consumer())
	for key, want := range map[string]string{
		feed.Position: "1", feed.Stream: "s-0", feed.Revision: "0", feed.Type: "VolumeCreated",
		feed.Schema: "1", feed.Tenant: "acme", feed.Actor: "user/admin",
		"correlation_id": e.Correlation.String(), "causation_id": e.Causation.String(),
		feed.Created: fmt.Sprint(e.Created.UnixNano()),
		feed.Content: fmt.Sprintf("%x", eventstore.Content(&e.Header, e.Data)),
	} {
		if got := m.Metadata.Get(key); got != want {
			t.Errorf("%s: %s, want %s", key, got, want)
		}
	}
}

// TestComesAgain ends consumers before and behind an answer, and lets a cursor not be saved: the
// event that was under way comes again, and no other is lost.
func TestComesAgain(t *testing.T) {
	r := newRig(t)
	events := r.fill(3)
	take := func(s *feed.Subscriber, want int) *message.Message {
		t.Helper()
		m := <-r.subscribe(s)
		if m == nil || m.UUID != events[want].ID.String() {
			t.Fatalf("%+v, want event %d; %v", m, want, s.Err())
		}
		return m
	}
	s := r.consumer()
	take(s, 0)
	_ = s.Close() // unanswered
	broken := errors.New("disk full")
	r.cursors.fail = func(feed.Cursor) error { return broken }
	s = r.consumer()
	ch := r.subscribe(s)
	(<-ch).Ack()
	if _, open := <-ch; open || !errors.Is(s.Err(), broken) {
		t.Fatalf("open %t, %v", open, s.Err())
	}
	r.cursors.fail = nil
	ch = r.subscribe(s)
	(<-ch).Ack()
	if m := <-ch; m == nil || m.UUID != events[1].ID.String() { // so the cursor stands behind event 0
		t.Fatalf("%+v, want event 1; %v", m, s.Err())
	}
	_ = s.Close()
	take(r.consumer(), 1)
	if _, err := s.Subscribe(t.Context(), ""); !errors.Is(err, eventstore.ErrClosed) {
		t.Error(err)
	}
}

// TestSecondSubscription proves that a consumer has one cursor and one reader.
func TestSecondSubscription(t *testing.T) {
	r := newRig(t)
	s := r.consumer()
	r.subscribe(s)
	if _, err := s.Subscribe(t.Context(), ""); domain.KindOf(err) != domain.Busy {
		t.Error(err)
	}
}

// TestFilter selects by type and by tenant.
func TestFilter(t *testing.T) {
	r := newRig(t)
	var want []string
	for _, e := range r.fill(12) {
		if e.Type == "VolumeCreated" && e.Tenant == "acme" {
			want = append(want, e.ID.String())
		}
	}
	ch := r.subscribe(r.consumer(func(c *feed.Config) {
		c.Filter.TypePrefix, c.Tenant = []string{"Volume"}, "acme"
	}))
	for _, id := range want {
		m := <-ch
		if m.UUID != id {
			t.Errorf("%s, want %s", m.UUID, id)
		}
		m.Ack()
	}
}

// TestPoison lets one event fail for ever. After five failures the hook hears of consumer, event
// and error; then the consumer stops, with five new tries when it is subscribed again, or skips.
func TestPoison(t *testing.T) {
	for _, policy := range []feed.Policy{feed.Stop, feed.Skip} {
		r := newRig(t)
		events := r.fill(3)
		s := r.consumer(func(c *feed.Config) { c.Policy = policy })
		rounds := 0
		for ; rounds < 2; rounds++ {
			tries, done := 0, 0
			for m := range r.subscribe(s) {
				if m.UUID == events[1].ID.String() {
					tries++
					feed.Fail(m, fmt.Errorf("failure %d", tries))
					continue
				}
				m.Ack()
				if done++; m.UUID == events[2].ID.String() {
					break
				}
			}
			if tries != 5 || len(r.told) != rounds+1 {
				t.Fatalf("policy %d: %d tries, %d told", policy, tries, len(r.told))
			}
			if f := r.told[rounds]; f.Consumer != "c" || f.Event.Header != events[1].Header ||
				f.Failures != 5 || f.Reason != "failure 5" || f.Policy != policy {
				t.Errorf("policy %d: told %+v", policy, f)
			}
			if policy == feed.Skip {
				break
			}
			var poison *feed.PoisonError
			if !errors.As(s.Err(), &poison) || domain.KindOf(s.Err()) != domain.Suspended ||
				poison.Failure.Event.Position != 2 {
				t.Errorf("stopped by %v", s.Err())
			}
		}
	}
}

// TestPoisonIsNeverSilent lets the hook fail: the consumer stops whatever the policy, and the hook
// is asked again before anything else happens. The count of failures outlives the process.
func TestPoisonIsNeverSilent(t *testing.T) {
	r := newRig(t)
	events := r.fill(2)
	skip := func(c *feed.Config) { c.Policy = feed.Skip }
	s := r.consumer(skip)
	ch := r.subscribe(s)
	for range 3 {
		(<-ch).Nack()
	}
	<-ch // the process dies of it: no answer
	_ = s.Close()
	r.refuse = errors.New("not recorded")
	s = r.consumer(skip)
	tries := 0
	for m := range r.subscribe(s) {
		tries++
		m.Nack()
	}
	if tries != 2 || !errors.Is(s.Err(), r.refuse) || len(r.told) != 1 {
		t.Fatalf("%d tries, told %d, %v", tries, len(r.told), s.Err())
	}
	r.refuse = nil
	m := <-r.subscribe(s)
	if m.UUID != events[1].ID.String() || len(r.told) != 2 {
		t.Errorf("%s, told %d times", m.UUID, len(r.told))
	}
}

// TestEndIsNoFailure proves that a message refused because its consumer ends counts for nothing.
// Which of the two is seen first is chance, so it is tried many times.
func TestEndIsNoFailure(t *testing.T) {
	for range 200 {
		r := newRig(t)
		r.fill(1)
		s := r.consumer()
		ctx, end := context.WithCancel(limited(t))
		ch, err := s.Subscribe(ctx, "any")
		if err != nil {
			t.Fatal(err)
		}
		m := <-ch
		end()
		m.Nack()
		for range ch {
			t.Error("a message behind the end")
		}
		if at, _ := r.cursors.Load(t.Context(), "c"); at != (feed.Cursor{}) || s.Err() != nil {
			t.Fatalf("%+v, %v", at, s.Err())
		}
	}
}

// TestRouter runs a Watermill router over the consumer, which starts a goroutine per message: the
// order holds with refusals in between, and the reason of a failure is heard.
func TestRouter(t *testing.T) {
	r := newRig(t)
	events := r.fill(300)
	s := r.consumer(func(c *feed.Config) { c.Policy = feed.Skip })
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	if err != nil {
		t.Fatal(err)
	}
	router.AddMiddleware(feed.Reasons)
	var seen []string
	failed := map[string]bool{}
	done := make(chan struct{})
	router.AddConsumerHandler("h", "any", s, func(m *message.Message) error {
		switch {
		case m.UUID == events[17].ID.String():
			return errors.New("never")
		case len(seen)%50 == 7 && !failed[m.UUID]:
			failed[m.UUID] = true
			return errors.New("once")
		}
		if seen = append(seen, m.UUID); m.UUID == events[len(events)-1].ID.String() {
			close(done)
		}
		return nil
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := router.Run(limited(t)); err != nil {
			t.Error(err)
		}
	})
	<-done
	if err := router.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	var want []string
	for _, e := range slices.Delete(slices.Clone(events), 17, 18) {
		want = append(want, e.ID.String())
	}
	if !slices.Equal(seen, want) || len(failed) == 0 {
		t.Errorf("%d seen, want %d in order; %d refused", len(seen), len(want), len(failed))
	}
	if len(r.told) != 1 || r.told[0].Reason != "never" {
		t.Errorf("told %+v", r.told)
	}
}

// TestDamageStops proves that a damaged log ends the consumer with its reason.
func TestDamageStops(t *testing.T) {
	r := newRig(t)
	r.fill(3)
	r.store.Flip(2, 8*200)
	s := r.consumer()
	for m := range r.subscribe(s) {
		m.Ack()
	}
	if !errors.Is(s.Err(), eventstore.ErrCorrupt) {
		t.Error(s.Err())
	}
}
