package main

import (
	"io"
	"log/slog"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/backends"
	"weft/backends/direct"
	"weft/backends/faulty"
)

// disk is a device that can be harmed, with the one volume that stands on it.
type disk struct {
	*faulty.Device
	id  string
	uri string // where its volume is reached
}

// twoDisks starts a node with two devices, and the volumes v1 and v2, each on one of them. It gives
// the node, and the devices by volume. A scrub reads a byte a second and so never ends.
func twoDisks(t *testing.T) (*tester, *Node, map[string]disk) {
	t.Helper()
	dir := t.TempDir()
	below := map[string]*faulty.Device{} // by path
	var paths []string
	for _, name := range []string{"a.img", "b.img"} {
		path := filepath.Join(dir, name)
		dev, err := direct.Create(path, 128<<20, direct.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := dev.Close(); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	n, down, err := Start(t.Context(), Options{
		DataDir: filepath.Join(dir, "data"), Devices: paths, API: "127.0.0.1:0", NBD: "127.0.0.1:0",
		ISCSI: "off", Peer: "127.0.0.1:0", VoterGrace: time.Minute, ScrubRate: 1,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Wrap: func(path string, dev backends.Device) backends.Device {
			below[path] = faulty.New(dev, nil)
			return below[path]
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	c := &tester{t, "http://" + n.api.addr, n.dir.fresh, &http.Client{Transport: &http.Transport{}}}
	t.Cleanup(func() {
		for _, f := range below {
			f.Heal()
		}
		c.http.CloseIdleConnections()
		down()
	})
	c.must("POST", "/v1/templates", `{"name":"gold","intent":{"availability":{"replicas":1}}}`)
	c.must("POST", "/v1/apps", `{"name":"shop","template":"gold","volumes":[`+
		`{"name":"v1","size":33554432},{"name":"v2","size":33554432}]}`)
	c.waitOnline("/v1/volumes")
	path, disks := map[any]string{}, map[string]disk{}
	for _, d := range items(c.must("GET", "/v1/devices", "")) {
		path[d["id"]], _ = d["path"].(string)
	}
	for _, v := range items(c.must("GET", "/v1/volumes", "")) {
		name, _ := v["name"].(string)
		id, _ := v["device"].(string)
		uri, _ := v["nbd"].(string)
		disks[name] = disk{below[path[id]], id, uri}
	}
	if disks["v1"].id == disks["v2"].id || disks["v1"].Device == nil || disks["v2"].Device == nil {
		t.Fatalf("the volumes stand on one device: %v", disks)
	}
	return c, n, disks
}

// fio runs a load that verifies what it wrote, and tells whether it ended well and what it said.
func fio(t *testing.T, uri string, args ...string) (bool, string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "fio", append([]string{
		"--name=v", "--ioengine=nbd", "--uri=" + uri, "--rw=randwrite", "--bs=4k", "--iodepth=8",
		"--size=4m", "--verify=crc32c", "--randseed=1", "--verify_fatal=1",
	}, args...)...)
	cmd.Dir = t.TempDir() // it leaves a file behind
	out, err := cmd.CombinedOutput()
	return err == nil, string(out)
}

// wrongBytes tells whether fio met bytes that it had not written.
func wrongBytes(out string) bool {
	return strings.Contains(out, "bad header") || strings.Contains(out, "bad magic") ||
		strings.Contains(out, "verify failed") || strings.Contains(out, "verify: bad")
}

// TestDiskTrouble proves, with a real verifying load over NBD: a disk that returns garbage, one
// that stalls and one that dies give their own volume clear errors or delays and never a wrong
// byte, the volume on the other disk goes on untouched, and each is an event with its reason,
// visible in status and devices.
func TestDiskTrouble(t *testing.T) {
	if _, err := exec.LookPath("fio"); err != nil {
		t.Skip("fio is not installed: disks in trouble are NOT tested with a real load")
	}
	c, _, disks := twoDisks(t)
	bad, other := disks["v1"], disks["v2"]
	is := func(state string) func(answer) bool {
		return func(a answer) bool {
			for _, d := range items(a) {
				if d["id"] == bad.id && d["state"] == state && d["reason"] != nil {
					return true
				}
			}
			return false
		}
	}
	neighbour := func() {
		t.Helper()
		if ok, out := fio(t, other.uri); !ok {
			t.Fatalf("the other disk's volume suffers: %s", out)
		}
	}
	if ok, out := fio(t, bad.uri); !ok {
		t.Fatal(out)
	}

	if err := bad.Script("read flip 77"); err != nil { // garbage
		t.Fatal(err)
	}
	ok, out := fio(t, bad.uri, "--verify_only")
	if ok || wrongBytes(out) || !strings.Contains(out, "Input/output error") {
		t.Errorf("garbage: ended well %t: %s", ok, out)
	}
	neighbour()
	bad.Heal()
	if ok, out := fio(t, bad.uri, "--verify_only"); !ok {
		t.Errorf("healed: %s", out)
	}
	corrupt := 0.0
	for _, d := range items(c.must("GET", "/v1/devices", "")) {
		n, _ := d["corruptions"].(float64)
		corrupt += n
	}
	if corrupt == 0 {
		t.Error("no corruption is counted")
	}

	hung := bad.Add(faulty.Rule{On: faulty.Write, Stall: true})
	done := make(chan string, 1)
	go func() {
		ok, out := fio(t, bad.uri)
		if ok {
			out = ""
		}
		done <- out
	}()
	select {
	case <-hung.Stalled():
	case out := <-done:
		t.Fatalf("nothing was written: %s", out)
	}
	c.until("/v1/devices", is("suspect"))
	if h := c.must("GET", "/v1/health", ""); h.text("status") != "degraded" {
		t.Errorf("%v", h.body)
	}
	neighbour()
	hung.Remove()
	if out := <-done; out != "" {
		t.Errorf("a stall cost a write: %s", out)
	}

	if err := bad.Script("write eio"); err != nil { // dead
		t.Fatal(err)
	}
	if ok, out := fio(t, bad.uri); ok || wrongBytes(out) {
		t.Errorf("dead: ended well %t: %s", ok, out)
	}
	c.until("/v1/devices", is("failed"))
	neighbour()
	seen := c.must("GET", "/v1/events?limit=1000&types=DeviceSuspended,DeviceFailed", "")
	told := map[any]int{}
	for _, ev := range items(seen) {
		if stream, _ := ev["stream"].(string); strings.HasSuffix(stream, bad.id) {
			told[ev["type"]]++
		}
	}
	m := c.metrics()
	for _, want := range []string{
		`suspect{device="` + bad.id + `"} 1`, "stalls_total{", "write_failures_total{",
	} {
		if !strings.Contains(m, "weft_device_"+want) {
			t.Errorf("no weft_device_%s", want)
		}
	}
	if told["DeviceSuspended"] != 1 || told["DeviceFailed"] != 1 {
		t.Errorf("%v: %v", told, seen.body)
	}
	for _, x := range items(c.must("GET", "/v1/volumes", "")) {
		state, _ := x["compliance"].(map[string]any)["state"].(string)
		if want := map[any]string{"v1": "violated", "v2": "compliant"}[x["name"]]; state != want {
			t.Errorf("%v is %s, not %s", x["name"], state, want)
		}
	}
	// New volumes go to the disk that is well.
	c.must("POST", "/v1/apps/shop/volumes", `{"name":"v3","size":8388608}`)
	c.until("/v1/volumes", func(a answer) bool {
		for _, x := range items(a) {
			if x["name"] == "v3" && x["state"] == "online" {
				return true
			}
		}
		return false
	})
}
