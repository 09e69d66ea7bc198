package main

import (
	"io"
	"net"
	"sync"
)

// path is a way to an address that can be cut: then its connections are closed, and new ones are
// closed as soon as they are made, as with a node that has died.
type path struct {
	to       string
	listener net.Listener
	done     sync.WaitGroup

	mu    sync.Mutex
	isCut bool
	conns map[net.Conn]struct{}
}

// newPath opens a path to an address on the loopback.
func newPath(to string) (*path, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &path{to: to, listener: l, conns: map[net.Conn]struct{}{}}
	p.done.Go(p.accept)
	return p, nil
}

// port gives the port that leads to the address.
func (p *path) port() string {
	_, port, _ := net.SplitHostPort(p.listener.Addr().String()) // it is one
	return port
}

func (p *path) accept() {
	for {
		from, err := p.listener.Accept()
		if err != nil {
			return
		}
		to, err := net.Dial("tcp", p.to)
		if err != nil || !p.keep(from, to) {
			_ = from.Close()
			if to != nil {
				_ = to.Close()
			}
			continue
		}
		p.done.Go(func() { p.copy(from, to) })
		p.done.Go(func() { p.copy(to, from) })
	}
}

// keep notes both ends of a connection, unless the path is cut.
func (p *path) keep(ends ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.isCut {
		return false
	}
	for _, c := range ends {
		p.conns[c] = struct{}{}
	}
	return true
}

// copy carries bytes one way until either end is closed, and closes both.
func (p *path) copy(from, to net.Conn) {
	_, _ = io.Copy(to, from)
	_, _ = from.Close(), to.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, from)
	delete(p.conns, to)
}

// cut breaks the path, or mends it.
func (p *path) cut(broken bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.isCut = broken
	for c := range p.conns {
		if broken {
			_ = c.Close()
		}
	}
}

// close ends the path and all that goes over it.
func (p *path) close() {
	_ = p.listener.Close()
	p.cut(true)
	p.done.Wait()
}
