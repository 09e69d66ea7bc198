package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	endGrace   = 3 * time.Second // between asking a child to end and ending it
	startLimit = 20 * time.Second
	tailMax    = 4 * kib // of a child's output that are kept for its error
	ticks      = 100     // USER_HZ: /proc counts CPU time in this part of a second everywhere
)

// child is a process of ours. It leads its own process group, and the kernel kills it should this
// process end without ending it: so it must be started on the main goroutine, which keeps the main
// thread.
type child struct {
	name string
	cmd  *exec.Cmd
	tail tail
	done chan struct{} // closed once it has ended; err is set then
	err  error
}

// spawn starts a program. stdout goes where out says; nil keeps the end of it beside stderr's.
func spawn(out io.Writer, in io.Reader, env []string, argv ...string) (*child, error) {
	c := &child{name: argv[0], cmd: exec.Command(argv[0], argv[1:]...), done: make(chan struct{})}
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	c.cmd.Env = append(os.Environ(), env...)
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = in, out, &c.tail
	c.cmd.WaitDelay = endGrace
	if out == nil {
		c.cmd.Stdout = &c.tail
	}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		if err := c.cmd.Wait(); err != nil {
			c.err = fmt.Errorf("%s: %w\n%s", c.name, err, c.tail.text())
		}
		close(c.done)
	}()
	return c, nil
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// stop ends the child and its group, and waits: it asks first, and kills after a while. tgtd, for
// one, ignores a request while it has targets.
func (c *child) stop() {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		select {
		case <-c.done:
			return
		default:
		}
		_ = syscall.Kill(-c.pid(), sig)
		select {
		case <-c.done:
		case <-time.After(endGrace):
		}
	}
	<-c.done
}

// output runs a program to its end, at most for a time, and gives what it wrote to stdout.
func output(ctx context.Context, limit time.Duration, argv ...string) ([]byte, error) {
	return outputEnv(ctx, limit, nil, argv...)
}

func outputEnv(ctx context.Context, limit time.Duration, env []string, argv ...string) (
	[]byte, error,
) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var out bytes.Buffer
	c, err := spawn(&out, nil, env, argv...)
	if err != nil {
		return nil, err
	}
	select {
	case <-c.done:
		return out.Bytes(), c.err
	case <-ctx.Done():
		c.stop()
		return nil, fmt.Errorf("%s: %w", c.name, ctx.Err())
	}
}

// await asks ready until it agrees, and gives up when the child ends or the time is over.
func (c *child) await(ctx context.Context, ready func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for !ready() {
		select {
		case <-c.done:
			return errors.Join(fmt.Errorf("%s: ended at once", c.name), c.err)
		case <-ctx.Done():
			return fmt.Errorf("%s: not ready: %w\n%s", c.name, ctx.Err(), c.tail.text())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// answers gives a function that tells whether somebody accepts connections.
func answers(network, addr string) func() bool {
	return func() bool {
		conn, err := net.DialTimeout(network, addr, time.Second)
		if err != nil {
			return false
		}
		_ = conn.Close()
		return true
	}
}

// freePort gives a port of the loopback interface that nobody has at the moment.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	addr, ok := l.Addr().(*net.TCPAddr)
	if err := l.Close(); err != nil || !ok {
		return 0, fmt.Errorf("no free port: %w", err)
	}
	return addr.Port, nil
}

// tail keeps the end of what is written to it.
type tail struct {
	mu   sync.Mutex
	data []byte
}

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.data = append(t.data, p...)
	if over := len(t.data) - tailMax; over > 0 {
		t.data = append(t.data[:0], t.data[over:]...)
	}
	return len(p), nil
}

func (t *tail) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.data))
}

// cpuTime gives the CPU time of a process so far, all its threads together, those that have ended
// too.
func cpuTime(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseStat(string(b))
}

// parseStat reads utime and stime, fields 14 and 15 of /proc/PID/stat. The name, field 2, may hold
// spaces and brackets, so fields are counted from its last bracket on.
func parseStat(line string) (time.Duration, error) {
	const utime, stime = 14 - 3, 15 - 3
	end := strings.LastIndexByte(line, ')')
	if end < 0 {
		return 0, fmt.Errorf("no name in stat line %q", line)
	}
	fields := strings.Fields(line[end+1:])
	if len(fields) <= stime {
		return 0, fmt.Errorf("stat line %q is short", line)
	}
	var sum int64
	for _, i := range []int{utime, stime} {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("stat line %q: %w", line, err)
		}
		sum += n
	}
	return time.Duration(sum) * time.Second / ticks, nil
}

const (
	quietStep  = 200 * time.Millisecond
	quietLimit = 10 * time.Second
)

// settle waits until none of the processes uses more than a twentieth of a core, so that one cell's
// cleaning does not run in the next one's time. Those that stay busy are let be after a while.
func settle(ctx context.Context, pids []int) error {
	deadline := time.Now().Add(quietLimit)
	last := time.Duration(-1)
	for time.Now().Before(deadline) {
		var sum time.Duration
		for _, pid := range pids {
			t, err := cpuTime(pid)
			if err != nil {
				return err
			}
			sum += t
		}
		if last >= 0 && sum-last <= quietStep/20 {
			return nil
		}
		last = sum
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(quietStep):
		}
	}
	return nil
}
