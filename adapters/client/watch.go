package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"weft/domain"
)

const (
	// silenceMax is how long a watch stays with a connection that says nothing. The server's
	// heartbeat comes three times in it.
	silenceMax = 45 * time.Second
	// eventMax bounds one line of a watch.
	eventMax = 4 << 20
)

// Watched selects the events of a watch.
type Watched struct {
	Since   domain.Position // only events after it
	Types   []string        // prefixes of types; empty: all
	Streams []string        // prefixes of streams; empty: all
}

// Watch calls fn with every event after a position, in order and each once, until fn fails, ctx
// ends, or the node stays away for as many tries as the Config allows (C4). It gives back fn's
// error as it is.
func (c *Client) Watch(ctx context.Context, w Watched, fn func(Event) error) error {
	s := &stream{c: c, w: w, fn: fn, last: w.Since}
	for try := 1; ; try++ {
		before := s.heard
		fail := s.follow(ctx)
		switch {
		case s.stop != nil:
			return s.stop
		case ctx.Err() != nil:
			return ended(ctx, nil)
		case !fail.again:
			return fail.err
		}
		if s.heard > before {
			try = 1
		}
		if try >= c.cfg.Tries {
			return fail.err
		}
		if err := c.pause(ctx, try, fail); err != nil {
			return err
		}
	}
}

// stream is a watch over the connections it takes.
type stream struct {
	c     *Client
	w     Watched
	fn    func(Event) error
	last  domain.Position // the last event delivered
	heard int             // lines that came
	stop  error           // fn's error
}

// follow reads one connection to its end.
func (s *stream) follow(ctx context.Context) *failure {
	conn, cancel := context.WithCancel(ctx)
	defer cancel()
	q := url.Values{}
	for name, list := range map[string][]string{"types": s.w.Types, "streams": s.w.Streams} {
		if len(list) > 0 {
			q.Set(name, strings.Join(list, ","))
		}
	}
	req, err := s.c.newRequest(conn, request{method: "GET", path: "/v1/watch", query: q}, nil)
	if err != nil {
		return &failure{err: err}
	}
	req.Header.Set("Last-Event-ID", s.last.String())
	req.Header.Set("Accept", "text/event-stream")
	watchdog := time.AfterFunc(silenceMax, cancel)
	defer watchdog.Stop()
	res, err := s.c.cfg.HTTP.Do(req)
	if err != nil {
		return s.c.broken(ctx, err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		body, err := io.ReadAll(io.LimitReader(res.Body, answerMax))
		if err != nil {
			return s.c.broken(ctx, err)
		}
		return refused(res, body)
	}
	return s.read(ctx, res.Body, func() { watchdog.Reset(silenceMax) })
}

// read takes the lines of one connection; alive is called at each.
func (s *stream) read(ctx context.Context, body io.Reader, alive func()) *failure {
	lines := bufio.NewScanner(body)
	lines.Buffer(make([]byte, 0, 64<<10), eventMax)
	var kind, data string
	for lines.Scan() {
		alive()
		s.heard++
		line := lines.Text()
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case line == "" && data != "":
			if fail := s.deliver(kind, data); fail != nil {
				return fail
			}
			kind, data = "", ""
		case name == "event":
			kind = value
		case name == "data":
			data += value
		}
	}
	err := lines.Err()
	if errors.Is(err, bufio.ErrTooLong) {
		return &failure{err: domain.Errorf(domain.TooLarge, "an event is over %s",
			domain.Bytes(eventMax))}
	}
	if err == nil {
		err = io.ErrUnexpectedEOF // a watch has no end of its own
	}
	return s.c.broken(ctx, err)
}

// deliver hands one event on, unless it came before the connection broke.
func (s *stream) deliver(kind, data string) *failure {
	if kind == "error" {
		var name string
		_ = json.Unmarshal([]byte(data), &name) // any other text is an internal error too
		k := kindOf(name)
		return &failure{
			again: k == domain.Busy || k == domain.Unavailable || k == domain.Aborted,
			err:   domain.Errorf(k, "the watch ended after position %s: %s", s.last, k),
		}
	}
	var e Event
	if err := json.Unmarshal([]byte(data), &e); err != nil {
		return &failure{err: &domain.Error{Kind: domain.Internal, Msg: "an event is no JSON", Err: err}}
	}
	p, err := domain.ParsePosition(e.Position)
	if err != nil {
		return &failure{err: err}
	}
	if p <= s.last {
		return nil
	}
	if err := s.fn(e); err != nil {
		s.stop = err
		return &failure{err: err}
	}
	s.last = p
	return nil
}
