package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"weft/adapters/client"
)

// rotten flips a bit in a stored event of a node that runs, wherever its database holds it. Once is
// enough where many events have followed.
func rotten(t *testing.T, dir, event string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "log", "member", "snap", "db"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	rot := []byte(event)
	rot[0] ^= 4
	until(t, event+" is in the database", func(context.Context) bool {
		b, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for at := bytes.Index(b, []byte(event)); at >= 0; at = bytes.Index(b, []byte(event)) {
			b[at] = rot[0]
			if _, err := f.WriteAt(b[at:at+1], int64(at)); err != nil {
				t.Fatal(err)
			}
			n++
		}
		return n > 0 || bytes.Contains(b, rot)
	})
}

func count(ctx context.Context, c *client.Client, event string) int {
	r, err := c.Events(ctx, client.Selection{Types: []string{event}, Limit: 100})
	if err != nil {
		return -1
	}
	return len(r.Value.Items)
}

// TestDamagedVoterUnderLoad proves that a voter whose database rots while all nodes are under load
// says so, on every node, is replaced by itself and is sound afterwards, that each is told by one
// event, and that nothing acknowledged is lost.
func TestDamagedVoterUnderLoad(t *testing.T) {
	list := cluster3(t)
	l := newLoad(t, list)
	lead := leader(t, list, nil)
	ill, other := list[1], list[2]
	if ill == lead {
		ill = list[2]
	}
	if other == ill {
		other = list[0]
	}
	until(t, "some templates", func(context.Context) bool { return l.count() > 20 })
	rotten(t, ill.dir, "DeviceAdmitted")
	repair := exec.CommandContext(t.Context(), other.bin, "events", "repair", "--node", ill.name,
		"--data-dir", other.dir)
	said, err := repair.CombinedOutput()
	if err != nil || !strings.Contains(string(said), "node/"+ill.name+": the database is damaged") ||
		!strings.Contains(string(said), "a new member copies the log") ||
		!strings.HasSuffix(string(said), "repaired\n") {
		t.Fatalf("%v:\n%s", err, said)
	}
	t.Logf("%s", said)
	until(t, "the other nodes know", func(ctx context.Context) bool {
		return count(ctx, other.api, "LogDamaged") == 1
	})
	until(t, "the damaged member is replaced", func(ctx context.Context) bool {
		d, err := other.api.LogDamage(ctx)
		return err == nil && len(d.Value.Items) == 0 && count(ctx, other.api, "VoterRemoved") == 1 &&
			other.voters(ctx) == 3
	})
	until(t, "its database is sound", func(ctx context.Context) bool {
		v, err := ill.api.Verify(ctx)
		return err == nil && v.Value.Sound
	})
	done := l.count()
	until(t, "writes go on", func(context.Context) bool { return l.count() > done })
	l.stop()
	l.wg.Wait()
	same(t, list, l.names)
	if h, err := ill.api.Health(t.Context()); err != nil || h.Value.Status != "ok" {
		t.Errorf("%+v, %v", h.Value, err)
	}
	if n := count(t.Context(), ill.api, "LogDamaged"); n != 1 {
		t.Errorf("%d events tell of one damage", n)
	}
}

// TestDamagedAlone proves that a node without others says that there is no other copy, in its
// health, its metrics and the list, and what can be done.
func TestDamagedAlone(t *testing.T) {
	dir := t.TempDir()
	n, down := startNode(t, dir)
	defer down()
	c, err := client.New(client.Config{URL: "http://" + n.api.addr, Token: token(t, dir), Tries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var v client.Reply[client.Verdict]
	i := 0
	until(t, "the log is damaged", func(ctx context.Context) bool {
		// Again, where the page was just written anew; and a write, because etcd answers from memory
		// what it wrote last.
		rotten(t, dir, "DeviceAdmitted")
		i++
		_, err := c.CreateTemplate(ctx, client.TemplateBody{
			Name: fmt.Sprint("t", i), Intent: &client.Intent{},
		}, client.Change{})
		if err != nil {
			t.Fatal(err)
		}
		v, err = c.Verify(ctx)
		return err != nil || !v.Value.Sound
	})
	if v.Value.Part != "database" ||
		!strings.Contains(v.Value.Remedy, "weft restore") {
		t.Fatalf("%+v, %v", v.Value, err)
	}
	d, err := c.LogDamage(t.Context())
	if err != nil || len(d.Value.Items) != 1 || d.Value.Items[0].Position != v.Value.Bad ||
		!strings.Contains(d.Value.Items[0].Remedy, "no other node has a copy") {
		t.Errorf("%+v, %v", d.Value, err)
	}
	if h, err := c.Health(t.Context()); err != nil || h.Value.Status != "degraded" ||
		!strings.Contains(h.Value.Reason, "damaged on node") {
		t.Errorf("%+v, %v", h.Value, err)
	}
	res, err := http.Get("http://" + n.api.addr + "/metrics") //nolint:noctx // a test's
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	var b bytes.Buffer
	if _, err := b.ReadFrom(res.Body); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), `weft_log_damaged{part="database"} 1`) {
		t.Error("the metrics do not tell")
	}
}
