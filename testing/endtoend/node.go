package endtoend

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
)

// demo is what `weft demo -o json` prints.
type demo struct {
	API    string `json:"api"`
	Token  string `json:"token"`
	Volume string `json:"volume"`
	NBD    string `json:"nbd"`
	ISCSI  string `json:"iscsi"`
}

// process is a running weft.
type process struct {
	demo
	cmd *exec.Cmd
}

// startDemo runs the binary and waits for the line that says it is ready.
func startDemo(bin, dir string, log io.Writer, args ...string) (*process, error) {
	all := append([]string{
		"demo", "--data-dir", dir, "-o", "json", "--api", "127.0.0.1:0", "--nbd", "127.0.0.1:0",
		"--iscsi", "127.0.0.1:0", "--peer", "127.0.0.1:0", "--events", "off",
	}, args...)
	cmd := exec.Command(bin, all...)
	cmd.Stderr = log
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, err
	}
	p := &process{cmd: cmd}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &p.demo)
	}
	if err != nil {
		p.kill()
		return nil, fmt.Errorf("weft demo said %q: %w", line, err)
	}
	return p, nil
}

// kill ends the process as a power cut of the process would: no signal handler runs.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// stop ends it as an operator would, and gives its exit status.
func (p *process) stop() (*os.ProcessState, error) {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return nil, err
	}
	err := p.cmd.Wait()
	return p.cmd.ProcessState, err
}
