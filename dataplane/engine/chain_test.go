package engine

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"

	"weft/dataplane/segment"
	"weft/domain"
)

// TestDeepChain takes 400 snapshots of one extent, each with a write of its own, clones some, and
// proves that every one of them reads right within the bound of leaves, before and behind restarts,
// and that the index grows by little more than what was written.
func TestDeepChain(t *testing.T) {
	cuts := 400
	if raceOn || testing.Short() {
		cuts = 80
	}
	dev := newMem(t, 64<<20, 256<<10, 1)
	e := open(t, dev)
	v := create(t, e, 4*domain.MiB)
	for b := range uint64(4) {
		if err := put(v, data(b*256, min(256, e.RecordBlocks()), 1)); err != nil {
			t.Fatal(err)
		}
	}
	before := e.Stats().IndexBytes
	for c := range cuts {
		cutOf(t, e, v, c)
		if err := put(v, data(uint64(c*7%1000), 1, uint64(c)+10)); err != nil {
			t.Fatal(err)
		}
	}
	each := (e.Stats().IndexBytes - before) / int64(cuts)
	t.Logf("%d bytes of index for each snapshot with one write", each)
	if each > 1400 {
		t.Errorf("%d bytes of index a snapshot", each)
	}
	for life := range 3 {
		recount(t, e)
		for c := range cuts {
			s, ok := e.OpenSnapshot(snapID(c))
			if !ok {
				t.Fatalf("snapshot %d is gone", c)
			}
			b := uint64(max(c-1, 0) * 7 % 1000)
			want := uint64(c) + 9
			if c > 0 {
				check(t, s, b, want)
			}
		}
		if life == 0 {
			e.Abandon()
		} else if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		e = open(t, dev)
	}
	for c := 0; c < cuts; c += 2 {
		if err := e.DeleteSnapshot(background, snapID(c)); err != nil {
			t.Fatal(err)
		}
	}
	recount(t, e)
	e.Abandon()
}

// TestSnapshotIgnoresCleaner proves that a block which only a snapshot holds is moved by the
// cleaner for it, and one that many share is moved once.
func TestSnapshotIgnoresCleaner(t *testing.T) {
	e := open(t, newMem(t, smallSize, 64<<10, 1))
	defer e.Abandon()
	v := create(t, e, 16*domain.MiB)
	for b := range uint64(40) {
		if err := put(v, data(b*3, 1, 1000+b)); err != nil {
			t.Fatal(err)
		}
		if err := put(v, data(2000+b, 1, b)); err != nil { // dies, so that cleaning wins something
			t.Fatal(err)
		}
	}
	s := cutOf(t, e, v, 1)
	for b := range uint64(20) {
		if err := put(v, data(b*3, 1, 5000+b)); err != nil {
			t.Fatal(err)
		}
	}
	c, err := e.Clone(background, snapID(1), volID(1), 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.DeleteSnapshot(background, snapID(99)); err != nil {
		t.Fatal(err)
	}
	churn(t, v, s, 30)
	for b := range uint64(40) {
		check(t, s, b*3, 1000+b)
		check(t, c, b*3, 1000+b)
		if b >= 20 {
			check(t, v, b*3, 1000+b)
		} else {
			check(t, v, b*3, 5000+b)
		}
	}
	recount(t, e)
}

// TestSnapshotOnFullDevice proves that a full device still takes snapshots, refuses what they make
// dear, and that deleting them makes room while writers wait (E9).
func TestSnapshotOnFullDevice(t *testing.T) {
	e := open(t, newMem(t, smallSize, 64<<10, 1))
	defer e.Abandon()
	v := create(t, e, 16*domain.MiB)
	blocks := uint64(0)
	for ; ; blocks++ {
		err := put(v, data(blocks, 1, blocks+1))
		if domain.IsKind(err, domain.NoSpace) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	s := cutOf(t, e, v, 1)
	kindOf(t, put(v, data(0, 1, 77)), domain.NoSpace)
	if err := put(v, &Record{Kind: segment.KindUnmap, Block: 5, Count: 1}); err != nil {
		t.Fatal(err)
	}
	kindOf(t, put(v, data(0, 1, 77)), domain.NoSpace) // now with a leaf of its own
	check(t, s, 0, 1)
	check(t, v, 0, 1)
	if err := put(v, &Record{Kind: segment.KindUnmap, Block: 0, Count: 1024}); err != nil {
		t.Fatal(err)
	}
	check(t, s, 0, 1)
	check(t, v, 0, 0)
	ctx, cancel := context.WithCancel(background)
	cancel()
	if err := e.DeleteSnapshot(ctx, snapID(1)); err != nil {
		t.Fatal(err)
	}
	for b := range blocks {
		if err := put(v, data(b, 1, 900+b)); err != nil {
			t.Fatal(err)
		}
	}
	check(t, v, blocks-1, 899+blocks)
	recount(t, e)
}

// churn overwrites scratch blocks until the cleaner has moved a block that s holds.
func churn(t *testing.T, v, s *Volume, block int) {
	t.Helper()
	place := func() int64 {
		l := v.lane(0)
		l.mu.Lock()
		defer l.mu.Unlock()
		b := s.br.Load()
		return b.fam.leaves[l.no][0].of(b).own.get(block).Off()
	}
	was := place()
	for n := uint64(0); n < 20_000; n++ {
		if place() != was {
			return
		}
		if err := put(v, data(2000+n*7%50, 1, n)); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("never moved")
}

// TestViewsFollow proves that the views which shorten the way down a chain of snapshots know of
// every block that the cleaner moves below them.
func TestViewsFollow(t *testing.T) {
	e := open(t, newMem(t, smallSize, 64<<10, 1))
	defer e.Abandon()
	v := create(t, e, 16*domain.MiB)
	for b := range uint64(40) {
		if err := put(v, data(b*3, 1, 1000+b)); err != nil {
			t.Fatal(err)
		}
		if err := put(v, data(2000+b, 1, b)); err != nil { // dies, so that cleaning wins something
			t.Fatal(err)
		}
	}
	const cuts = 3*depthMax + 2
	for c := range cuts {
		cutOf(t, e, v, c)
		if err := put(v, data(uint64(500+c), 1, uint64(c))); err != nil {
			t.Fatal(err)
		}
	}
	views := 0
	for _, lf := range all(v.fam.leaves[0][0]) {
		if lf.view != nil {
			views++
		}
	}
	if views < 3 {
		t.Fatalf("%d views", views)
	}
	eldest, _ := e.OpenSnapshot(snapID(0))
	churn(t, v, eldest, 30)
	for _, s := range append(e.Snapshots(testVolume), v) {
		for b := range uint64(40) {
			check(t, s, b*3, 1000+b)
		}
	}
	recount(t, e)
}

// TestHolesGo proves that a hole over what a snapshot holds is forgotten when the snapshot goes,
// and that none is noted where there is nothing to hide.
func TestHolesGo(t *testing.T) {
	e := open(t, newMem(t, smallSize, 64<<10, 1))
	defer e.Abandon()
	v := create(t, e, 16*domain.MiB)
	for b := range uint64(8) {
		if err := put(v, data(b, 1, 1)); err != nil {
			t.Fatal(err)
		}
	}
	holds := func(n int) {
		t.Helper()
		b := v.br.Load()
		lf := v.fam.leaves[0][0].of(b)
		if lf == nil || int(lf.n) != n {
			t.Errorf("the head's leaf is %+v, not of %d blocks", lf, n)
		}
	}
	cutOf(t, e, v, 1)
	cutOf(t, e, v, 2)
	if err := put(v, &Record{Kind: segment.KindUnmap, Block: 4, Count: 1000}); err != nil {
		t.Fatal(err)
	}
	if err := put(v, data(0, 1, 2)); err != nil {
		t.Fatal(err)
	}
	holds(5)
	for c := 1; c <= 2; c++ {
		if err := e.DeleteSnapshot(background, snapID(c)); err != nil {
			t.Fatal(err)
		}
	}
	holds(4)
	recount(t, e)
}

// TestDeleteWhileCleaning deletes snapshots while writers keep the cleaner of a full device busy
// without a pause: each deletion ends (E9).
func TestDeleteWhileCleaning(t *testing.T) {
	e := open(t, newMem(t, smallSize, 64<<10, 1))
	defer e.Abandon()
	v := create(t, e, 16*domain.MiB)
	blocks := uint64(e.space.usable.Load()) / segment.BlockSize * 3 / 4
	for b := range blocks {
		if err := put(v, data(b, 1, b)); err != nil {
			t.Fatal(err)
		}
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	for w := range uint64(4) {
		wg.Go(func() {
			rnd := newRand(w)
			for n := uint64(0); !stop.Load(); n++ {
				err := put(v, data(rnd.Uint64N(blocks), 1, n))
				if err != nil && !domain.IsKind(err, domain.NoSpace) {
					t.Error(err)
					return
				}
			}
		})
	}
	for c := range 40 {
		cutOf(t, e, v, c)
		if err := e.DeleteSnapshot(background, snapID(c)); err != nil {
			t.Fatal(err)
		}
	}
	stop.Store(true)
	wg.Wait()
	if e.Stats().Cleaned == 0 {
		t.Error("nothing was cleaned")
	}
	recount(t, e)
}
