package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"weft/adapters/rest"
	"weft/domain"
	"weft/domain/identity"
	"weft/eventstore"
	"weft/eventstore/vault"
	"weft/projections/access"
)

// Limits of the file of refused attempts.
const (
	refusalFileMax = 4 << 20 // bytes of one file
	refusalFiles   = 5       // the one that is written, and older ones
	refusalQueue   = 64      // events on their way to the log
	attemptReason  = 256     // bytes of a reason
)

// refusals keeps every attempt that this node's API refused, a line each, in files that rotate: the
// newest is refused.0.log. Lines survive a crash of the process, not surely one of the machine:
// an attacker must not make the node sync. Only the oldest are ever lost. Beside the file it tells
// the log, in bounded number; what a log that does not answer cannot take stands in the file alone.
type refusals struct {
	dir   string
	max   int64
	bg    *background
	log   *slog.Logger
	told  chan identity.CommandRefused
	actor string
	keys  *vault.Vault

	mu struct {
		sync.Mutex
		file  *os.File
		size  int64
		tally identity.Tally
	}
}

// openRefusals opens the newest file and begins to tell the log. Closing waits for the last one.
func openRefusals(
	d *dataDir, x *eventstore.Executor, k *vault.Vault, bg *background, log *slog.Logger,
) (*refusals, func(), error) {
	r := &refusals{
		keys: k,
		dir:  d.file("audit"), max: refusalFileMax, bg: bg, log: log,
		told:  make(chan identity.CommandRefused, refusalQueue),
		actor: "node/" + d.id.Node.String(),
	}
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return nil, nil, asDomain(err)
	}
	if err := r.open(); err != nil {
		return nil, nil, asDomain(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { r.tell(ctx, x) })
	return r, func() {
		stop()
		wg.Wait()
		r.mu.Lock()
		defer r.mu.Unlock()
		_ = r.mu.file.Close() // nothing is buffered
	}, nil
}

// tell tells the log until ctx ends, and closes what the tally gathered once a second.
func (r *refusals) tell(ctx context.Context, x *eventstore.Executor) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			r.mu.Lock()
			r.queue(r.mu.tally.Due(now))
			r.mu.Unlock()
		case ev := <-r.told:
			within, cancel := context.WithTimeout(ctx, waitMax)
			caller := domain.Caller{Actor: r.actor, RequestID: ev.Request}
			if ev.Source = r.sealed(within, ev); strings.HasPrefix(ev.Who, "address/") {
				caller.Source = ev.Source
			}
			_, err := x.Do(within, domain.Request{
				Command: identity.RecordRefusal{CommandRefused: ev}, Caller: caller,
			})
			cancel()
			if ctx.Err() == nil {
				r.bg.note("telling the log of refused attempts", 0, err)
			}
			if err != nil && ctx.Err() == nil {
				r.log.Warn("refused attempts are not in the log", "err", err, "count", ev.Count)
			}
		}
	}
}

// sealed gives what the log holds in the place of the address that an attempt came from: a user's
// is sealed, and left out where that cannot be.
func (r *refusals) sealed(ctx context.Context, ev identity.CommandRefused) string {
	id, err := domain.ParseUUID(strings.TrimPrefix(ev.Who, "user/"))
	if err != nil {
		return ev.Source
	}
	label := access.SourceLabel(ev.Request)
	box, err := r.keys.Seal(ctx, domain.UserID{UUID: id}, label, ev.Source)
	if err != nil {
		return ""
	}
	return access.SealedSource(box)
}

// queue hands events over; what finds no room is left to the file.
func (r *refusals) queue(list []identity.CommandRefused) {
	for _, ev := range list {
		select {
		case r.told <- ev:
		default:
			r.log.Warn("refused attempts are not in the log: too many wait", "count", ev.Count)
		}
	}
}

// summary is what the log says of an attempt. What foreigners write into their requests is no kind
// of its own: they could make as many as they like.
func summary(a rest.Attempt) identity.CommandRefused {
	ev := identity.CommandRefused{
		Who: a.Actor, Kind: a.Operation, Reason: a.Reason, Tenant: a.Tenant, Source: a.Source,
		Request: a.Request,
	}
	if strings.Contains(ev.Kind, " ") {
		ev.Kind = "request" // no operation was reached: the rest of it is the caller's own text
	}
	if ev.Who == "" {
		host, _, err := net.SplitHostPort(a.Source)
		if err != nil {
			host = a.Source
		}
		ev.Who = "address/" + host
	}
	return ev
}

func (r *refusals) path(n int) string {
	return filepath.Join(r.dir, "refused."+strconv.Itoa(n)+".log")
}

func (r *refusals) open() error {
	f, err := os.OpenFile(r.path(0), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	r.mu.file, r.mu.size = f, st.Size()
	if r.mu.size == 0 {
		return nil
	}
	// A line that a crash cut off must not run into the next.
	n, err := f.Write([]byte("\n"))
	r.mu.size += int64(n)
	return err
}

// attempt keeps an attempt at another port than the API's, whose calls have no id of their own. Its
// status is 0.
func (r *refusals) attempt(a rest.Attempt) {
	var raw [8]byte
	_, _ = rand.Read(raw[:])
	a.Time, a.Request = time.Now().UTC(), hex.EncodeToString(raw[:])
	a.Reason = a.Reason[:min(len(a.Reason), attemptReason)]
	r.note(a)
}

// note keeps an attempt. What cannot be kept is told to the node's log: the caller has its answer.
func (r *refusals) note(a rest.Attempt) {
	if a.Status < 500 || a.Status == http.StatusInsufficientStorage { // others may have been done
		r.mu.Lock()
		r.queue(r.mu.tally.Note(a.Time, summary(a)))
		r.mu.Unlock()
	}
	line, err := json.Marshal(a)
	if err == nil {
		err = r.write(append(line, '\n'))
	}
	if err != nil {
		r.log.Error("a refused attempt is not in the audit", "err", err, "request", a.Request)
	}
}

func (r *refusals) write(line []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.size+int64(len(line)) > r.max && r.mu.size > 0 {
		if err := r.rotate(); err != nil {
			return err
		}
	}
	n, err := r.mu.file.Write(line)
	r.mu.size += int64(n)
	return err
}

// rotate begins a new file. The caller holds the lock.
func (r *refusals) rotate() error {
	for n := refusalFiles - 1; n > 0; n-- {
		err := os.Rename(r.path(n-1), r.path(n))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	old := r.mu.file
	if err := r.open(); err != nil {
		return err
	}
	return old.Close()
}

// newest gives up to limit attempts, the newest first. A line that was cut off is left out.
func (r *refusals) newest(limit int) ([]rest.Attempt, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []rest.Attempt
	for n := 0; n < refusalFiles && len(out) < limit; n++ {
		b, err := os.ReadFile(r.path(n))
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return nil, asDomain(err)
		}
		lines := bytes.Split(bytes.TrimSuffix(b, []byte("\n")), []byte("\n"))
		for i := len(lines) - 1; i >= 0 && len(out) < limit; i-- {
			var a rest.Attempt
			if json.Unmarshal(lines[i], &a) == nil {
				out = append(out, a)
			}
		}
	}
	return out, nil
}
