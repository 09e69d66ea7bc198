package codec

import (
	"bytes"
	"encoding"
	"reflect"
	"slices"
	"time"

	"github.com/vmihailenco/msgpack/v5"

	"weft/domain"
)

// depthMax bounds how deep a command may nest; a cycle ends there.
const depthMax = 64

// Canonical implements eventstore.Codec: msgpack of [type, stream, fields], fields by name in the
// order of their declaration, zero ones left out, map keys sorted by their bytes. Commands, unlike
// events, may hold maps and interfaces. What cannot be told apart in bytes (a function, a channel,
// a filled field that is not exported) is of kind Internal. Of personal text there is a keyed
// digest alone: the hash of a command is stored, and must not let anybody test a guess.
func (r *Registry) Canonical(c domain.Command) ([]byte, error) {
	var buf bytes.Buffer
	w := canon{enc: msgpack.NewEncoder(&buf), sealer: r.sealer}
	w.enc.UseCompactInts(true)
	w.note(w.enc.EncodeArrayLen(3))
	w.note(w.enc.EncodeString(c.CommandType()))
	w.note(w.enc.EncodeString(string(c.Stream())))
	w.value(reflect.ValueOf(c), 0)
	if w.err != nil {
		return nil, domain.Errorf(domain.Internal, "canonical %s: %v", c.CommandType(), w.err)
	}
	return buf.Bytes(), nil
}

type canon struct {
	enc    *msgpack.Encoder
	sealer Sealer
	err    error
}

func (w *canon) note(err error) {
	if w.err == nil {
		w.err = err
	}
}

func (w *canon) value(v reflect.Value, depth int) {
	if depth > depthMax {
		w.note(domain.Errorf(domain.Internal, "nests deeper than %d", depthMax))
		return
	}
	if w.own(v) {
		return
	}
	switch v.Kind() {
	case reflect.Invalid:
		w.note(w.enc.EncodeNil())
	case reflect.Pointer:
		w.value(v.Elem(), depth+1)
	case reflect.Interface: // the type belongs to the value: two types may look alike
		if v.IsNil() {
			w.note(w.enc.EncodeNil())
			return
		}
		w.note(w.enc.EncodeArrayLen(2))
		w.note(w.enc.EncodeString(v.Elem().Type().String()))
		w.value(v.Elem(), depth+1)
	case reflect.Struct:
		w.fields(v, depth)
	case reflect.Slice, reflect.Array:
		w.note(w.enc.EncodeArrayLen(v.Len()))
		for i := range v.Len() {
			w.value(v.Index(i), depth+1)
		}
	case reflect.Map:
		w.pairs(v, depth)
	case reflect.Bool, reflect.String, reflect.Float32, reflect.Float64,
		reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		w.note(w.enc.EncodeValue(v))
	case reflect.Uintptr, reflect.Complex64, reflect.Complex128, reflect.Chan, reflect.Func,
		reflect.UnsafePointer:
		w.note(domain.Errorf(domain.Internal, "a %v has no canonical form", v.Kind()))
	}
}

// own writes what has a form of its own.
func (w *canon) own(v reflect.Value) bool {
	indirect := v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface
	if !v.IsValid() || !v.CanInterface() || indirect {
		return false
	}
	if t, ok := v.Interface().(time.Time); ok {
		w.note(w.enc.EncodeInt(t.Unix()))
		w.note(w.enc.EncodeInt(int64(t.Nanosecond())))
		return true
	}
	if p, ok := v.Interface().(domain.Personal); ok && p.Text != "" {
		if w.sealer == nil {
			w.note(domain.Errorf(domain.Internal, "nothing digests personal text"))
			return true
		}
		w.note(w.enc.EncodeBytes(w.sealer.Digest(commandDigest, p.Text)))
		return true
	}
	if !encodesItself(v.Type()) || !single(v.Type()) {
		return false
	}
	if m, ok := v.Interface().(encoding.BinaryMarshaler); ok {
		b, err := m.MarshalBinary()
		w.note(err)
		w.note(w.enc.EncodeBytes(b))
		return true
	}
	m, ok := v.Interface().(encoding.TextMarshaler)
	if ok {
		b, err := m.MarshalText()
		w.note(err)
		w.note(w.enc.EncodeString(string(b)))
	}
	return ok
}

func (w *canon) fields(v reflect.Value, depth int) {
	n := 0
	for i := range v.NumField() {
		if !empty(v.Field(i)) {
			n++
		}
	}
	w.note(w.enc.EncodeMapLen(n))
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if empty(v.Field(i)) {
			continue
		}
		if !f.IsExported() {
			w.note(domain.Errorf(domain.Internal, "field %s is not exported", f.Name))
			return
		}
		w.note(w.enc.EncodeString(f.Name))
		w.value(v.Field(i), depth+1)
	}
}

// empty tells whether a field is left out: nil and empty lists mean the same wish.
func empty(v reflect.Value) bool {
	return v.IsZero() || (v.Kind() == reflect.Slice || v.Kind() == reflect.Map) && v.Len() == 0
}

func (w *canon) pairs(v reflect.Value, depth int) {
	type pair struct{ key, value []byte }
	all := make([]pair, 0, v.Len())
	for it := v.MapRange(); it.Next(); {
		all = append(all, pair{w.part(it.Key(), depth), w.part(it.Value(), depth)})
	}
	slices.SortFunc(all, func(a, b pair) int { return bytes.Compare(a.key, b.key) })
	w.note(w.enc.EncodeMapLen(len(all)))
	for _, p := range all {
		w.note(w.enc.Encode(msgpack.RawMessage(p.key)))
		w.note(w.enc.Encode(msgpack.RawMessage(p.value)))
	}
}

func (w *canon) part(v reflect.Value, depth int) []byte {
	var buf bytes.Buffer
	sub := canon{enc: msgpack.NewEncoder(&buf), sealer: w.sealer}
	sub.enc.UseCompactInts(true)
	sub.value(v, depth+1)
	w.note(sub.err)
	return buf.Bytes()
}
