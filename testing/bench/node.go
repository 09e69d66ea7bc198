package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// node is a server of ours in a process of its own, as its parent sees it.
type node struct {
	*child
	hello  hello
	socket string
	in     *os.File
	out    chan json.RawMessage
}

// startNode starts a server in a durability mode over a new device file in a folder, by the
// options' room as large as its volume, and writes the volume once from end to end.
func startNode(ctx context.Context, dir, mode string, opt options) (*node, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	n := &node{socket: filepath.Join(dir, mode+".sock"), out: make(chan json.RawMessage)}
	argv := []string{
		self, "serve", "-durability", mode, "-socket", n.socket,
		"-file", filepath.Join(dir, mode+".img"),
		"-device", fmt.Sprint(opt.size * opt.roomOf(mode)), "-volume", fmt.Sprint(opt.size),
		"-read-cache", fmt.Sprint(opt.cache),
	}
	if opt.profile != "" {
		argv = append(argv, "-cpuprofile", filepath.Join(opt.profile, mode+".pprof"))
	}
	if err := n.start(argv); err != nil {
		return nil, err
	}
	if err := n.receive(ctx, prepareLimit, &n.hello); err != nil {
		n.stop()
		return nil, err
	}
	fill := load{RW: "write", Block: mib, Depth: 4}
	if _, err := n.obey(ctx, order{Load: &fill}, prepareLimit); err != nil {
		n.stop()
		return nil, fmt.Errorf("%s: first write of the volume: %w", n.name, err)
	}
	return n, nil
}

// start starts the process with pipes to its input and output.
func (n *node) start(argv []string) error {
	orders, in, err := os.Pipe()
	if err != nil {
		return err
	}
	defer orders.Close() //nolint:errcheck // the child has its own
	answers, out, err := os.Pipe()
	if err != nil {
		_ = in.Close()
		return err
	}
	defer out.Close() //nolint:errcheck // the child has its own
	if n.child, err = spawn(out, orders, nil, argv...); err != nil {
		_ = in.Close()
		_ = answers.Close()
		return err
	}
	n.name, n.in = argv[0]+" serve", in
	go n.listen(answers)
	return nil
}

// listen hands on the lines that the server writes, until it ends.
func (n *node) listen(answers *os.File) {
	defer close(n.out)
	defer answers.Close() //nolint:errcheck // read only
	for dec := json.NewDecoder(answers); ; {
		var line json.RawMessage
		if err := dec.Decode(&line); err != nil {
			return
		}
		select {
		case n.out <- line:
		case <-n.done:
			return
		}
	}
}

func (n *node) receive(ctx context.Context, limit time.Duration, v any) error {
	select {
	case line, ok := <-n.out:
		if ok {
			return json.Unmarshal(line, v)
		}
		<-n.done
		return errors.Join(fmt.Errorf("%s: ended", n.name), n.err)
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(limit):
		return fmt.Errorf("%s: no answer in %s", n.name, limit)
	}
}

// obey sends an order and waits for its answer.
func (n *node) obey(ctx context.Context, o order, limit time.Duration) (answer, error) {
	var a answer
	if err := json.NewEncoder(n.in).Encode(o); err != nil {
		return a, err
	}
	if err := n.receive(ctx, o.Time+limit, &a); err != nil {
		return a, err
	}
	if a.Err != "" {
		return a, errors.New(a.Err)
	}
	return a, nil
}

// shut lets the server close in good order and then makes sure that it is gone.
func (n *node) shut() {
	_ = n.in.Close()
	select {
	case <-n.done:
	case <-time.After(2 * endGrace):
	}
	n.stop()
}

// since gives what an engine and its device did between two readings.
func since(a, b answer) *logWork {
	s, e := &a.Stats, &b.Stats
	return &logWork{
		UserBytes: e.UserBytes - s.UserBytes, Chunks: e.Chunks - s.Chunks,
		LogBytes: e.LogBytes - s.LogBytes, MovedBytes: e.MovedBytes - s.MovedBytes,
		MetaBytes: e.MetaBytes - s.MetaBytes, Written: b.Written - a.Written,
		Destaged: e.DestagedBytes - s.DestagedBytes, Checkpoints: e.Checkpoints - s.Checkpoints,
		Stalls: e.Stalls - s.Stalls,
	}
}
