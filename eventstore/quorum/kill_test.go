package quorum

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"

	"weft/domain"
	"weft/eventstore"
	"weft/eventstore/storetest"
)

const childDir = "WEFT_TEST_CHILD_DIR"

// TestKillChild is the process that TestKillLosesNothing kills: it appends on 16 streams for ever
// and says each append aloud once it is acknowledged.
func TestKillChild(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		t.Skip("runs as a child only")
	}
	q := open(t, dir)
	var wg sync.WaitGroup
	var mu sync.Mutex
	for w := range 16 {
		wg.Go(func() {
			id := domain.StreamID(fmt.Sprintf("s-%d", w))
			for rev := q.mirror.StreamHead(id).Revision; ; rev++ {
				ev := storetest.Propose(fmt.Sprintf("%s/%d", id, rev), 1)
				if _, err := q.Append(t.Context(), id, eventstore.At(rev), ev...); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				_, _ = fmt.Fprintf(os.Stdout, "acked %s %d\n", id, rev+1)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// SIGKILL in the middle of appends, three times over one folder: everything acknowledged is there,
// the chain holds, and nothing stands twice. It proves the protocol, not a power cut: the kernel
// keeps what was written.
func TestKillLosesNothing(t *testing.T) {
	dir := t.TempDir()
	acked := map[domain.StreamID]domain.Revision{}
	for round := range 3 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKillChild$")
		cmd.Env = append(os.Environ(), childDir+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			var id domain.StreamID
			var rev domain.Revision
			if k, _ := fmt.Sscanf(lines.Text(), "acked %s %d", &id, &rev); k == 2 {
				acked[id] = max(acked[id], rev)
			}
			if n == 1000 {
				_ = cmd.Process.Kill() // and read on: what it said before it died counts
			}
		}
		_ = cmd.Wait()
		q := open(t, dir)
		if len(acked) != 16 {
			t.Fatalf("round %d: %d streams were heard of", round, len(acked))
		}
		for id, rev := range acked {
			if got := q.mirror.StreamHead(id).Revision; got < rev {
				t.Errorf("round %d: %s is at %d, %d was acknowledged", round, id, got, rev)
			}
		}
		seen := map[domain.EventID]bool{}
		for r, err := range q.ReadAll(
			t.Context(), 0, eventstore.Forward, domain.Filter{}, eventstore.NoLimit,
		) {
			if err != nil || seen[r.ID] {
				t.Fatalf("round %d: %s stands twice, or %v", round, r.ID, err)
			}
			seen[r.ID] = true
		}
		if err := q.Verify(t.Context(), nil); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		_ = q.Close()
	}
}
