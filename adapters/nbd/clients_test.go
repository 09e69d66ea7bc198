package nbd

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// tool runs a client that we did not write, or skips the test where it is not installed.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("SKIPPED: %s is not installed", name)
	}
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func uri(path, export string) string { return "nbd+unix:///" + export + "?socket=" + path }

// holes gives a disk with data in the first and the last mebibyte.
func holes(t *testing.T, seed byte) *ramDisk {
	t.Helper()
	d := newRAM(16 << 20)
	var key [32]byte
	key[0] = seed
	r := rand.NewChaCha8(key)
	for _, off := range []int{0, 15 << 20} {
		if _, err := r.Read(d.data[off : off+1<<20]); err != nil {
			t.Fatal(err)
		}
		for b := off / block; b < (off+1<<20)/block; b++ {
			d.alloc[b] = true
		}
	}
	return d
}

// TestNbdinfo proves that the reference client understands our handshake, list and map.
func TestNbdinfo(t *testing.T) {
	_, path := served(t, Export{Name: "t/one", Description: "first", Disk: holes(t, 1)},
		Export{Name: "two", Disk: newRAM(1 << 20), ReadOnly: true})
	out := tool(t, "nbdinfo", "--json", uri(path, "t/one"))
	var info struct {
		Exports []struct {
			Name     string   `json:"export-name"`
			Size     int64    `json:"export-size"`
			Contexts []string `json:"contexts"`
			Multi    bool     `json:"can_multi_conn"`
			FUA      bool     `json:"can_fua"`
			Fast     bool     `json:"can_fast_zero"`
			DF       bool     `json:"can_df"`
			Min      int      `json:"block_size_minimum"`
		} `json:"exports"`
	}
	if err := json.Unmarshal([]byte(out), &info); err != nil || len(info.Exports) != 1 {
		t.Fatalf("%v: %s", err, out)
	}
	if e := info.Exports[0]; e.Name != "t/one" || e.Size != 16<<20 || len(e.Contexts) != 1 ||
		!e.Multi || !e.FUA || !e.Fast || !e.DF || e.Min != 512 {
		t.Errorf("%+v", e)
	}
	if out := tool(t, "nbdinfo", "--list", uri(path, "")); !strings.Contains(out, "two") ||
		!strings.Contains(out, "first") {
		t.Errorf("list: %s", out)
	}
	var lines []string
	for _, line := range strings.Split(tool(t, "nbdinfo", "--map", uri(path, "t/one")), "\n") {
		if f := strings.Fields(line); len(f) > 3 {
			lines = append(lines, strings.Join(f[:3], " "))
		}
	}
	want := "0 1048576 0,1048576 14680064 3,15728640 1048576 0"
	if got := strings.Join(lines, ","); got != want {
		t.Errorf("map: %s", got)
	}
}

// TestNbdcopy copies a disk with holes to another, by several connections, and compares.
func TestNbdcopy(t *testing.T) {
	from, to := holes(t, 2), newRAM(16<<20)
	from.async = true
	_, path := served(t, Export{Name: "a", Disk: from}, Export{Name: "b", Disk: to})
	tool(t, "nbdcopy", "--flush", uri(path, "a"), uri(path, "b"))
	from.wg.Wait()
	to.mu.Lock()
	defer to.mu.Unlock()
	if !bytes.Equal(from.data, to.data) {
		t.Error("the copy differs")
	}
	if to.alloc[8<<20/block] {
		t.Error("the hole was filled")
	}
}

// TestQemu writes, discards and checks by qemu-io, and converts and compares by qemu-img.
func TestQemu(t *testing.T) {
	disk := newRAM(16 << 20)
	_, path := served(t, Export{Name: "a", Disk: disk})
	out := tool(t, "qemu-io", "-f", "raw", "-c", "write -P 0x5a 4k 64k", "-c", "write -f -P 3 1M 512",
		"-c", "read -P 0x5a 4k 64k", "-c", "write -z 8k 4k", "-c", "write -z -u 12k 4k",
		"-c", "read -P 0 8k 8k", "-c", "discard 32k 16k", "-c", "flush", "-c", "read -P 3 1M 512",
		"-c", "map", uri(path, "a"))
	if strings.Contains(out, "failed") || strings.Contains(out, "rror") {
		t.Errorf("qemu-io: %s", out)
	}
	file := filepath.Join(t.TempDir(), "copy")
	tool(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", uri(path, "a"), file)
	got, err := os.ReadFile(file)
	disk.mu.Lock()
	if err != nil || !bytes.Equal(got, disk.data) {
		t.Errorf("convert: %v", err)
	}
	disk.mu.Unlock()
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", uri(path, "a"), file)
}

// TestFio lets fio write and verify over a unix socket and, with WEFT_FIO_SECONDS set, reports what
// the hop costs over that and over TCP. Set WEFT_FIO_SECONDS for a run longer than the check needs.
func TestFio(t *testing.T) {
	disk := newRAM(64 << 20)
	s, path := served(t, Export{Name: "a", Disk: disk})
	addr := listen(t, s, "tcp", "127.0.0.1:0")
	seconds := os.Getenv("WEFT_FIO_SECONDS")
	tool(t, "fio", "--name=v", "--ioengine=nbd", "--uri="+uri(path, "a"), "--rw=randwrite",
		"--bs=4k", "--size=16m", "--iodepth=32", "--verify=crc32c", "--do_verify=1",
		"--output="+filepath.Join(t.TempDir(), "v"))
	if seconds == "" {
		return
	}
	for _, target := range []string{uri(path, "a"), "nbd://" + addr.String() + "/a"} {
		for _, depth := range []string{"1", "32"} {
			for _, rw := range []string{"randwrite", "randread"} {
				out := filepath.Join(t.TempDir(), "json")
				before := cpu(t)
				tool(t, "fio", "--name=x", "--ioengine=nbd", "--uri="+target, "--rw="+rw, "--bs=4k",
					"--size=64m", "--iodepth="+depth, "--time_based", "--runtime="+seconds,
					"--output="+out, "--output-format=json")
				report(t, out, target[:8]+" "+rw+" qd"+depth, cpu(t)-before)
			}
		}
	}
}

// cpu is what this process used so far; fio is another one.
func cpu(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func report(t *testing.T, file, name string, used time.Duration) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	type side struct {
		IOPS  float64 `json:"iops"`
		Total int64   `json:"total_ios"`
		Lat   struct {
			P map[string]float64 `json:"percentile"`
		} `json:"clat_ns"`
	}
	var out struct {
		Jobs []struct {
			Read  side `json:"read"`
			Write side `json:"write"`
		} `json:"jobs"`
	}
	b = b[max(bytes.IndexByte(b, '{'), 0):]
	if err := json.Unmarshal(b, &out); err != nil || len(out.Jobs) == 0 {
		t.Fatalf("%v: %s", err, b)
	}
	r := out.Jobs[0].Read
	if r.Total == 0 {
		r = out.Jobs[0].Write
	}
	t.Logf("%s: %.1f kIOPS, %.1f us server CPU per I/O, p99 %.0f us", name, r.IOPS/1000,
		float64(used.Microseconds())/float64(r.Total), r.Lat.P["99.000000"]/1000)
}
