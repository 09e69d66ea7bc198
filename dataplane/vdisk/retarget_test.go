package vdisk

import (
	"context"
	"testing"

	"weft/dataplane/engine"
	"weft/domain"
)

// stub is a volume that keeps records until it is let go on.
type stub struct {
	Volume
	came chan *engine.Record
}

func (stub) ID() domain.VolumeID       { return domain.VolumeID{UUID: domain.UUID{1}} }
func (stub) Size() domain.Bytes        { return 64 * domain.MiB }
func (stub) RecordBlocks() int         { return 16 }
func (s stub) Append(r *engine.Record) { s.came <- r }

type told chan error

func (c told) Complete(io *domain.IO) { c <- io.Err }

// TestRetarget proves that Drain waits for what was let in before the pause and for nothing else,
// that what came meanwhile waits and runs on the other volume, without an error, and that limits,
// shares and what hosts were told stay; and what is refused.
func TestRetarget(t *testing.T) {
	pool := NewPool(1)
	defer pool.Close()
	a, b := stub{came: make(chan *engine.Record, 8)}, stub{came: make(chan *engine.Record, 8)}
	d, err := New(Config{Pool: pool, Target: Target{Volume: a}})
	if err != nil {
		t.Fatal(err)
	}
	ends := make(told, 8)
	write := func() {
		d.Submit(&domain.IO{Op: domain.OpWrite, Len: 4096, Buf: make([]byte, 4096), To: ends})
	}
	write()
	d.Pause()
	write()
	if len(a.came) != 1 {
		t.Fatalf("%d records", len(a.came))
	}
	short, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Drain(short); !domain.IsKind(err, domain.Aborted) {
		t.Fatalf("drained with a write under way: %v", err)
	}
	drained := make(chan error, 1)
	go func() { drained <- d.Drain(t.Context()) }()
	r := <-a.came
	r.To.Appended(r, nil)
	if err := <-drained; err != nil || <-ends != nil {
		t.Fatal(err)
	}
	volatile := Target{Volume: b, Volatile: true}
	if err := d.Retarget(volatile); !domain.IsKind(err, domain.Conflict) {
		t.Errorf("to a volatile one: %v", err)
	}
	if err := d.Retarget(Target{Volume: b}); err != nil {
		t.Fatal(err)
	}
	if len(a.came)+len(b.came) != 0 {
		t.Fatal("a request ran while the disk was paused")
	}
	d.Resume()
	r = <-b.came // the gate let it run, and it counts
	d.Pause()
	if err := d.Drain(short); !domain.IsKind(err, domain.Aborted) {
		t.Fatalf("drained with a write under way that had waited: %v", err)
	}
	d.Resume()
	r.To.Appended(r, nil)
	if err := <-ends; err != nil {
		t.Error(err)
	}
	write()
	if r = <-b.came; len(a.came) > 0 {
		t.Error("the old volume is written to")
	}
	r.To.Appended(r, nil)
	<-ends
}
