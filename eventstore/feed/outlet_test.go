package feed_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	wmnats "github.com/ThreeDotsLabs/watermill-nats/v2/pkg/nats"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/duplicate"
	"weft/eventstore/feed"
	"weft/eventstore/kurrent"
	"weft/eventstore/memory"
	"weft/testing/esdouble"
)

// broker is a real NATS server with JetStream in this process.
type broker struct {
	t      *testing.T
	dir    string
	port   int
	server *server.Server
}

func (b *broker) start() {
	b.t.Helper()
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: b.port, JetStream: true, StoreDir: b.dir, NoSigs: true, NoLog: true,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(patience) {
		b.t.Fatal("the broker does not start")
	}
	b.server = s
	addr, ok := s.Addr().(*net.TCPAddr)
	if !ok {
		b.t.Fatal(s.Addr())
	}
	b.port = addr.Port
}

func (b *broker) stop() {
	b.server.Shutdown()
	b.server.WaitForShutdown()
}

func (b *broker) connect() *nats.Conn {
	b.t.Helper()
	c, err := nats.Connect(b.server.ClientURL(), nats.MaxReconnects(-1),
		nats.ReconnectWait(time.Millisecond), nats.ReconnectJitter(0, 0))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(c.Close)
	return c
}

// stored gives the messages that the broker keeps, in order.
func (b *broker) stored(c *nats.Conn) []*nats.RawStreamMsg {
	b.t.Helper()
	js, err := c.JetStream()
	if err != nil {
		b.t.Fatal(err)
	}
	info, err := js.StreamInfo("weft")
	if err != nil {
		b.t.Fatal(err)
	}
	var out []*nats.RawStreamMsg
	for seq := uint64(1); seq <= info.State.LastSeq; seq++ {
		m, err := js.GetMsg("weft", seq)
		if err != nil {
			b.t.Fatal(err)
		}
		out = append(out, m)
	}
	return out
}

// flaky is a publisher that breaks the broker or the consumer behind chosen messages.
type flaky struct {
	message.Publisher
	after func(n int) error
	n     int
}

func (f *flaky) Publish(topic string, m ...*message.Message) error {
	err := f.Publisher.Publish(topic, m...)
	if err == nil {
		f.n++
		err = f.after(f.n)
	}
	return err
}

// TestBroker publishes to a real NATS server while that server is restarted and while answers are
// lost: the broker ends up with every selected event once, in order, under the event's id.
func TestBroker(t *testing.T) {
	b := &broker{t: t, dir: t.TempDir(), port: -1}
	b.start()
	defer func() { b.stop() }()
	conn := b.connect()
	js, err := conn.JetStream()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.AddStream(&nats.StreamConfig{
		Name: "weft", Subjects: []string{"weft.>"}, Duplicates: time.Hour,
	}); err != nil {
		t.Fatal(err)
	}
	p, err := wmnats.NewPublisherWithNatsConn(conn, wmnats.PublisherPublishConfig{
		Marshaler: &wmnats.NATSMarshaler{}, SubjectCalculator: wmnats.DefaultSubjectCalculator,
		JetStream: wmnats.JetStreamConfig{
			TrackMsgId: true, ConnectOptions: []nats.JSOpt{nats.MaxWait(time.Second)},
		},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t)
	var want []eventstore.Recorded
	for _, e := range r.fill(60) {
		if e.Type == "VolumeCreated" && e.Tenant == "acme" {
			want = append(want, e)
		}
	}
	s := r.consumer(func(c *feed.Config) {
		c.Filter.TypePrefix, c.Tenant = []string{"Volume"}, "acme"
	})
	ctx, end := context.WithCancel(limited(t))
	defer end()
	lost := errors.New("the answer is lost")
	out := &feed.Outlet{
		Publisher: &flaky{Publisher: p, after: func(n int) error {
			switch n {
			case 4:
				return lost // it is there, and comes again
			case 8:
				b.stop()
				b.start()
			case len(want) + 1:
				end()
			}
			return nil
		}},
		Topic: func(r *eventstore.Recorded) string { return "weft." + r.Stream.Category() },
	}
	if err := out.Run(ctx, s); err != nil {
		t.Fatal(err)
	}
	got := b.stored(b.connect())
	if len(got) != len(want) {
		t.Fatalf("%d messages, want %d", len(got), len(want))
	}
	for i, m := range got {
		if m.Header.Get(nats.MsgIdHdr) != want[i].ID.String() || m.Subject != "weft.s" ||
			string(m.Data) != string(want[i].Data) ||
			m.Header.Get(feed.Position) != want[i].Position.String() ||
			m.Header.Get(feed.Correlation) != want[i].Correlation.String() {
			t.Errorf("message %d: %s %v", i, m.Subject, m.Header)
		}
	}
}

// TestOutletPermanent proves that what no repeat can change poisons the event instead of standing
// still for ever.
func TestOutletPermanent(t *testing.T) {
	r := newRig(t)
	r.fill(2)
	s := r.consumer()
	big := errors.New("maximum payload exceeded")
	out := &feed.Outlet{
		Publisher: refusing{big}, Topic: func(*eventstore.Recorded) string { return "t" },
		Permanent: func(err error) bool { return errors.Is(err, big) },
	}
	var poison *feed.PoisonError
	if err := out.Run(limited(t), s); !errors.As(err, &poison) ||
		poison.Failure.Reason != big.Error() || len(r.told) != 1 {
		t.Error(err)
	}
}

type refusing struct{ err error }

func (p refusing) Publish(string, ...*message.Message) error { return p.err }

func (refusing) Close() error { return nil }

// external opens a kurrent store over a double.
func external(t *testing.T, server *esdouble.Server) *kurrent.Store {
	t.Helper()
	s, err := kurrent.New(kurrent.Config{
		Connection: "esdb://" + server.Addr + "?tls=false&keepAliveInterval=-1",
		Unfenced:   true, Pause: yield,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// TestMirror copies into an EventStoreDB that is restarted, from a consumer that is ended and begun
// again, while the log grows: the copy is whole and equal, with nothing twice.
func TestMirror(t *testing.T) {
	r := newRig(t)
	log := esdouble.New()
	server := esdouble.Serve(t, log)
	to := external(t, server)
	saved := 0
	restart := make(chan struct{}, 1)
	r.cursors.fail = func(feed.Cursor) error {
		if saved++; saved == 3 {
			restart <- struct{}{}
		}
		return nil
	}
	all := r.fill(2000)
	var wg sync.WaitGroup
	wg.Go(func() {
		<-restart
		server.Stop()
		server.Start()
	})
	follow := func(until domain.Position) {
		ctx, end := context.WithCancel(limited(t))
		defer end()
		s := r.consumer()
		wg.Go(func() {
			if err := feed.Mirror(ctx, s, to); err != nil {
				t.Error(err)
			}
		})
		for at := (feed.Cursor{}); at.Position < until && ctx.Err() == nil; {
			at, _ = r.cursors.Load(ctx, "c")
			_ = yield(ctx, 0)
		}
		_ = s.Close()
		wg.Wait()
	}
	follow(all[len(all)-1].Position)
	all = r.fill(20)
	follow(all[len(all)-1].Position)
	a, err := duplicate.Digest(t.Context(), r.store, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := duplicate.Digest(t.Context(), to, nil)
	if err != nil || a.Digest != b.Digest || a.Events != b.Events || a.Events != 2020 {
		t.Errorf("%+v against %+v, %v", a, b, err)
	}
}

// TestMirrorRefuses proves that a part of a stream is refused, and that a target with a history of
// its own poisons the event.
func TestMirrorRefuses(t *testing.T) {
	r := newRig(t)
	r.fill(3)
	for _, f := range []func(*feed.Config){
		func(c *feed.Config) { c.Tenant = "acme" },
		func(c *feed.Config) { c.Filter.TypePrefix = []string{"V"} },
	} {
		err := feed.Mirror(limited(t), r.consumer(f), memory.New())
		if domain.KindOf(err) != domain.Invalid {
			t.Error(err)
		}
	}
	other := newRig(t)
	other.fill(4)
	to := memory.New()
	ev := slices.Clone(other.fill(0))[3]
	if _, err := to.Append(t.Context(), "s-0", eventstore.NoStream(),
		eventstore.Proposed{Header: ev.Header, Data: ev.Data}); err != nil {
		t.Fatal(err)
	}
	err := feed.Mirror(limited(t), r.consumer(), to)
	if domain.KindOf(err) != domain.Suspended || len(r.told) != 1 {
		t.Error(err)
	}
}

// TestMirrorPages proves that a mirror saves its cursor a few times for many events, never beyond
// what the target has, that one which did not answer is waited for, and that an event which the
// target does not take, in the middle of a page, is found and poisoned, with all before it copied.
func TestMirrorPages(t *testing.T) {
	r := newRig(t)
	all := r.fill(1500)
	to := &picky{Store: memory.New(), away: 3, refuse: all[700].ID}
	r.cursors.fail = func(c feed.Cursor) error {
		head, err := to.Head(t.Context())
		if err == nil && head.Position < c.Position {
			t.Errorf("the cursor stands at %s, the target ends at %s", c.Position, head.Position)
		}
		return err
	}
	var heard []error
	s := r.consumer(func(c *feed.Config) {
		c.Delivered = func(_ domain.Position, err error) { heard = append(heard, err) }
	})
	var poison *feed.PoisonError
	if err := feed.Mirror(limited(t), s, to); !errors.As(err, &poison) ||
		poison.Failure.Event.ID != all[700].ID || len(r.told) != 1 {
		t.Fatalf("%v", err)
	}
	at, _ := r.cursors.Load(t.Context(), "c")
	if at.Position != all[699].Position || len(r.cursors.log) < 2 ||
		r.cursors.log[0].Position != all[511].Position {
		t.Errorf("the cursor stands at %s, first at %s", at.Position, r.cursors.log[0].Position)
	}
	if len(heard) < 4 || heard[0] == nil || !slices.Contains(heard, nil) {
		t.Errorf("heard of %d, first %v", len(heard), heard[0])
	}
	to.refuse = domain.EventID{}
	ctx, end := context.WithCancel(limited(t))
	saves := len(r.cursors.log)
	r.cursors.fail = func(c feed.Cursor) error {
		if c.Position == all[1499].Position {
			end()
		}
		return nil
	}
	if err := feed.Mirror(ctx, r.consumer(), to); err != nil {
		t.Fatal(err)
	}
	if n := len(r.cursors.log) - saves; n > 4 {
		t.Errorf("%d saves for 800 events", n)
	}
	a, _ := duplicate.Digest(t.Context(), r.store, nil)
	b, err := duplicate.Digest(t.Context(), to, nil)
	if err != nil || a.Digest != b.Digest || b.Events != 1500 {
		t.Errorf("%+v against %+v, %v", a, b, err)
	}
}

// picky is a target that is away for the first appends and never takes one event.
type picky struct {
	*memory.Store
	mu     sync.Mutex
	away   int
	refuse domain.EventID
}

func (p *picky) Append(
	ctx context.Context, id domain.StreamID, e eventstore.Expect, ev ...eventstore.Proposed,
) (eventstore.Appended, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.away > 0 {
		p.away--
		return eventstore.Appended{}, domain.Errorf(domain.Unavailable, "away")
	}
	for i := range ev {
		if ev[i].ID == p.refuse {
			return eventstore.Appended{}, domain.Errorf(domain.TooLarge, "not this one")
		}
	}
	return p.Store.Append(ctx, id, e, ev...)
}
