package main

import (
	"bytes"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo serves an address that gives back what it gets.
func echo(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	return l.Addr().String()
}

// says tells whether a connection gives a byte back.
func says(c net.Conn) bool {
	b := []byte{7}
	_, err := c.Write(b)
	if err == nil {
		_, err = io.ReadFull(c, b)
	}
	return err == nil
}

// TestPath proves that a path carries bytes both ways, that cutting it ends what goes over it and
// lets nothing new through, and that it works again once it is mended.
func TestPath(t *testing.T) {
	p, err := newPath(echo(t))
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", "127.0.0.1:"+p.port())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	c := dial()
	if !says(c) {
		t.Fatal("nothing comes back")
	}
	p.cut(true)
	if says(c) || says(dial()) {
		t.Error("it is cut and carries")
	}
	p.cut(false)
	if !says(dial()) {
		t.Error("it is mended and does not carry")
	}
}

// TestFollow proves that checks are counted, that the path follows the job, and that a guest which
// ends early, or whose result is not that of its checks, is an error.
func TestFollow(t *testing.T) {
	p, err := newPath(echo(t))
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	for _, c := range []struct {
		console        string
		passed, failed int
		ok             bool
	}{
		{"boot\r\nPASS a b\r\nFAIL c\r\n  | why\r\nRESULT 1 1\r\n", 1, 1, true},
		{"PASS a\nRESULT 2 0\n", 1, 0, false},
		{"PASS a\nPATH cut\n", 1, 0, false},
		{"", 0, 0, false},
		{"PATH cut\nRESULT 0 0\n", 0, 0, true},
	} {
		p.cut(false)
		var out bytes.Buffer
		passed, failed, err := follow(strings.NewReader(c.console), &out, p)
		if passed != c.passed || failed != c.failed || (err == nil) != c.ok {
			t.Errorf("%q: %d, %d, %v", c.console, passed, failed, err)
		}
		p.mu.Lock()
		if p.isCut != strings.Contains(c.console, "PATH cut") {
			t.Errorf("%q: cut %v", c.console, p.isCut)
		}
		p.mu.Unlock()
	}
}

// TestScripts proves that the shell takes the scripts that are baked in, that each job is complete,
// and that a job which is not there is refused.
func TestScripts(t *testing.T) {
	files, err := scripts.ReadDir("jobs")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := scripts.ReadFile("jobs/" + f.Name())
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("bash", "-n")
		cmd.Stdin = bytes.NewReader(b)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", f.Name(), err, out)
		}
	}
	if _, err := parse([]string{"-jobs", "iscsi,none"}); err == nil {
		t.Error("a job that is not there")
	}
	if o, err := parse(nil); err != nil || len(o.jobs) != 2 {
		t.Errorf("%+v, %v", o, err)
	}
}
