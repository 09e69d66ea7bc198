package codec

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"time"

	"weft/domain"
	"weft/domain/identity"
	"weft/domain/tenancy"
	"weft/eventstore/memory"
	"weft/eventstore/vault"
)

// spoken holds personal text, about one user, beside what is nobody's secret.
type spoken struct {
	By   domain.UserID   `msgpack:"by,omitempty"`
	Said domain.Personal `msgpack:"said,omitempty"`
	Loud bool            `msgpack:"loud,omitempty"`
	To   domain.Personal `msgpack:"to,omitempty"`
}

func (spoken) EventType() string          { return "TestSpoken" }
func (e spoken) AboutUser() domain.UserID { return e.By }

type (
	hasDeeper struct {
		In struct {
			P domain.Personal `msgpack:"p,omitempty"`
		} `msgpack:"in,omitempty"`
	}
	hasMany struct {
		P []domain.Personal `msgpack:"p,omitempty"`
	}
	hasNobody struct {
		P domain.Personal `msgpack:"p,omitempty"`
	}
)

func (hasDeeper) AboutUser() domain.UserID { return domain.UserID{} }
func (hasMany) AboutUser() domain.UserID   { return domain.UserID{} }
func (hasDeeper) EventType() string        { return "D" }
func (hasMany) EventType() string          { return "Y" }
func (hasNobody) EventType() string        { return "O" }

var speaker = domain.UserID{UUID: domain.UUID{9}}

func vaultOf(t testing.TB) *vault.Vault {
	t.Helper()
	v, err := vault.Open(t.Context(), &memory.Secrets{}, []byte("nodes"))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestPersonalIsSealed proves that personal text is in no stored byte, opens with its user's key in
// its own place alone, and that what was sealed before, and the event itself, stay as they are
// (C6).
func TestPersonalIsSealed(t *testing.T) {
	ctx, r, v := t.Context(), full(), vaultOf(t)
	r.SealWith(v)
	before := &spoken{By: speaker, Said: domain.Personal{Text: "hello world"}, Loud: true}
	given := *before
	schema, data, err := r.Encode(ctx, "s-1", before)
	if err != nil || bytes.Contains(data, []byte("hello")) || !reflect.DeepEqual(*before, given) {
		t.Fatalf("%q, %v; the event is %+v now", data, err, before)
	}
	h := domain.Header{Type: "TestSpoken", Schema: schema, Stream: "s-1"}
	recs, err := r.Decode(h, data)
	if err != nil {
		t.Fatal(err)
	}
	got, _ := recs[0].Event.(*spoken)
	if got.Said.Text != "" || !got.Loud || got.By != speaker || len(got.To.Box) != 0 {
		t.Errorf("%+v", got)
	}
	open := func(s domain.StreamID, typ, field string) (string, error) {
		return v.Open(ctx, speaker, domain.SealLabel(s, typ, field), got.Said.Box)
	}
	if text, err := open("s-1", "TestSpoken", "said"); err != nil || text != "hello world" {
		t.Errorf("%q, %v", text, err)
	}
	for _, x := range [][3]string{
		{"s-2", "TestSpoken", "said"}, {"s-1", "TestOther", "said"}, {"s-1", "TestSpoken", "to"},
	} {
		if text, err := open(domain.StreamID(x[0]), x[1], x[2]); !domain.IsKind(err, domain.Corrupt) {
			t.Errorf("opens as %v: %q, %v", x, text, err)
		}
	}
	if _, again, err := r.Encode(ctx, "s-1", got); err != nil || !bytes.Equal(again, data) {
		t.Errorf("what is sealed is sealed again: %v", err)
	}
	seen := r.Show(got, func(u domain.UserID, f string, p domain.Personal) domain.Personal {
		if u != speaker || (f == "said") != (len(p.Box) > 0) {
			t.Errorf("shown: %v %s %+v", u, f, p)
		}
		return domain.Personal{Text: f}
	})
	want := &spoken{By: speaker, Said: domain.Personal{Text: "said"}, Loud: true}
	want.To.Text = "to"
	if !reflect.DeepEqual(seen, want) || got.Said.Text != "" {
		t.Errorf("shown %+v, and the event is %+v", seen, got)
	}
	if ev := (nothing{}); r.Show(ev, nil) != domain.Event(ev) {
		t.Error("an event without personal text changed")
	}
}

// TestPersonalNeedsAKey proves that personal text is refused, not stored in clear, where nothing
// seals it: without a sealer, of nobody, and once the key was destroyed.
func TestPersonalNeedsAKey(t *testing.T) {
	ctx, r, v := t.Context(), full(), vaultOf(t)
	ev := spoken{By: speaker, Said: domain.Personal{Text: "hello"}}
	if _, data, err := r.Encode(ctx, "s-1", ev); !domain.IsKind(err, domain.Internal) {
		t.Errorf("without a sealer: %q, %v", data, err)
	}
	if _, err := r.Canonical(say{ev.Said}); !domain.IsKind(err, domain.Internal) {
		t.Errorf("a command without a sealer: %v", err)
	}
	r.SealWith(v)
	if _, data, err := r.Encode(ctx, "s-1", spoken{Said: ev.Said}); !domain.IsKind(err,
		domain.Internal) {
		t.Errorf("of nobody: %q, %v", data, err)
	}
	if err := v.Destroy(ctx, speaker); err != nil {
		t.Fatal(err)
	}
	if _, data, err := r.Encode(ctx, "s-1", ev); !domain.IsKind(err, domain.NotFound) {
		t.Errorf("once the key is destroyed: %q, %v", data, err)
	}
	for _, e := range []domain.Event{hasDeeper{}, hasMany{}, hasNobody{}} {
		r := New()
		r.Register(e, 1, true)
		if err := r.Err(); err == nil || !strings.Contains(err.Error(), "personal") {
			t.Errorf("%T: %v", e, err)
		}
	}
}

type say struct{ What domain.Personal }

func (say) CommandType() string     { return "Say" }
func (say) Stream() domain.StreamID { return "wish-1" }

// TestPersonalInCommands proves that the canonical form of a command, whose hash is stored, tells
// equal texts from others and cannot be computed from a guess without the cluster's key.
func TestPersonalInCommands(t *testing.T) {
	keys := vaultOf(t)
	of := func(v *vault.Vault, text string) string {
		r := full()
		r.SealWith(v)
		b, err := r.Canonical(say{domain.Personal{Text: text}})
		if err != nil || bytes.Contains(b, []byte(text)) {
			t.Fatalf("%q, %v", b, err)
		}
		return string(b)
	}
	first, second := of(keys, "hello"), of(keys, "hello")
	if first != second || first == of(keys, "hallo") {
		t.Error("equal texts differ, or others are equal")
	}
	if of(keys, "hello") == of(vaultOf(t), "hello") {
		t.Error("another cluster has the same bytes")
	}
}

// TestOlderNamesAreRead proves that events from before there were keys give the text that they hold
// in clear, each in its field.
func TestOlderNamesAreRead(t *testing.T) {
	r, text := Catalog(), domain.Personal{Text: "ann"}
	for typ, x := range map[string]struct {
		stored any
		want   domain.Event
	}{
		"UserCreated": {
			userCreated1{speaker, "ann"}, &identity.UserCreated{User: speaker, Name: text},
		},
		"UserLinked": {
			userLinked1{User: speaker, Subject: "ann"},
			&identity.UserLinked{User: speaker, Subject: text},
		},
		"TokenIssued": {
			tokenIssued1{Owner: speaker, Role: "viewer", Note: "ann", Expires: time.Unix(5, 0)},
			&identity.TokenIssued{
				Owner: speaker, Role: "viewer", Note: text, Expires: time.Unix(5, 0).UTC(),
			},
		},
		"NameTaken": {
			&tenancy.NameTaken{Kind: "user", Name: "ann", Object: speaker.UUID},
			&tenancy.NameTaken{Kind: "user", Name: "ann", Object: speaker.UUID},
		},
	} {
		data, err := Marshal(x.stored)
		if err != nil {
			t.Fatal(err)
		}
		got, err := r.Decode(domain.Header{Type: typ, Schema: 1}, data)
		if err != nil || len(got) != 1 || !reflect.DeepEqual(got[0].Event, x.want) {
			t.Errorf("%s: %+v, %v, want %+v", typ, got, err, x.want)
		}
	}
}
