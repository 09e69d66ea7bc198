package duplicate_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/duplicate"
	"weft/eventstore/memory"
	"weft/eventstore/storetest"
	"weft/testing/esdouble"
)

// busy fills a log as a cluster does: commands of one to three events, half of them to a few
// streams that change often, the others to streams that hardly ever do.
func busy(b *testing.B, events int) *memory.Store {
	b.Helper()
	s, next := memory.New(), map[domain.StreamID]domain.Revision{}
	chance := rand.New(rand.NewPCG(1, 2))
	for n, i := 0, 0; n < events; i++ {
		id := domain.StreamID(fmt.Sprintf("plan-%d", chance.IntN(20)))
		if i%2 == 0 {
			id = domain.StreamID(fmt.Sprintf("volume-%d", chance.IntN(events/4)))
		}
		ev := storetest.Propose(fmt.Sprint("e", i), 1+chance.IntN(3))
		for k := range ev {
			ev[k].Data = make([]byte, 256)
		}
		add(b, s, id, next[id]-1, ev)
		next[id] += domain.Revision(len(ev))
		n += len(ev)
	}
	return s
}

// eventByEvent copies as a copy did that looked at the place, appended and read back for every
// append of the source.
func eventByEvent(ctx context.Context, b *testing.B, from, to eventstore.Store) uint64 {
	b.Helper()
	look := func(r *eventstore.Recorded) (there bool) {
		for got, err := range to.ReadStream(ctx, r.Stream, r.Revision, eventstore.Forward, 1) {
			if err != nil || got.ID != r.ID {
				b.Fatal(got.ID, err)
			}
			there = true
		}
		return there
	}
	n := uint64(0)
	for r, err := range from.ReadAll(ctx, 0, eventstore.Forward, domain.Filter{}, eventstore.NoLimit) {
		if err != nil {
			b.Fatal(err)
		}
		p := eventstore.Proposed{Header: r.Header, Data: r.Data}
		p.Stream, p.Revision, p.Position = "", 0, 0
		p.Hash, p.Prev = [32]byte{}, [32]byte{}
		if look(&r) {
			b.Fatal("it is there")
		}
		if _, err := to.Append(ctx, r.Stream, eventstore.At(r.Revision-1), p); err != nil {
			b.Fatal(err)
		}
		if !look(&r) {
			b.Fatal("it is not there")
		}
		n++
	}
	return n
}

// BenchmarkCopy copies a history to an EventStoreDB in memory, behind the protocol and the official
// client, and by the way it was done before, in turn. It reports both rates and their ratio.
func BenchmarkCopy(b *testing.B) {
	const events, few = 40_000, 2_000
	large, small := busy(b, events), busy(b, few)
	var fast, slow, proof time.Duration
	copied, looked := uint64(0), uint64(0)
	for b.Loop() {
		to := connect(b, esdouble.New())
		began := time.Now()
		looked += eventByEvent(b.Context(), b, small, to)
		slow += time.Since(began)

		c := duplicate.New(large, connect(b, esdouble.New()), duplicate.Options{Flight: 16})
		began = time.Now()
		r, err := c.Round(b.Context(), duplicate.Part{})
		if err != nil {
			b.Fatal(err)
		}
		fast += time.Since(began)
		copied += r.Copied
		began = time.Now()
		if err := c.Prove(b.Context()); err != nil {
			b.Fatal(err)
		}
		proof += time.Since(began)
	}
	now, before := float64(copied)/fast.Seconds(), float64(looked)/slow.Seconds()
	b.ReportMetric(now, "events/s")
	b.ReportMetric(before, "events/s-before")
	b.ReportMetric(now/before, "ratio")
	b.ReportMetric(float64(copied)/proof.Seconds(), "proved/s")
}
