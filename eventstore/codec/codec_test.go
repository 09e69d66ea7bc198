package codec

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"weft/domain"
)

var rewrite = flag.Bool("rewrite", false, "add golden files that are missing; never changes one")

type colour uint8

type part struct {
	Name  string       `msgpack:"name,omitempty"`
	Size  domain.Bytes `msgpack:"size,omitempty"`
	Parts []part       `msgpack:"parts,omitempty"`
}

// everything holds each kind of field that events use.
type everything struct {
	ID      domain.VolumeID   `msgpack:"id,omitempty"`
	Raw     domain.UUID       `msgpack:"raw,omitempty"`
	IDs     []domain.NodeID   `msgpack:"ids,omitempty"`
	When    time.Time         `msgpack:"when,omitempty"`
	Maybe   *time.Time        `msgpack:"maybe,omitempty"`
	Times   []time.Time       `msgpack:"times,omitempty"`
	Part    part              `msgpack:"part,omitempty"`
	Ptr     *part             `msgpack:"ptr,omitempty"`
	Hash    [32]byte          `msgpack:"hash,omitempty"`
	Pair    [2]uint64         `msgpack:"pair,omitempty"`
	Blob    []byte            `msgpack:"blob,omitempty"`
	Colour  colour            `msgpack:"colour,omitempty"`
	Colours []colour          `msgpack:"colours,omitempty"`
	Names   []string          `msgpack:"names,omitempty"`
	Streams []domain.StreamID `msgpack:"streams,omitempty"`
	Pos     domain.Position   `msgpack:"pos,omitempty"`
	Rev     domain.Revision   `msgpack:"rev,omitempty"`
	Big     uint64            `msgpack:"big,omitempty"`
	Neg     int64             `msgpack:"neg,omitempty"`
	Ratio   float64           `msgpack:"ratio,omitempty"`
	Yes     bool              `msgpack:"yes,omitempty"`
	For     time.Duration     `msgpack:"for,omitempty"`
}

func (everything) EventType() string { return "TestEverything" }

type nothing struct{}

func (nothing) EventType() string { return "TestNothing" }

// moved is at schema 3: 1 had one text "a>b", 2 had two fields of other names and split in two.
type moved struct {
	From string `msgpack:"from,omitempty"`
	To   string `msgpack:"to,omitempty"`
}

func (moved) EventType() string { return "TestMoved" }

func full() *Registry {
	r := New()
	r.Register(everything{}, 1, true)
	r.Register(nothing{}, 1, false)
	r.Register(moved{}, 3, true)
	r.Register((*pointed)(nil), 1, true)
	r.Register(&spoken{}, 1, true)
	r.Optional("TestHint")
	r.Upcast("TestMoved", 1, func(data []byte) ([]Stored, error) {
		var old struct {
			Way string `msgpack:"way"`
		}
		if err := Unmarshal(data, &old); err != nil {
			return nil, err
		}
		from, to, _ := strings.Cut(old.Way, ">")
		next, err := Marshal(struct {
			A string `msgpack:"a"`
			B string `msgpack:"b"`
		}{from, to})
		return []Stored{{"TestMoved", 2, next}}, err
	})
	r.Upcast("TestMoved", 2, func(data []byte) ([]Stored, error) {
		var old struct {
			A string `msgpack:"a"`
			B string `msgpack:"b"`
		}
		if err := Unmarshal(data, &old); err != nil {
			return nil, err
		}
		out, err := Marshal(moved{From: old.A})
		back, err2 := Marshal(moved{To: old.B})
		return []Stored{{"TestMoved", 3, out}, {"TestMoved", 3, back}}, errors.Join(err, err2)
	})
	return r
}

func roundTrip(t *testing.T, r *Registry, e domain.Event) {
	t.Helper()
	schema, data, err := r.Encode(t.Context(), "s-1", e)
	if err != nil {
		t.Fatal(err)
	}
	h := domain.Header{Type: e.EventType(), Schema: schema}
	got, err := r.Decode(h, data)
	if err != nil || len(got) != 1 || !reflect.DeepEqual(got[0].Event, e) {
		t.Fatalf("%s: %+v, %v, want %+v", e.EventType(), got, err, e)
	}
	_, again, err := r.Encode(t.Context(), "s-1", got[0].Event)
	if err != nil || !bytes.Equal(again, data) {
		t.Fatalf("%s: other bytes the second time", e.EventType())
	}
}

// Every kind of field comes back as it was, times in UTC, filled and zero.
func TestRoundTrip(t *testing.T) {
	r := full()
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	for typ := range r.Types() {
		roundTrip(t, r, filled(r.Prototype(typ)))
		roundTrip(t, r, r.Prototype(typ))
	}
	if _, data, err := r.Encode(t.Context(), "s-1", &moved{From: "a"}); err != nil || len(data) == 0 {
		t.Errorf("a pointer to a type registered as a struct: %v", err)
	}
	if _, _, err := r.Encode(t.Context(), "s-1", (*moved)(nil)); err == nil {
		t.Error("a nil event is encoded")
	}
	roundTrip(t, r, everything{Big: 1<<64 - 1, Neg: -1 << 63, Rev: -1})
	for typ := range Catalog().Types() {
		roundTrip(t, Catalog(), filled(Catalog().Prototype(typ)))
	}
	if err := Catalog().Err(); err != nil {
		t.Error(err)
	}
}

// A time written in another zone is the same instant and the same bytes.
func TestTimesAreUTC(t *testing.T) {
	r := full()
	at := time.Date(2026, 7, 8, 9, 10, 11, 1200, time.FixedZone("far", 5*3600))
	schema, data, err := r.Encode(t.Context(), "s-1", everything{
		When: at, Maybe: &at, Times: []time.Time{at},
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := r.Decode(domain.Header{Type: "TestEverything", Schema: schema}, data)
	if err != nil {
		t.Fatal(err)
	}
	e, _ := got[0].Event.(everything)
	for _, back := range []time.Time{e.When, *e.Maybe, e.Times[0]} {
		if back != at.UTC() {
			t.Errorf("%v, want %v", back, at.UTC())
		}
	}
}

// Golden bytes: each file is an event of one type in one schema. It decodes to today's type for
// ever, and in today's schema encodes to the same bytes. Files are added by -rewrite and never
// edited.
func TestGolden(t *testing.T) {
	own, catalog := full(), Catalog()
	catalog.SealWith(vaultOf(t)) // what older schemas hold in clear is sealed in today's
	for dir, r := range map[string]*Registry{"testdata/own": own, "testdata/catalog": catalog} {
		for typ, schema := range r.Types() {
			path := filepath.Join(dir, fmt.Sprintf("%s.v%d.hex", typ, schema))
			_, err := os.Stat(path)
			if errors.Is(err, os.ErrNotExist) && *rewrite {
				err = addGolden(t, r, typ, path)
			}
			if err != nil {
				t.Errorf("%s: %v; run this test with -args -rewrite", path, err)
			}
		}
		files, err := filepath.Glob(filepath.Join(dir, "*.hex"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			checkGolden(t, r, f)
		}
	}
}

func addGolden(t *testing.T, r *Registry, typ, path string) error {
	_, data, err := r.Encode(t.Context(), "s-1", filled(r.Prototype(typ)))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(hex.EncodeToString(data)+"\n"), 0o600)
}

func checkGolden(t *testing.T, r *Registry, path string) {
	t.Helper()
	var schema uint16
	typ, rest, _ := strings.Cut(filepath.Base(path), ".v")
	if _, err := fmt.Sscanf(rest, "%d.hex", &schema); err != nil {
		t.Errorf("%s: not named <type>.v<schema>.hex", path)
		return
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	got, err := r.Decode(domain.Header{Type: typ, Schema: schema}, data)
	if err != nil || len(got) == 0 {
		t.Errorf("%s: %v, %v", path, got, err)
		return
	}
	now, again, err := r.Encode(t.Context(), "s-1", got[0].Event)
	if err != nil || now == schema && !bytes.Equal(again, data) {
		t.Errorf("%s: encodes to other bytes than before, %v", path, err)
	}
}

// Old schemas become today's events, one or several, in order.
func TestUpcast(t *testing.T) {
	data, err := Marshal(struct {
		Way string `msgpack:"way"`
	}{"here>there"})
	if err != nil {
		t.Fatal(err)
	}
	h := domain.Header{Type: "TestMoved", Schema: 1, Position: 7}
	got, err := full().Decode(h, data)
	want := []domain.Record{
		{Header: h, Event: moved{From: "here"}}, {Header: h, Event: moved{To: "there"}},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%+v, %v", got, err)
	}
	r := full()
	r.Upcast("Loop", 1, func(d []byte) ([]Stored, error) { return []Stored{{"Loop", 1, d}}, nil })
	if _, err := r.Decode(domain.Header{Type: "Loop", Schema: 1}, nil); domain.KindOf(err) !=
		domain.Internal {
		t.Errorf("an upcaster that goes in circles: %v", err)
	}
	r = New()
	r.Register(moved{}, 3, true)
	if err := r.Err(); err == nil || !strings.Contains(err.Error(), "schema 1: no upcaster") {
		t.Errorf("missing upcasters: %v", err)
	}
}

// What this build does not know: a required type stops the reader, an optional one is passed on.
func TestUnknown(t *testing.T) {
	r := full()
	for _, c := range []struct {
		typ    string
		schema uint16
		want   domain.Kind
		skip   bool
	}{
		{"TestMoved", 4, domain.Unsupported, false},
		{"NeverHeardOf", 1, domain.Unsupported, false},
		{"TestNothing", 2, 0, true},
		{"TestHint", 9, 0, true},
	} {
		got, err := r.Decode(domain.Header{Type: c.typ, Schema: c.schema}, []byte{0x80})
		switch {
		case c.skip && (err != nil || len(got) != 1 || got[0].Event != nil):
			t.Errorf("%s schema %d: %+v, %v", c.typ, c.schema, got, err)
		case !c.skip && domain.KindOf(err) != c.want:
			t.Errorf("%s schema %d: %v", c.typ, c.schema, err)
		}
	}
	for _, data := range [][]byte{
		nil, {0x81}, {0x80, 0x80}, {0xc1}, {0x81, 0xa4, 'f', 'r', 'o', 'm', 0x01},
	} {
		_, err := r.Decode(domain.Header{Type: "TestMoved", Schema: 3}, data)
		if domain.KindOf(err) != domain.Corrupt {
			t.Errorf("%x: %v", data, err)
		}
	}
	if _, err := r.Decode(domain.Header{Type: "TestMoved", Schema: 3},
		[]byte{0x81, 0xa3, 'n', 'e', 'w', 0x01}); err != nil {
		t.Errorf("a field that a later build added: %v", err)
	}
	if _, _, err := r.Encode(t.Context(), "s-1", stray{}); domain.KindOf(err) != domain.Internal {
		t.Errorf("an unregistered event: %v", err)
	}
}

type stray struct{}

func (stray) EventType() string { return "Stray" }

type (
	hasMap struct {
		A struct {
			B []struct {
				C *struct {
					M map[string]int `msgpack:"m,omitempty"`
				} `msgpack:"c,omitempty"`
			} `msgpack:"b,omitempty"`
		} `msgpack:"a,omitempty"`
	}
	hasAny struct {
		V any `msgpack:"v,omitempty"`
	}
	hasHidden struct {
		v int
	}
	hasNoTag struct {
		V int
	}
	hasBareTag struct {
		V int `msgpack:"v"`
	}
	hasTwice struct {
		A int `msgpack:"v,omitempty"`
		B int `msgpack:"v,omitempty"`
	}
	hasArray struct {
		V int `msgpack:"v,omitempty,as_array"`
	}
	embedsID struct {
		domain.VolumeID
		Name string `msgpack:"name,omitempty"`
	}
	hasEmbedding struct {
		E embedsID `msgpack:"e,omitempty"`
	}
	hasFunc struct {
		F func() `msgpack:"f,omitempty"`
	}
	number int
)

func (number) EventType() string { return "Number" }

// pointed is registered as a pointer and comes back as one.
type pointed struct {
	When time.Time `msgpack:"when,omitempty"`
}

func (*pointed) EventType() string { return "TestPointed" }

func (hasMap) EventType() string       { return "M" }
func (hasAny) EventType() string       { return "A" }
func (h hasHidden) EventType() string  { return fmt.Sprint("H", h.v) }
func (hasNoTag) EventType() string     { return "N" }
func (hasBareTag) EventType() string   { return "B" }
func (hasTwice) EventType() string     { return "T" }
func (hasArray) EventType() string     { return "R" }
func (embedsID) EventType() string     { return "E" }
func (hasEmbedding) EventType() string { return "I" }
func (hasFunc) EventType() string      { return "F" }

// A type with a map three levels down, and every other breach of C1 to C3, is refused at
// registration, and the registry then neither encodes nor decodes.
func TestNoMapAtRegistration(t *testing.T) {
	for _, e := range []domain.Event{
		hasMap{},
		hasAny{},
		hasHidden{},
		hasNoTag{},
		hasBareTag{},
		hasTwice{},
		hasArray{},
		embedsID{},
		hasEmbedding{},
		hasFunc{},
		number(1), nil,
	} {
		r := New()
		r.Register(e, 1, true)
		if r.Err() == nil {
			t.Errorf("%T is accepted", e)
		}
		if e == nil {
			continue
		}
		if _, _, err := r.Encode(t.Context(), "s-1", e); err == nil {
			t.Errorf("%T is encoded", e)
		}
		if _, err := r.Decode(domain.Header{Type: e.EventType(), Schema: 1}, []byte{0x80}); err == nil {
			t.Errorf("%T is decoded", e)
		}
	}
	r := full()
	r.Register(moved{}, 3, true)
	r.Optional("TestMoved")
	r.Upcast("TestMoved", 1, nil)
	if err := r.Err(); err == nil || strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("registered twice: %v", err)
	}
}

type wish struct {
	To     string
	Tags   map[string]int
	Deep   map[domain.VolumeID][]string
	Any    any
	When   time.Time
	Volume domain.VolumeID
	List   []string
	Ptr    *part
}

func (wish) CommandType() string     { return "Wish" }
func (wish) Stream() domain.StreamID { return "wish-1" }

// Equal commands have equal bytes whatever the order of their maps; a change anywhere changes them.
func TestCanonical(t *testing.T) {
	id := func(s string) domain.VolumeID {
		return domain.VolumeID{UUID: domain.DeriveUUID(domain.UUID{}, s)}
	}
	base := func() wish {
		w := wish{To: "x", Tags: map[string]int{}, Any: moved{From: "a"}}
		w.Deep = map[domain.VolumeID][]string{}
		for i := range 20 {
			w.Tags[fmt.Sprint(i)] = i
			w.Deep[id(fmt.Sprint(i))] = []string{"a", fmt.Sprint(i)}
		}
		w.When, w.Volume, w.Ptr = time.Unix(5, 6), id("v"), &part{Name: "p"}
		return w
	}
	r := New()
	of := func(w wish) string {
		b, err := r.Canonical(w)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	want := of(base())
	for range 50 {
		if of(base()) != want {
			t.Fatal("the same command gives other bytes")
		}
	}
	zoned := base()
	zoned.When, zoned.List = zoned.When.In(time.FixedZone("far", 3600)), []string{}
	if of(zoned) != want {
		t.Error("a zone or an empty list makes another command")
	}
	seen := map[string]int{want: -1}
	for i, change := range []func(*wish){
		func(w *wish) { w.To = "y" }, func(w *wish) { w.Tags["3"] = 4 },
		func(w *wish) { w.Any = stray{} },
		func(w *wish) { w.Deep[id("3")] = nil }, func(w *wish) { w.When = time.Unix(5, 7) },
		func(w *wish) { w.Volume = id("w") }, func(w *wish) { w.List = []string{""} },
		func(w *wish) { w.Ptr.Name = "q" }, func(w *wish) { w.Ptr = nil }, func(w *wish) { w.Any = nil },
	} {
		w := base()
		change(&w)
		got := of(w)
		if j, ok := seen[got]; ok {
			t.Errorf("changes %d and %d look alike", i, j)
		}
		seen[got] = i
	}
	w := base()
	w.Any = func() {}
	if _, err := r.Canonical(w); domain.KindOf(err) != domain.Internal {
		t.Errorf("a function: %v", err)
	}
	w.Any = hasHidden{1}
	if _, err := r.Canonical(w); domain.KindOf(err) != domain.Internal {
		t.Errorf("a hidden field: %v", err)
	}
}

func BenchmarkEncodeDecode(b *testing.B) {
	r := full()
	e := moved{From: "here", To: "there"}
	h := domain.Header{Type: "TestMoved", Schema: 3}
	for b.Loop() {
		_, data, err := r.Encode(b.Context(), "s-1", e)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := r.Decode(h, data); err != nil {
			b.Fatal(err)
		}
	}
}
