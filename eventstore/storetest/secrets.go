package storetest

import (
	"slices"
	"sync"
	"testing"

	"weft/eventstore/vault"
)

// RunSecrets proves what vault.Secrets promise, on an empty one: the first value of a name stays
// until it is destroyed, of many that create one at once a single one did, nothing is created where
// the bar has a mark, and what is destroyed is gone and marked.
func RunSecrets(t *testing.T, s vault.Secrets) {
	t.Helper()
	ctx := t.Context()
	create := func(name, value, bar string) bool {
		t.Helper()
		made, err := s.Create(ctx, name, []byte(value), bar)
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	load := func(name string) []byte {
		t.Helper()
		b, err := s.Load(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if b := load("a"); b != nil {
		t.Errorf("before anything: %q", b)
	}
	if !create("a", "1", "") || create("a", "2", "") || string(load("a")) != "1" {
		t.Errorf("the first value does not stay: %q", load("a"))
	}
	made := make(chan string, 8)
	var wg sync.WaitGroup
	for i := range cap(made) {
		wg.Go(func() {
			v := string(rune('0' + i))
			if ok, err := s.Create(ctx, "race", []byte(v), "bar"); err == nil && ok {
				made <- v
			}
		})
	}
	wg.Wait()
	close(made)
	first := <-made
	if more := len(made); more != 0 || string(load("race")) != first {
		t.Errorf("%d more than one created it; %q, %q", more, first, load("race"))
	}
	for range 2 {
		if err := s.Destroy(ctx, "race", "bar"); err != nil {
			t.Fatal(err)
		}
	}
	if load("race") != nil || load("bar") == nil {
		t.Error("it was not destroyed, or there is no mark")
	}
	if create("race", "again", "bar") || load("race") != nil {
		t.Error("it came back in spite of the mark")
	}
	if !create("empty", "", "") || load("empty") == nil {
		t.Error("an empty value is none")
	}
	create("ab", "3", "")
	names, err := s.Names(ctx, "a")
	if err != nil || !slices.Equal(names, []string{"a", "ab"}) {
		t.Errorf("%q, %v", names, err)
	}
}
