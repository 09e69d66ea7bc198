package endtoend

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

var (
	full    = flag.Bool("full", false, "1 GiB of writes a client and ten kills, not the short run")
	weftBin = flag.String("weft", "", "the binary; default: built from this tree")
)

// build gives the binary under test.
func build(t *testing.T) string {
	t.Helper()
	if *weftBin != "" {
		return *weftBin
	}
	bin := filepath.Join(t.TempDir(), "weft")
	out, err := exec.Command("go", "build", "-o", bin, "weft/cmd/weft").CombinedOutput()
	if err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return bin
}

// need skips the test when a client is missing.
func need(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed: run .ci/deps as root", tool)
		}
	}
}

// start runs a demo; its log goes to the test when it fails.
func start(t *testing.T, bin, dir string) *process {
	t.Helper()
	log := &bytes.Buffer{}
	p, err := startDemo(bin, dir, log, "--size", "2GiB", "--device-size", "4GiB")
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("weft said:\n%s", log)
		}
	})
	return p
}

// run runs a client to its end.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestClients writes random ranges of 4 to 64 KiB through fio over NBD and through qemu-io over
// iSCSI, and verifies all of them: no mismatch.
func TestClients(t *testing.T) {
	need(t, "fio", "qemu-io", "qemu-img", "nbdinfo")
	p := start(t, build(t), t.TempDir())
	size, writes := "64m", 1500
	if *full {
		size, writes = "1g", 32_000
	}
	run(t, "nbdinfo", p.NBD)
	out := filepath.Join(t.TempDir(), "fio.txt")
	cmd := exec.Command("fio", "--name=verify", "--ioengine=nbd", "--uri="+p.NBD, "--rw=randwrite",
		"--bsrange=4k-64k", "--iodepth=16", "--size="+size, "--verify=crc32c", "--verify_fatal=1",
		"--output="+out)
	cmd.Dir = t.TempDir() // fio leaves a file behind
	if msg, err := cmd.CombinedOutput(); err != nil {
		report, _ := os.ReadFile(out)
		t.Fatalf("fio: %v\n%s\n%s", err, msg, report)
	}
	verifyISCSI(t, p.ISCSI, writes)
	run(t, "qemu-img", "info", "-f", "raw", p.ISCSI)
	state, err := p.stop()
	if err != nil || !state.Success() {
		t.Errorf("SIGTERM: %v, %v", state, err)
	}
}

// verifyISCSI writes the second GiB through qemu-io in one process and reads every range back in
// another. qemu-io's own -P compares.
func verifyISCSI(t *testing.T, uri string, writes int) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(1, 1))
	last := map[int64]byte{} // of each 4 KiB block
	var script strings.Builder
	for i := range writes {
		n := (1 + rnd.Int64N(16)) * 4096
		off := 1<<30 + rnd.Int64N((1<<30-n)/4096)*4096
		pat := byte(1 + i%255)
		fmt.Fprintf(&script, "write -q -P %d %d %d\n", pat, off, n)
		for b := off; b < off+n; b += 4096 {
			last[b] = pat
		}
	}
	qemuIO(t, uri, script.String())
	script.Reset()
	for off := int64(1 << 30); off < 2<<30; {
		pat, n := last[off], int64(4096)
		for off+n < 2<<30 && last[off+n] == pat && n < 16<<20 {
			n += 4096
		}
		fmt.Fprintf(&script, "read -q -P %d %d %d\n", pat, off, n)
		off += n
	}
	if out := qemuIO(t, uri, script.String()); strings.Contains(out, "Pattern verification failed") {
		t.Fatalf("mismatch over iSCSI:\n%.2000s", out)
	}
}

func qemuIO(t *testing.T, uri, script string) string {
	t.Helper()
	cmd := exec.Command("qemu-io", "-f", "raw", uri)
	cmd.Stdin = strings.NewReader(script)
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Contains(string(out), "failed") {
		t.Fatalf("qemu-io: %v\n%.2000s", err, out)
	}
	return string(out)
}

// slot is one place of the killing test: what was written there, in order, and what is known of it.
type slot struct {
	mu    sync.Mutex
	acked uint64 // the last number acknowledged
	begun uint64 // the last number sent
}

const (
	slotBytes = 64 << 10
	slots     = 4096 // 256 MiB for each client
)

// image spells a number over a whole slot, so that every sector says which write it is of.
func image(p []byte, n uint64) {
	for i := 0; i < len(p); i += 8 {
		binary.BigEndian.PutUint64(p[i:], n)
	}
}

// TestKillUnderLoad kills the process in the middle of writes over NBD and over iSCSI at once,
// starts it again on the same folder, and reads everything: a slot holds its last acknowledged
// write, or one sent later, and every 4 KiB of it is whole. Ten times in a row with -full, else
// three.
func TestKillUnderLoad(t *testing.T) {
	need(t, "qemu-io", "stdbuf")
	bin, dir := build(t), t.TempDir()
	rounds, atLeast := 3, int64(500)
	if *full {
		rounds, atLeast = 10, 8000
	}
	k := &killer{t: t, nbd: make([]slot, slots), rnd: rand.New(rand.NewPCG(3, 3))}
	total := int64(0)
	for round := range rounds {
		p := start(t, bin, dir)
		k.verify(p)
		if t.Failed() {
			t.Fatalf("after kill %d", round)
		}
		total += k.load(p, atLeast)
	}
	p := start(t, bin, dir)
	k.verify(p)
	t.Logf("%d kills, %d writes acknowledged over NBD, %d over iSCSI: all there", rounds, total,
		k.iscsiAcked)
}

// killer remembers over the lives of the process what must be there.
type killer struct {
	t    *testing.T
	rnd  *rand.Rand
	next atomic.Uint64
	nbd  []slot

	iscsi      [slots]struct{ acked, begun byte } // patterns over iSCSI, in the second GiB
	iscsiAcked int64
}

// load writes until enough was acknowledged and then kills the process while writes are in flight.
func (k *killer) load(p *process, atLeast int64) int64 {
	c, err := dialNBD(p.NBD)
	if err != nil {
		k.t.Fatal(err)
	}
	defer c.close()
	var acked atomic.Int64
	enough := make(chan struct{})
	var once sync.Once
	var wg sync.WaitGroup
	for w := range 16 {
		rnd := rand.New(rand.NewPCG(uint64(w), k.rnd.Uint64()))
		wg.Go(func() {
			buf := make([]byte, slotBytes)
			for k.write(c, rnd, buf) {
				if acked.Add(1) >= atLeast {
					once.Do(func() { close(enough) })
				}
			}
			once.Do(func() { close(enough) }) // the connection died: do not wait for ever
		})
	}
	endISCSI := k.startISCSI(p)
	<-enough
	p.kill()
	wg.Wait()
	endISCSI()
	return acked.Load()
}

// write writes a random slot; each slot has one writer at a time, so its order is known.
func (k *killer) write(c *nbdClient, rnd *rand.Rand, buf []byte) bool {
	i := rnd.IntN(slots)
	s := &k.nbd[i]
	if !s.mu.TryLock() {
		return true
	}
	defer s.mu.Unlock()
	n := k.next.Add(1)
	s.begun = n
	image(buf, n)
	if err := c.do(nbdWrite, int64(i)*slotBytes, buf); err != nil {
		return false
	}
	s.acked = n
	return true
}

// startISCSI writes through qemu-io, one at a time, and notes which it reported. The function it
// gives waits for the end and ends qemu-io, which would try to reconnect for ever.
func (k *killer) startISCSI(p *process) func() {
	cmd := exec.Command("stdbuf", "-oL", "qemu-io", "-f", "raw", p.ISCSI)
	in, err := cmd.StdinPipe()
	if err != nil {
		k.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		k.t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		lines := bufio.NewReader(out)
		for {
			i, pat := k.rnd.IntN(slots), byte(1+k.rnd.IntN(255))
			k.iscsi[i].begun = pat
			off := int64(1)<<30 + int64(i)*slotBytes
			if _, err := fmt.Fprintf(in, "write -P %d %d %d\n", pat, off, slotBytes); err != nil {
				return
			}
			if !wrote(lines) {
				return
			}
			k.iscsi[i].acked = pat
			k.iscsiAcked++
		}
	})
	return func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		wg.Wait()
	}
}

// wrote reads qemu-io's output up to its report of a write.
func wrote(r *bufio.Reader) bool {
	for {
		line, err := r.ReadString('\n')
		if err != nil || strings.Contains(line, "failed") {
			return false
		}
		if strings.Contains(line, "wrote ") {
			return true
		}
	}
}

// verify reads every slot. What a slot holds becomes what is known of it: a write that was in
// flight at the kill is there or not, for good.
func (k *killer) verify(p *process) {
	c, err := dialNBD(p.NBD)
	if err != nil {
		k.t.Fatal(err)
	}
	defer c.close()
	buf := make([]byte, slotBytes)
	for i := range k.nbd {
		s := &k.nbd[i]
		if err := c.do(nbdRead, int64(i)*slotBytes, buf); err != nil {
			k.t.Fatal(err)
		}
		low, high := uint64(1<<63), uint64(0)
		for at := 0; at < slotBytes; at += 8 {
			n := binary.BigEndian.Uint64(buf[at:])
			low, high = min(low, n), max(high, n)
		}
		if low != high || low != s.acked && low != s.begun {
			k.t.Errorf("slot %d holds %d..%d; %d was acknowledged, %d sent", i, low, high, s.acked, s.begun)
			return
		}
		s.acked, s.begun = low, low
	}
	k.verifyISCSI(c, buf)
}

// verifyISCSI reads the second GiB over the other protocol: the volume is one.
func (k *killer) verifyISCSI(c *nbdClient, buf []byte) {
	for i := range k.iscsi {
		s := &k.iscsi[i]
		if err := c.do(nbdRead, 1<<30+int64(i)*slotBytes, buf); err != nil {
			k.t.Fatal(err)
		}
		got := buf[0]
		if !bytes.Equal(buf, bytes.Repeat([]byte{got}, len(buf))) || got != s.acked && got != s.begun {
			k.t.Errorf("iSCSI slot %d holds %d; %d was acknowledged, %d sent", i, got, s.acked, s.begun)
			return
		}
		s.acked, s.begun = got, got
	}
}
