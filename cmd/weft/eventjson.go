package main

import (
	"bytes"
	"encoding"
	"encoding/hex"
	"encoding/json"
	"reflect"
	"strings"

	"weft/domain"
)

// pairs is a JSON object that keeps the order of its fields.
type pairs []pair

type pair struct {
	name  string
	value any
}

// MarshalJSON implements json.Marshaler.
func (p pairs) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, f := range p {
		if i > 0 {
			b.WriteByte(',')
		}
		name, err := json.Marshal(f.name)
		if err != nil {
			return nil, err
		}
		value, err := json.Marshal(f.value)
		if err != nil {
			return nil, err
		}
		b.Write(name)
		b.WriteByte(':')
		b.Write(value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// plainValue turns an event into values for JSON, with the field names of the log, identifiers as
// text and bytes as hex; of personal text what it says in clear. Zero fields are left out, as the
// log leaves them out.
func plainValue(v any) any { return plainOf(reflect.ValueOf(v)) }

func plainOf(v reflect.Value) any {
	for v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return nil
		}
		v = v.Elem()
	}
	if p, ok := v.Interface().(domain.Personal); ok {
		return p.Text
	}
	if t, ok := v.Interface().(encoding.TextMarshaler); ok {
		if b, err := t.MarshalText(); err == nil {
			return string(b)
		}
	}
	kind := v.Kind()
	if kind == reflect.Struct {
		var out pairs
		for i := range v.NumField() {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("msgpack"), ",")
			if name == "" || v.Field(i).IsZero() {
				continue
			}
			out = append(out, pair{name, plainOf(v.Field(i))})
		}
		return out
	}
	if kind == reflect.Slice || kind == reflect.Array {
		if v.Type().Elem().Kind() == reflect.Uint8 {
			b := make([]byte, v.Len())
			reflect.Copy(reflect.ValueOf(b), v)
			return hex.EncodeToString(b)
		}
		out := make([]any, v.Len())
		for i := range out {
			out[i] = plainOf(v.Index(i))
		}
		return out
	}
	return v.Interface()
}
