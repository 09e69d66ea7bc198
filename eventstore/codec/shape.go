package codec

import (
	"encoding"
	"fmt"
	"reflect"
	"strings"
	"time"
)

var (
	timeType     = reflect.TypeFor[time.Time]()
	binaryWriter = reflect.TypeFor[encoding.BinaryMarshaler]()
	binaryReader = reflect.TypeFor[encoding.BinaryUnmarshaler]()
	textWriter   = reflect.TypeFor[encoding.TextMarshaler]()
	textReader   = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// shape walks a type and gathers what breaks C1 to C3.
type shape struct {
	faults []string
	timed  bool
	seen   map[reflect.Type]bool
}

func (s *shape) fault(path, format string, args ...any) {
	s.faults = append(s.faults, path+": "+fmt.Sprintf(format, args...))
}

func (s *shape) check(t reflect.Type, path string, top bool) {
	if t == timeType {
		s.timed = true
		return
	}
	if t == personalType && (strings.Count(path, ".") != 1 || strings.HasSuffix(path, "[]")) {
		s.fault(path, "personal text stands in an event itself, not deeper")
		return
	}
	if encodesItself(t) {
		if top || !single(t) {
			s.fault(path, "%v encodes itself and would lose its other fields", t)
		}
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		s.fields(t, path)
	case reflect.Slice, reflect.Array, reflect.Pointer:
		s.check(t.Elem(), path+"[]", false)
	case reflect.Bool, reflect.String, reflect.Float32, reflect.Float64,
		reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
	case reflect.Invalid, reflect.Uintptr, reflect.Complex64, reflect.Complex128, reflect.Chan,
		reflect.Func, reflect.Interface, reflect.Map, reflect.UnsafePointer:
		s.fault(path, "a %v may not stand in an event", t.Kind())
	}
}

func (s *shape) fields(t reflect.Type, path string) {
	if s.seen[t] {
		return
	}
	if s.seen == nil {
		s.seen = map[reflect.Type]bool{}
	}
	s.seen[t] = true
	names := map[string]bool{}
	for f := range fieldsOf(t) {
		at := path + "." + f.Name
		if !f.IsExported() {
			s.fault(at, "is not exported and would be lost")
			continue
		}
		name, rest, _ := strings.Cut(f.Tag.Get("msgpack"), ",")
		if name == "" || name == "-" || rest != "omitempty" || names[name] {
			s.fault(at, "needs a tag msgpack:\"name,omitempty\" with a name of its own")
		}
		names[name] = true
		s.check(f.Type, at, false)
	}
}

func fieldsOf(t reflect.Type) func(func(reflect.StructField) bool) {
	return func(yield func(reflect.StructField) bool) {
		for i := range t.NumField() {
			if !yield(t.Field(i)) {
				return
			}
		}
	}
}

// encodesItself tells whether msgpack leaves the type to its own methods.
func encodesItself(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	return t.Kind() != reflect.Pointer &&
		(p.Implements(binaryWriter) && p.Implements(binaryReader) ||
			p.Implements(textWriter) && p.Implements(textReader))
}

// single tells whether a self-encoding type holds one thing alone, as the identifiers do.
func single(t reflect.Type) bool {
	return t.Kind() != reflect.Struct ||
		t.NumField() == 1 && t.Field(0).IsExported() && encodesItself(t.Field(0).Type)
}

// toUTC moves every time in an event to UTC: decoding puts it in the zone of the node.
func toUTC(v reflect.Value) {
	if v.Type() == timeType {
		if t, ok := v.Interface().(time.Time); ok && !t.IsZero() {
			v.Set(reflect.ValueOf(t.UTC()))
		}
		return
	}
	if encodesItself(v.Type()) {
		return
	}
	kind := v.Kind()
	if kind == reflect.Pointer && !v.IsNil() {
		toUTC(v.Elem())
	}
	if kind == reflect.Struct {
		for i := range v.NumField() {
			toUTC(v.Field(i))
		}
	}
	if kind == reflect.Slice || kind == reflect.Array {
		for i := range v.Len() {
			toUTC(v.Index(i))
		}
	}
}
