package codec

import (
	"fmt"
	"reflect"
	"time"

	"weft/domain"
)

// filled gives an event of a type with every field set to something that follows from its place, so
// that golden bytes need no hand-written values.
func filled(e domain.Event) domain.Event {
	t, pointer := reflect.TypeOf(e), false
	if t.Kind() == reflect.Pointer {
		t, pointer = t.Elem(), true
	}
	v, n := reflect.New(t), 0
	fillIn(v.Elem(), &n, 0)
	if !pointer {
		v = v.Elem()
	}
	out, _ := v.Interface().(domain.Event)
	return out
}

func fillIn(v reflect.Value, n *int, depth int) {
	*n++
	if v.Type() == timeType {
		v.Set(reflect.ValueOf(time.Date(2026, 1, 2, 3, 4, *n%60, 100*(*n), time.UTC)))
		return
	}
	if v.Type() == personalType { // as it is stored: sealed, to the same bytes every time
		v.Set(reflect.ValueOf(domain.Personal{Box: []byte(fmt.Sprintf("box %d", *n))}))
		return
	}
	switch kind := v.Kind(); {
	case kind == reflect.Struct:
		for i := range v.NumField() {
			fillIn(v.Field(i), n, depth+1)
		}
	case (kind == reflect.Slice || kind == reflect.Pointer) && depth > 8:
		// a type that holds itself ends here
	case kind == reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			fillIn(v.Index(i), n, depth+1)
		}
	case kind == reflect.Array:
		for i := range v.Len() {
			fillIn(v.Index(i), n, depth+1)
		}
	case kind == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fillIn(v.Elem(), n, depth+1)
	case kind == reflect.String:
		v.SetString(fmt.Sprintf("text %d", *n))
	case kind == reflect.Bool:
		v.SetBool(true)
	case v.CanFloat():
		v.SetFloat(float64(*n) + 0.5)
	case v.CanInt():
		v.SetInt(int64(*n % 100))
	case v.CanUint():
		v.SetUint(uint64(*n % 100))
	}
}
