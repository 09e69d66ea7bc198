package codec

import (
	"context"
	"reflect"
	"strings"

	"weft/domain"
)

// Sealer closes personal text before it is stored. vault.Vault is one.
type Sealer interface {
	// Seal closes text under the key of a user, for the place that the label names.
	Seal(ctx context.Context, user domain.UserID, label, text string) ([]byte, error)
	// Digest is a keyed hash: equal for equal texts of a kind in the whole cluster.
	Digest(kind, text string) []byte
}

// commandDigest is the kind of digest that stands for personal text in the canonical form of a
// command.
const commandDigest = "command"

var personalType = reflect.TypeFor[domain.Personal]()

// field is a personal field of an event: its place in the struct, and its name in the log.
type field struct {
	index int
	name  string
}

func personalOf(t reflect.Type) []field {
	var list []field
	for i := range t.NumField() {
		if f := t.Field(i); f.Type == personalType {
			name, _, _ := strings.Cut(f.Tag.Get("msgpack"), ",")
			list = append(list, field{i, name})
		}
	}
	return list
}

// seal closes what the event that p points to holds in clear. What is closed already stays.
func (r *Registry) seal(
	ctx context.Context, s domain.StreamID, e *entry, p reflect.Value,
) error {
	for _, f := range e.personal {
		at := p.Elem().Field(f.index)
		text, _ := at.Interface().(domain.Personal)
		if text.Text == "" {
			continue
		}
		about, ok := p.Interface().(domain.AboutUser)
		if !ok || r.sealer == nil || about.AboutUser().IsZero() {
			return domain.Errorf(domain.Internal, "nothing seals %s", f.name)
		}
		label := domain.SealLabel(s, about.EventType(), f.name)
		box, err := r.sealer.Seal(ctx, about.AboutUser(), label, text.Text)
		if err != nil {
			return err
		}
		at.Set(reflect.ValueOf(domain.Personal{Box: box}))
	}
	return nil
}

// Show gives a copy of a registered event in which each personal field is what a function makes of
// it; field is its name in the log. An event without any is given back as it is.
func (r *Registry) Show(
	ev domain.Event, f func(user domain.UserID, field string, p domain.Personal) domain.Personal,
) domain.Event {
	e := r.types[ev.EventType()]
	about, ok := ev.(domain.AboutUser)
	if e == nil || !ok || len(e.personal) == 0 {
		return ev
	}
	v := reflect.ValueOf(ev)
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	out := reflect.New(e.typ)
	out.Elem().Set(v)
	for _, x := range e.personal {
		at := out.Elem().Field(x.index)
		p, _ := at.Interface().(domain.Personal)
		at.Set(reflect.ValueOf(f(about.AboutUser(), x.name, p)))
	}
	return e.event(out)
}
