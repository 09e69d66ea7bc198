package quorum

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/archive"
)

const (
	archivePath = "/weft/v1/archive/"
	// segmentWait bounds the transfer of one segment.
	segmentWait = 2 * time.Minute
	// pastRest is the pause before the archive is written again after a failure, doubling to the
	// most.
	pastRest    = time.Second
	pastRestMax = time.Minute
)

// openPast opens the archive and lets the mirror begin behind it. A segment that is not sound ends
// it there: what follows is read from the database or from another node again.
func (s *Store) openPast() error {
	h, damage, err := archive.OpenHistory(s.cfg.Archive, s.cfg.ClusterID.UUID, s.cfg.SegmentEvents)
	if err != nil {
		return domain.Wrap(err, "quorum.Open", s.cfg.Archive)
	}
	if damage != nil {
		d := damageOf(PartArchive, damage)
		d.First, d.Alone = h.Head().Position.N()+1, s.solitary()
		s.spoiled(d)
	}
	base, err := h.Base()
	if err != nil {
		return domain.Wrap(err, "quorum.Open", s.cfg.Archive)
	}
	s.past = h
	if base.Head.Position == 0 {
		base.Streams = nil
	}
	s.mirror.Mend(s.healing)
	return s.mirror.Attach(h, base)
}

// keepPast seals the records of the mirror, segment by segment as the log grows, and gives their
// memory back once the disk is proved to hold them. It ends with the context.
func (s *Store) keepPast(ctx context.Context) {
	rest := pastRest
	told := eventstore.Head{}
	for ctx.Err() == nil {
		err := s.seal(ctx)
		if head := s.past.Head(); err == nil && head != told && head.Position > 0 {
			if err = s.tell(ctx, head); err == nil {
				told = head
			}
		}
		s.note("archiving the log", err)
		if err != nil {
			pause, cancel := context.WithTimeout(ctx, rest)
			<-pause.Done()
			cancel()
			rest = min(2*rest, pastRestMax)
			continue
		}
		rest = pastRest
		next := s.past.Head().Position.N() + s.past.Per()
		if err := s.mirror.Wait(ctx, domain.Position(next)); err != nil && ctx.Err() == nil {
			<-ctx.Done() // the log has ended; nothing more comes
		}
	}
}

// seal archives every full segment that the mirror holds in memory.
func (s *Store) seal(ctx context.Context) error {
	s.growing.Lock()
	defer s.growing.Unlock()
	per := s.past.Per()
	for s.mirror.Head().Position.N() >= s.past.Head().Position.N()+per && ctx.Err() == nil {
		s.mirror.Retire(s.past.Head().Position.N()) // of an earlier turn that was cut short
		if _, err := s.past.Seal(ctx, s.mirror.Hot(int(per))); err != nil {
			return err
		}
		s.mirror.Retire(s.past.Head().Position.N())
	}
	return ctx.Err()
}

// tell lets the cluster know how far this node's archive reaches.
func (s *Store) tell(ctx context.Context, head eventstore.Head) error {
	ctx, cancel := context.WithTimeout(ctx, txnWait)
	defer cancel()
	_, err := s.client.Put(ctx, s.keys.holder(s.cfg.Name), encodeTail(head))
	if err != nil {
		return unavailable(ctx, "quorum.Archive", err)
	}
	return nil
}

// note keeps why the archive does not grow, and says it once.
func (s *Store) note(what string, err error) {
	if s.life.Err() != nil {
		return
	}
	s.mu.Lock()
	before := s.mu.stuck
	s.mu.stuck = err
	s.mu.Unlock()
	if err != nil && (before == nil || before.Error() != err.Error()) {
		s.cfg.Logger.Warn(what, "err", err)
	}
}

// Holder is a node whose archive holds the log up to a place.
type Holder struct {
	Name string // Config.Name of the node
	eventstore.Head
}

// Holders lists how far each node's archive reaches, as the nodes have told. An entry that does not
// match its checksum is left out: it proves nothing.
func (s *Store) Holders(ctx context.Context) ([]Holder, error) {
	prefix := s.keys.holder("")
	res, err := s.client.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, unavailable(ctx, "quorum.Holders", err)
	}
	var out []Holder
	for _, kv := range res.Kvs {
		if h, ok := decodeTail(kv.Value); ok {
			out = append(out, Holder{strings.TrimPrefix(string(kv.Key), prefix), h})
		}
	}
	return out, nil
}

// Forget drops what a node that left the cluster had told of its archive.
func (s *Store) Forget(ctx context.Context, name string) error {
	if _, err := s.client.Delete(ctx, s.keys.holder(name)); err != nil {
		return unavailable(ctx, "quorum.Forget", err)
	}
	return nil
}

// serveArchive gives another node the segment that begins at the n in the path.
func (s *Store) serveArchive(w http.ResponseWriter, r *http.Request) {
	first, err := strconv.ParseUint(strings.TrimPrefix(r.URL.Path, archivePath), 10, 64)
	if err != nil {
		http.Error(w, "no such segment", http.StatusBadRequest)
		return
	}
	f, seg, err := s.past.Open(first)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	defer func() { _ = f.Close() }()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(seg.Bytes, 10))
	_, _ = io.Copy(w, f) // who gets less does not verify it
}

// fetch brings archive and mirror up to a place that the database no longer holds, segment by
// segment from whichever node has them. Every record is verified on the way in, like any other.
//
// The error is a CorruptError where no other node can be asked, and Unavailable when none answers.
func (s *Store) fetch(ctx context.Context, to eventstore.Head) error {
	s.growing.Lock()
	defer s.growing.Unlock()
	in := s.intake()
	for s.past.Head().Position.N() < to.Position.N() {
		at := s.past.Head().Position.N()
		err := s.eachNode(func(url string) error {
			return s.segmentFrom(ctx, url, at+1, func(body io.Reader) error {
				_, err := s.past.Receive(ctx, body)
				return err
			})
		})
		if err != nil {
			return err
		}
		if err := s.past.Read(ctx, at, in.take); err != nil {
			return err
		}
		s.mirror.Retire(s.past.Head().Position.N())
	}
	return in.behind(to)
}

// intake is the door of the mirror: the sequencer's, once there is one.
func (s *Store) intake() *intake {
	if s.seq != nil {
		return s.seq.in
	}
	return &intake{mirror: s.mirror}
}

// eachNode asks one node after the other until one can.
func (s *Store) eachNode(ask func(url string) error) error {
	if s.cfg.Net == nil {
		return &eventstore.CorruptError{
			Position: s.past.Head().Position + 1,
			What:     "the database no longer holds it, and this node's archive does not either",
		}
	}
	err := domain.Errorf(domain.Unavailable, "no other node is known that could have the archive")
	failed := error(err)
	for _, url := range s.others() {
		if failed = ask(url); failed == nil {
			return nil
		}
	}
	return failed
}

// segmentFrom asks one node for a segment.
func (s *Store) segmentFrom(
	ctx context.Context, url string, first uint64, take func(io.Reader) error,
) error {
	ctx, cancel := context.WithTimeout(ctx, segmentWait)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet,
		url+archivePath+strconv.FormatUint(first, 10), nil)
	if err != nil {
		return err
	}
	res, err := s.http.Do(req)
	if err != nil {
		return unavailable(ctx, "quorum.Archive", err)
	}
	defer func() { _ = res.Body.Close() }() // read to its end, or given up
	if res.StatusCode != http.StatusOK {
		return &domain.Error{
			Op: "quorum.Archive", Kind: domain.Unavailable, Ref: url,
			Msg: fmt.Sprintf("it does not have the segment that begins at %d", first),
			Err: errors.New(res.Status),
		}
	}
	return take(res.Body)
}
