package esdb

import (
	"context"
	"encoding/json"
	"errors"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"weft/domain"
	"weft/eventstore"
)

// groups holds the persistent subscriptions that have consumers. All others are their memos.
type groups struct {
	server *Server
	ended  chan struct{}
	joined sync.WaitGroup
	making sync.Mutex // one group is made, changed or removed at a time

	mu struct {
		sync.Mutex
		open map[string]*group
	}
}

func newGroups(s *Server) *groups {
	g := &groups{server: s, ended: make(chan struct{})}
	g.mu.open = map[string]*group{}
	g.joined.Go(g.keep)
	return g
}

// keyPrefix begins the names of our cursors.
const keyPrefix = "psub/"

// keyOf names a group. A tenant's groups are its own.
func keyOf(tenant string, stream domain.StreamID, name string) string {
	if stream == "" {
		stream = "$all"
	}
	return keyPrefix + tenant + "/" + string(stream) + "::" + name
}

// What consumers are told when their group lets go of them.
var (
	errCut     = domain.Errorf(domain.Unavailable, "the group was changed; subscribe to it again")
	errMoved   = domain.Errorf(domain.Unavailable, "another node serves persistent subscriptions now")
	errDeleted = domain.Errorf(domain.NotFound, "the persistent subscription was deleted")
)

// keep looks at the open groups from time to time: events not acknowledged in time, cursors to
// save, and whether this node is still the one to serve them.
func (g *groups) keep() {
	tick := time.NewTicker(sweepTime)
	defer tick.Stop()
	for {
		select {
		case <-g.ended:
			return
		case <-tick.C:
		}
		_, self := g.server.leader()
		for _, x := range g.all() {
			if !self {
				g.shut(x, errMoved)
				continue
			}
			now := g.server.config.Now()
			x.expire(now)
			g.save(x, now, false)
		}
	}
}

func (g *groups) all() []*group {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make([]*group, 0, len(g.mu.open))
	for _, x := range g.mu.open {
		out = append(out, x)
	}
	return out
}

// save makes a group's progress durable. A failure is told and tried again with the next change:
// what is lost is that events come twice.
func (g *groups) save(x *group, now time.Time, must bool) {
	m, some := x.unsaved(now, must)
	if !some {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), shutdownMax)
	defer cancel()
	if err := g.store(ctx, x.key, m); err != nil {
		g.server.log.Warn("esdb cursor not saved", "group", x.key, "err", err)
		x.mu.Lock()
		x.touch(now)
		x.mu.Unlock()
	}
}

func (g *groups) store(ctx context.Context, key string, m memo) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return g.server.config.Cursors.Store(ctx, key, b)
}

// load gives a group's memo.
func (g *groups) load(ctx context.Context, key string) (m memo, ok bool, err error) {
	g.mu.Lock()
	x := g.mu.open[key]
	g.mu.Unlock()
	if x != nil {
		x.mu.Lock()
		defer x.mu.Unlock()
		return x.mu.memo, true, nil
	}
	b, err := g.server.config.Cursors.Load(ctx, key)
	if err != nil || b == nil {
		return memo{}, false, err
	}
	err = json.Unmarshal(b, &m)
	return m, err == nil, err
}

// enter adds a consumer to a group, and opens it when it is the first.
func (g *groups) enter(ctx context.Context, key string, c *consumer) (
	x *group, found, full bool, err error,
) {
	for {
		m, found, err := g.load(ctx, key)
		if err != nil || !found {
			return nil, false, false, err
		}
		g.mu.Lock()
		x := g.mu.open[key]
		if x == nil {
			sel, err := m.Source.selection()
			if err != nil {
				g.mu.Unlock()
				return nil, false, false, err
			}
			x = newGroup(g.server, key, m, sel)
			g.mu.open[key] = x
			x.start(g.server.ended)
		}
		full, ok := x.join(c)
		g.mu.Unlock()
		if ok || full {
			return x, true, full, nil
		}
		g.shut(x, errMoved) // it was ending: open it again
		if ctx.Err() != nil {
			return nil, false, false, eventstore.ErrClosed
		}
	}
}

// exit takes a consumer out of a group, and closes the group when it was the last.
func (g *groups) exit(x *group, c *consumer) {
	if x.leave(c) {
		g.shut(x, nil)
	}
}

// shut closes a group and saves its cursor, unless somebody did. A group that has consumers again
// is closed only for a reason.
func (g *groups) shut(x *group, why error) {
	g.mu.Lock()
	if g.mu.open[x.key] != x {
		g.mu.Unlock()
		return
	}
	x.mu.Lock()
	alive := why == nil && len(x.mu.consumers) > 0
	x.mu.Unlock()
	if alive {
		g.mu.Unlock()
		return
	}
	x.stop(why)
	if !errors.Is(why, errDeleted) {
		g.save(x, g.server.config.Now(), true)
	}
	delete(g.mu.open, x.key) // behind the save: who opens it next must read what was saved
	g.mu.Unlock()
}

// close ends all groups and saves them.
func (g *groups) close() {
	close(g.ended)
	g.joined.Wait()
	for _, x := range g.all() {
		g.shut(x, eventstore.ErrClosed)
	}
}

// selection gives what a group's source selects.
func (s *source) selection() (selection, error) {
	sel := selection{tenant: s.Tenant, exact: s.Stream}
	sel.filter = domain.Filter{StreamPrefix: s.Streams, TypePrefix: s.Types}
	if s.Stream != "" {
		sel.filter = domain.Filter{StreamPrefix: []string{string(s.Stream)}}
	}
	var err error
	if s.StreamLike != "" {
		sel.stream, err = regexp.Compile(s.StreamLike)
	}
	if s.TypeLike != "" && err == nil {
		sel.typ, err = regexp.Compile(s.TypeLike)
	}
	return sel, err
}

// list gives the memos of a tenant's groups, of all for the empty tenant, by key.
func (g *groups) list(ctx context.Context, tenant string) (keys []string, memos []memo, err error) {
	names, err := g.server.config.Cursors.Names(ctx)
	if err != nil {
		return nil, nil, err
	}
	slices.Sort(names)
	for _, key := range names {
		if !strings.HasPrefix(key, keyPrefix) {
			continue
		}
		m, ok, err := g.load(ctx, key)
		if err != nil {
			return nil, nil, err
		}
		if ok && (tenant == "" || m.Source.Tenant == tenant) {
			keys, memos = append(keys, key), append(memos, m)
		}
	}
	return keys, memos, nil
}
