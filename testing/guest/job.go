package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// server is a node with a volume of its own.
type server struct {
	cmd   *exec.Cmd
	NBD   string `json:"nbd"`
	ISCSI string `json:"iscsi"`
}

// serve starts the binary's demonstration in a new folder and waits until its volume is ready.
func (o options) serve(ctx context.Context, dir string) (*server, error) {
	s := &server{cmd: exec.CommandContext(ctx, o.weft, "demo", "--data-dir", dir, "-o", "json",
		"--api", "127.0.0.1:0", "--nbd", "127.0.0.1:0", "--iscsi", "127.0.0.1:0",
		"--peer", "127.0.0.1:0", "--events", "off")}
	s.cmd.Cancel = func() error { return s.cmd.Process.Signal(syscall.SIGTERM) }
	s.cmd.Stderr = os.Stderr
	out, err := s.cmd.StdoutPipe()
	if err == nil {
		err = s.cmd.Start()
	}
	if err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, s)
	}
	if err != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		return nil, fmt.Errorf("%s demo said %q: %w", o.weft, line, err)
	}
	return s, nil
}

// stop ends the node as an operator would.
func (s *server) stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return s.cmd.Wait()
}

// job runs one job against a node of its own, and gives how its checks ended.
func (o options) job(ctx context.Context, img image, name string) (passed, failed int, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, o.limit, errors.New("its time was over"))
	defer cancel()
	dir, err := os.MkdirTemp("", "weft-guest-")
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	s, err := o.serve(ctx, dir)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	env, second, err := s.parameters()
	if err != nil {
		return 0, 0, err
	}
	defer second.close()
	_, _ = fmt.Fprintf(o.log, "guest: %s\n", name)
	return o.boot(ctx, img, append(env, "job="+name), second)
}

// parameters says how the guest reaches the node, whose loopback is 10.0.2.2 there, and opens the
// second path to its iSCSI target.
func (s *server) parameters() ([]string, *path, error) {
	iscsi, err := url.Parse(s.ISCSI)
	if err != nil {
		return nil, nil, err
	}
	nbd, err := url.Parse(s.NBD)
	if err != nil {
		return nil, nil, err
	}
	second, err := newPath(iscsi.Host)
	if err != nil {
		return nil, nil, err
	}
	target, _, _ := strings.Cut(strings.TrimPrefix(iscsi.Path, "/"), "/")
	return []string{
		"target=" + target, "portal1=10.0.2.2:" + iscsi.Port(), "portal2=10.0.2.2:" + second.port(),
		"nbd_port=" + nbd.Port(), "nbd_export=" + strings.TrimPrefix(nbd.Path, "/"),
	}, second, nil
}

// program is the emulator.
const program = "qemu-system-x86_64"

// kvm tells whether guests run by the processor itself here. A device that is there does not say
// so: a guest that is never started does.
func kvm(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	probe := exec.CommandContext(ctx, program, "-accel", "kvm", "-cpu", "host", "-S", "-nodefaults",
		"-display", "none", "-monitor", "stdio")
	probe.Stdin = strings.NewReader("quit\n")
	return probe.Run() == nil
}

// boot boots the guest with parameters on its command line and follows its console to the end.
func (o options) boot(
	ctx context.Context, img image, params []string, second *path,
) (passed, failed int, err error) {
	accel, cpu := "tcg,thread=multi,tb-size=512", "max,la57=off"
	if kvm(ctx) {
		accel, cpu = "kvm", "host"
	}
	qemu := exec.CommandContext(ctx, program, "-machine", "q35", "-accel", accel, "-cpu", cpu,
		"-smp", "2", "-m", fmt.Sprint(o.memory), "-nodefaults", "-no-reboot",
		"-display", "none", "-serial", "stdio", "-monitor", "none",
		"-kernel", img.kernel, "-initrd", img.root,
		"-append", "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off random.trust_cpu=on "+
			"net.ifnames=0 tsc=reliable no_timer_check "+strings.Join(params, " "),
		"-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile=",
		"-device", "virtio-rng-pci")
	qemu.Stderr = os.Stderr
	out, err := qemu.StdoutPipe()
	if err == nil {
		err = qemu.Start()
	}
	if err != nil {
		return 0, 0, err
	}
	passed, failed, err = follow(out, o.log, second)
	if err != nil {
		_ = qemu.Process.Kill()
	}
	if ended := qemu.Wait(); err == nil {
		err = ended
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return passed, failed, err
}

// follow reads the console of a guest to its end: it cuts and mends the path as the job says, and
// counts the checks. A guest that ends without a result is an error.
func follow(console io.Reader, log io.Writer, second *path) (passed, failed int, err error) {
	lines, ended := bufio.NewScanner(console), false
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := strings.TrimRight(lines.Text(), "\r")
		verb, rest, _ := strings.Cut(line, " ")
		switch verb {
		case "PASS":
			passed++
		case "FAIL":
			failed++
		case "PATH":
			second.cut(rest == "cut")
		case "RESULT":
			ended = rest == fmt.Sprintf("%d %d", passed, failed)
		}
		_, _ = fmt.Fprintln(log, " ", line)
	}
	switch err := lines.Err(); {
	case err != nil && !errors.Is(err, net.ErrClosed):
		return passed, failed, err
	case !ended:
		return passed, failed, errors.New("the guest ended without the result of all its checks")
	}
	return passed, failed, nil
}
