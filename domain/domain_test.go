package domain

import (
	"errors"
	"strings"
	"testing"
)

// TestParseBytes proves that sizes are read in binary units and that everything else is refused.
func TestParseBytes(t *testing.T) {
	for text, want := range map[string]Bytes{
		"0": 0, "4096": 4096, "10GiB": 10 * GiB, "10G": 10 * GiB, "1.5TiB": TiB + TiB/2,
		"512 MiB": 512 * MiB, "7KiB": 7 * KiB, "12B": 12,
	} {
		if got, err := ParseBytes(text); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", "-1", "-1GiB", "GiB", "10GB", "1e30", "NaNGiB", "InfTiB", "9223372036854775808",
		"8388608TiB", "10 apples", "0x10", "1.5",
	} {
		if got, err := ParseBytes(text); err == nil || KindOf(err) != Invalid {
			t.Errorf("%q gave %d, %v", text, got, err)
		}
	}
}

// TestBytesString proves that a size reads back as it was written.
func TestBytesString(t *testing.T) {
	for _, b := range []Bytes{0, 1, 4096, 3 * MiB, 10 * GiB, 5*TiB + GiB, VolumeMax} {
		got, err := ParseBytes(b.String())
		if err != nil || got != b {
			t.Errorf("%d prints %q and reads %d, %v", b, b.String(), got, err)
		}
	}
}

// TestUUID proves the canonical form in both directions and the refusal of any other.
func TestUUID(t *testing.T) {
	u := DeriveUUID(UUID{1}, "a", "b")
	got, err := ParseUUID(u.String())
	if err != nil || got != u {
		t.Fatalf("%s reads %s, %v", u, got, err)
	}
	if u[6]>>4 != 8 || u[8]>>6 != 2 {
		t.Errorf("%s is no UUIDv8 of the RFC 9562 variant", u)
	}
	for _, s := range []string{
		"", u.String()[1:], u.String() + "0", strings.Repeat("g", 36),
		"{" + u.String()[1:], strings.ReplaceAll(u.String(), "-", "_"),
	} {
		if _, err := ParseUUID(s); err == nil {
			t.Errorf("%q was taken", s)
		}
	}
}

// TestDeriveUUIDParts proves that parts are told apart: their bounds are part of what is hashed.
func TestDeriveUUIDParts(t *testing.T) {
	seen := map[UUID][]string{}
	for _, parts := range [][]string{{"ab", "c"}, {"a", "bc"}, {"abc"}, {"abc", ""}, {}, {""}} {
		u := DeriveUUID(UUID{}, parts...)
		if old, twice := seen[u]; twice {
			t.Errorf("%q and %q give the same id", old, parts)
		}
		seen[u] = parts
	}
}

// TestPosition proves that timeline and number share one integer that keeps their order.
func TestPosition(t *testing.T) {
	p := PositionOf(3, 7)
	if p.Timeline() != 3 || p.N() != 7 {
		t.Fatalf("%d.%d", p.Timeline(), p.N())
	}
	if PositionOf(0, 1<<48-1) >= PositionOf(1, 0) {
		t.Error("a higher timeline is not above a lower one")
	}
	if got, err := ParsePosition(p.String()); err != nil || got != p {
		t.Errorf("%s reads %s, %v", p, got, err)
	}
}

// TestVersionOrder proves that versions are ordered by epoch, then sequence, then node.
func TestVersionOrder(t *testing.T) {
	list := []Version{{}, {1, 1, 1}, {1, 1, 2}, {1, 2, 0}, {2, 0, 0}, {2, 1, 9}}
	for i, v := range list {
		for j, w := range list {
			if got, want := v.Compare(w), order(uint64(i), uint64(j)); got != want {
				t.Errorf("%s against %s gives %d", v, w, got)
			}
		}
	}
}

// TestErrorKind proves that wrapping keeps the kind and that foreign errors are bugs.
func TestErrorKind(t *testing.T) {
	inner := Errorf(NoSpace, "full")
	err := Wrap(Wrap(inner, "engine.Append", "dev"), "agent.create", "vol")
	if KindOf(err) != NoSpace || !IsKind(err, NoSpace) || !errors.Is(err, &Error{Kind: NoSpace}) {
		t.Errorf("kind %s", KindOf(err))
	}
	if KindOf(errors.New("x")) != Internal || IsKind(nil, Internal) || Wrap(nil, "a", "b") != nil {
		t.Error("nil and foreign errors")
	}
	seen := map[string]bool{}
	for _, k := range Kinds() {
		if seen[k.String()] || strings.HasPrefix(k.String(), "kind(") {
			t.Errorf("kind %d has no name of its own: %s", k, k)
		}
		seen[k.String()] = true
	}
}

// TestViolations proves that all of them reach the reader through any number of wrappers.
func TestViolations(t *testing.T) {
	var c Checker
	c.Check(true, "a", "fine")
	if c.Err("op", "") != nil {
		t.Fatal("nothing is wrong")
	}
	c.Check(false, "b", "is %d", 1)
	c.Check(false, "c", "is missing")
	err := Wrap(c.Err("op", "ref"), "outer", "x")
	if v := ViolationsOf(err); len(v) != 2 || v[0] != (Violation{"b", "is 1"}) {
		t.Errorf("%v", v)
	}
}

// TestStreamID proves the form of stream names at its limits.
func TestStreamID(t *testing.T) {
	for s, ok := range map[StreamID]bool{
		"volume-1": true, "a-A.b_c:d-e": true, "volume": false, "-x": false, "v-": false,
		"Volume-1": false, "v-a b": false, StreamID("v-" + strings.Repeat("x", 180)): true,
		StreamID("v-" + strings.Repeat("x", 181)): false, "v-\x00": false,
	} {
		if s.Valid() != ok {
			t.Errorf("%q: %v", s, s.Valid())
		}
	}
}
