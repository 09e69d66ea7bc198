package codec

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"reflect"
	"slices"

	"github.com/vmihailenco/msgpack/v5"

	"weft/domain"
	"weft/eventstore"
)

// upcastMax bounds how many steps lead from stored bytes to today's events.
const upcastMax = 64

// Stored is an event as bytes of one schema, on its way to today's.
type Stored struct {
	Type   string
	Schema uint16
	Data   []byte
}

// Upcaster turns bytes of one schema into one or more events of a later one, or of another type.
type Upcaster func(data []byte) ([]Stored, error)

// Registry knows the event types of this build.
type Registry struct {
	types     map[string]*entry
	optional  map[string]bool // known by name alone
	upcasters map[version]Upcaster
	sealer    Sealer // nil: nothing personal can be written
	faults    []error
}

type entry struct {
	typ      reflect.Type
	pointer  bool // events are pointers to typ
	schema   uint16
	required bool
	timed    bool // a time stands in it somewhere
	personal []field
}

type version struct {
	typ    string
	schema uint16
}

var _ eventstore.Codec = (*Registry)(nil)

// New makes an empty registry.
func New() *Registry {
	return &Registry{
		types: map[string]*entry{}, optional: map[string]bool{}, upcasters: map[version]Upcaster{},
	}
}

// SealWith lets the registry write personal fields. One without a sealer reads them all the same.
func (r *Registry) SealWith(s Sealer) { r.sealer = s }

// Register makes a type known, with the schema it is written in from now on, counted from 1. The
// prototype is a struct or a pointer to one; decoding gives what was registered, encoding takes
// both. Its value does not matter. A stored event of a required type in a schema that this build
// does not know stops its reader; one of an optional type is passed on without a payload. What is
// wrong with the type is told by Err.
func (r *Registry) Register(prototype domain.Event, schema uint16, required bool) {
	t := reflect.TypeOf(prototype)
	pointer := t != nil && t.Kind() == reflect.Pointer
	if pointer {
		t = t.Elem()
	}
	if t == nil || t.Kind() != reflect.Struct {
		r.fault("a prototype is a struct or a pointer to one, not %v", t)
		return
	}
	prototype, _ = reflect.New(t).Interface().(domain.Event) // a nil pointer may not know its type
	name := prototype.EventType()
	if r.types[name] != nil || r.optional[name] || name == "" || schema == 0 {
		r.fault("%v: type %q is registered twice or empty, or its schema is 0", t, name)
		return
	}
	var s shape
	s.check(t, name, true)
	for _, f := range s.faults {
		r.fault("%s", f)
	}
	personal := personalOf(t)
	if _, ok := prototype.(domain.AboutUser); !ok && len(personal) > 0 {
		r.fault("%s holds personal text and does not say of whom", name)
	}
	r.types[name] = &entry{
		typ: t, pointer: pointer, schema: schema, required: required, timed: s.timed,
		personal: personal,
	}
}

// Optional names types that other builds write and that this one may pass over.
func (r *Registry) Optional(types ...string) {
	for _, t := range types {
		if r.types[t] != nil {
			r.fault("type %q is registered with a prototype", t)
		}
		r.optional[t] = true
	}
}

// Upcast states how bytes of an older schema become newer ones.
func (r *Registry) Upcast(typ string, from uint16, u Upcaster) {
	v := version{typ, from}
	if r.upcasters[v] != nil || u == nil {
		r.fault("%s schema %d: a second upcaster, or none", typ, from)
		return
	}
	r.upcasters[v] = u
}

func (r *Registry) fault(format string, args ...any) {
	r.faults = append(r.faults, domain.Errorf(domain.Internal, format, args...))
}

// Err gives everything wrong with the registered types, and every older schema that no upcaster
// leads on from; nil when all is well. cmd asks once at start.
func (r *Registry) Err() error {
	all := slices.Clone(r.faults)
	for name := range r.Types() {
		for s := uint16(1); s < r.types[name].schema; s++ {
			if r.upcasters[version{name, s}] == nil {
				all = append(all, domain.Errorf(domain.Internal, "%s schema %d: no upcaster", name, s))
			}
		}
	}
	return errors.Join(all...)
}

// Types gives every registered type with its schema, in order of name.
func (r *Registry) Types() iter.Seq2[string, uint16] {
	return func(yield func(string, uint16) bool) {
		names := make([]string, 0, len(r.types))
		for n := range r.types {
			names = append(names, n)
		}
		slices.Sort(names)
		for _, n := range names {
			if !yield(n, r.types[n].schema) {
				return
			}
		}
	}
}

// Prototype gives a zero event of a type, nil for an unknown one.
func (r *Registry) Prototype(typ string) domain.Event {
	e := r.types[typ]
	if e == nil {
		return nil
	}
	return e.event(reflect.New(e.typ))
}

func (e *entry) event(p reflect.Value) domain.Event {
	if !e.pointer {
		p = p.Elem()
	}
	ev, _ := p.Interface().(domain.Event)
	return ev
}

// Encode implements eventstore.Codec. The bytes belong to the caller, and hold nothing personal in
// clear (C6); the event stays as it is.
func (r *Registry) Encode(
	ctx context.Context, s domain.StreamID, ev domain.Event,
) (uint16, []byte, error) {
	if ev == nil {
		return 0, nil, domain.Errorf(domain.Internal, "a nil event")
	}
	v := reflect.ValueOf(ev)
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return 0, nil, domain.Errorf(domain.Internal, "a nil %T", ev)
		}
		v = v.Elem()
	}
	e := r.types[ev.EventType()]
	if e == nil || v.Type() != e.typ {
		return 0, nil, domain.Errorf(domain.Internal, "%s as %T is not registered", ev.EventType(), ev)
	}
	if len(r.faults) > 0 {
		return 0, nil, r.faults[0]
	}
	p := reflect.New(e.typ) // a type may encode itself through its pointer
	p.Elem().Set(v)
	if err := r.seal(ctx, s, e, p); err != nil {
		return 0, nil, domain.Wrap(err, "codec.Encode", ev.EventType())
	}
	data, err := Marshal(p.Interface())
	if err != nil {
		return 0, nil, domain.Errorf(domain.Internal, "encode %s: %v", ev.EventType(), err)
	}
	return e.schema, data, nil
}

// Decode implements eventstore.Codec.
func (r *Registry) Decode(h domain.Header, data []byte) ([]domain.Record, error) {
	if len(r.faults) > 0 {
		return nil, r.faults[0]
	}
	fail := func(k domain.Kind, format string, args ...any) ([]domain.Record, error) {
		return nil, &domain.Error{
			Op: "codec.Decode", Kind: k, Ref: "position " + h.Position.String(),
			Msg: fmt.Sprintf(format, args...),
		}
	}
	var out []domain.Record
	todo := []Stored{{Type: h.Type, Schema: h.Schema, Data: data}}
	for steps := 0; len(todo) > 0; steps++ {
		if steps > upcastMax {
			return fail(domain.Internal, "%s schema %d: upcasting does not end", h.Type, h.Schema)
		}
		s := todo[0]
		todo = todo[1:]
		e := r.types[s.Type]
		up := r.upcasters[version{s.Type, s.Schema}]
		switch {
		case e != nil && s.Schema == e.schema:
			ev, err := e.decode(s.Data)
			if err != nil {
				return fail(domain.Corrupt, "%s: %v", s.Type, err)
			}
			out = append(out, domain.Record{Header: h, Event: ev})
		case up != nil:
			next, err := up(s.Data)
			if err != nil {
				return fail(domain.Corrupt, "%s schema %d: %v", s.Type, s.Schema, err)
			}
			todo = append(slices.Clone(next), todo...)
		case r.optional[s.Type] || e != nil && !e.required:
			out = append(out, domain.Record{Header: h})
		default:
			return fail(domain.Unsupported, "%s schema %d is not known to this build", s.Type, s.Schema)
		}
	}
	return out, nil
}

func (e *entry) decode(data []byte) (domain.Event, error) {
	p := reflect.New(e.typ)
	if err := Unmarshal(data, p.Interface()); err != nil {
		return nil, err
	}
	if e.timed {
		toUTC(p.Elem())
	}
	return e.event(p), nil
}

// Marshal is the encoding of events, for upcasters: named fields in the order of their declaration,
// integers as short as they go.
func Marshal(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := msgpack.NewEncoder(&buf)
	enc.UseCompactInts(true)
	err := enc.Encode(v)
	return buf.Bytes(), err
}

// Unmarshal is the decoding of events, for upcasters. Unknown fields are passed over; bytes left
// over are an error.
func Unmarshal(data []byte, v any) error {
	src := bytes.NewReader(data)
	if err := msgpack.NewDecoder(src).Decode(v); err != nil {
		return err
	}
	if src.Len() > 0 {
		return fmt.Errorf("%d bytes are left over", src.Len())
	}
	return nil
}
