package main

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"weft/adapters/rest"
	"weft/domain"
	"weft/domain/command"
	"weft/projections/topology"
)

const (
	// failingShown is how long something has to fail before it is shown: what an election or a
	// restart elsewhere refuses is over by then.
	failingShown = 5 * time.Second
	// failingWait bounds the wait for a node that is asked what fails there.
	failingWait = 2 * time.Second
	// failingText bounds the reason that is kept, bytes.
	failingText = 512
)

// background knows what of the work that a node does by itself fails, and since when: what is
// refused there has no caller who would hear of it. Any number of goroutines may use it. Nil
// remembers nothing.
type background struct {
	now func() time.Time
	mu  struct {
		sync.Mutex
		at      domain.Position // of the views, as they were heard of last
		failing map[string]command.Failing
		total   map[string]int64 // failures since the start, of what fails or did
	}
}

// newBackground makes one that has seen no failure.
func newBackground() *background {
	b := &background{now: time.Now}
	b.mu.failing, b.mu.total = map[string]command.Failing{}, map[string]int64{}
	return b
}

// note takes what came of a piece of work: an error, or nil when it went well. At is where in the
// log the work stands, 0 where that says nothing: then the log's end when it began to fail is kept.
// What waits for others to be ready (kind Busy) does not fail.
func (b *background) note(what string, at domain.Position, err error) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil || domain.IsKind(err, domain.Busy) {
		delete(b.mu.failing, what)
		return
	}
	f, known := b.mu.failing[what]
	if !known {
		f = command.Failing{What: what, Since: b.now().UTC(), Position: b.mu.at}
	}
	if at > 0 {
		f.Position = at
	}
	f.Failures++
	text := err.Error()
	f.Error = text[:min(len(text), failingText)]
	b.mu.failing[what] = f
	b.mu.total[what]++
}

// end forgets work that is not done here any more.
func (b *background) end(what string) { b.note(what, 0, nil) }

// keep forgets the work whose names begin with a prefix, but for some.
func (b *background) keep(prefix string, names map[string]bool) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	maps.DeleteFunc(b.mu.failing, func(what string, _ command.Failing) bool {
		return strings.HasPrefix(what, prefix) && !names[what]
	})
}

// reached hears how far the views are.
func (b *background) reached(at domain.Position) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.at = at
}

// list gives what has failed for a while, by name.
func (b *background) list() []command.Failing {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []command.Failing
	for _, what := range slices.Sorted(maps.Keys(b.mu.failing)) {
		if f := b.mu.failing[what]; b.now().Sub(f.Since) >= failingShown {
			out = append(out, f)
		}
	}
	return out
}

// totals counts the failures since the start.
func (b *background) totals() map[string]int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.mu.total)
}

// Failing implements rest.Backend: what the nodes tell, asked all at once, and the outlets that are
// stuck, which the log tells. A node that is down is said to be so elsewhere.
func (b *backend) Failing(ctx context.Context) (out []rest.Failing, silent []string) {
	ctx, cancel := context.WithTimeout(ctx, failingWait)
	defer cancel()
	var (
		mu sync.Mutex
		wg sync.WaitGroup
	)
	for _, n := range b.views.topology.Nodes() {
		if n.Removed || n.Down {
			continue
		}
		wg.Go(func() {
			a, err := b.to.Ask(ctx, command.Question{Ask: command.AskFailing, Node: n.Node.Node})
			mu.Lock()
			defer mu.Unlock()
			if err != nil && !domain.IsKind(err, domain.Unsupported) { // which an older build says
				silent = append(silent, n.Name)
			}
			for _, f := range a.Failing {
				out = append(out, failingDoc(n, f))
			}
		})
	}
	wg.Wait()
	for _, o := range b.views.outlets.Outlets() {
		if o.Stuck != nil {
			out = append(out, rest.Failing{
				What: "outlet/" + o.Name, Failures: o.Stuck.Failures, Error: o.Stuck.Reason,
				Position: o.Stuck.At.String(),
			})
		}
	}
	slices.SortFunc(out, func(x, y rest.Failing) int {
		return cmp.Or(cmp.Compare(x.What, y.What), cmp.Compare(x.Node, y.Node))
	})
	slices.Sort(silent)
	return out, silent
}

func failingDoc(n topology.Node, f command.Failing) rest.Failing {
	return rest.Failing{
		What: f.What, Node: n.Name, Since: &f.Since, Failures: f.Failures, Error: f.Error,
		Position: f.Position.String(),
	}
}
