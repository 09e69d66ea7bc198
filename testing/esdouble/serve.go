package esdouble

import (
	"context"
	"net"
	"sync"
	"testing"

	"weft/adapters/esdb"
	"weft/domain"
	"weft/eventstore"
)

// Subscribe implements eventstore.Store.
func (l *Log) Subscribe(
	_ context.Context, after domain.Position, f domain.Filter,
) (eventstore.Subscription, error) {
	return &follower{log: l, at: after, filter: f, closed: make(chan struct{})}, nil
}

type follower struct {
	log    *Log
	at     domain.Position
	filter domain.Filter
	live   bool
	once   sync.Once
	closed chan struct{}
}

// Next implements eventstore.Subscription.
func (f *follower) Next(ctx context.Context) (eventstore.Item, error) {
	for {
		f.log.mu.Lock()
		events, i := f.log.mu.events, f.log.after(f.at)
		ended, changed := f.log.mu.ended, f.log.mu.changed
		f.log.mu.Unlock()
		for ; i < len(events); i++ {
			f.at = events[i].Position
			if f.filter.Match(events[i].Stream, events[i].Type) {
				return eventstore.Item{
					Kind: eventstore.Event, Event: events[i].recorded(), Position: f.at,
				}, nil
			}
		}
		if !f.live {
			f.live = true
			return eventstore.Item{Kind: eventstore.CaughtUp, Position: f.at}, nil
		}
		if ended {
			return eventstore.Item{}, eventstore.ErrClosed
		}
		select {
		case <-changed:
		case <-f.closed:
			return eventstore.Item{}, eventstore.ErrClosed
		case <-ctx.Done():
			return eventstore.Item{}, &domain.Error{
				Op: "esdouble.Next", Kind: domain.Aborted, Err: ctx.Err(),
			}
		}
	}
}

// Close implements eventstore.Subscription.
func (f *follower) Close() error {
	f.once.Do(func() { close(f.closed) })
	return nil
}

// Server serves a log at an address that survives a restart.
type Server struct {
	Log  *Log
	Addr string // host:port of the loopback

	t    testing.TB
	stop func()
}

// Serve begins to serve a log in the clear, and ends at the end of the test. Everybody may do
// everything.
func Serve(t testing.TB, l *Log) *Server {
	t.Helper()
	s := &Server{Log: l, Addr: "127.0.0.1:0", t: t}
	s.Start()
	t.Cleanup(func() {
		s.Stop()
		_ = l.Close()
	})
	return s
}

// Start serves again after Stop, at the same address.
func (s *Server) Start() {
	s.t.Helper()
	listener, err := net.Listen("tcp", s.Addr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.Addr = listener.Addr().String()
	server, err := esdb.New(esdb.Config{
		Store: s.Log, Appender: s.Log, Cursors: noCursors{},
		Authenticate: func(context.Context, string, string) (esdb.Principal, error) {
			return esdb.Principal{Actor: "test"}, nil
		},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	var once sync.Once
	s.stop = func() {
		once.Do(func() {
			server.Close()
			if err := <-done; err != nil {
				s.t.Error(err)
			}
		})
	}
}

// Stop ends every call and closes the listener. What was stored stays.
func (s *Server) Stop() { s.stop() }

// noCursors keeps no persistent subscription.
type noCursors struct{}

func (noCursors) Load(context.Context, string) ([]byte, error) { return nil, nil }

func (noCursors) Store(context.Context, string, []byte) error {
	return domain.Errorf(domain.Unsupported, "no persistent subscriptions here")
}

func (noCursors) Delete(context.Context, string) error { return nil }

func (noCursors) Names(context.Context) ([]string, error) { return nil, nil }
