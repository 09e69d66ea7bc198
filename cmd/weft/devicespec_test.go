package main

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"weft/backends"
	"weft/domain"
)

// TestParseDevice proves how a device is written: a path, with its class, or a pair in any order;
// and that what is none of these is refused with the forms that are, not taken for a path.
func TestParseDevice(t *testing.T) {
	for s, want := range map[string]deviceSpec{
		"/dev/sda":                   {path: "/dev/sda"},
		"a:b.img":                    {path: "a:b.img"},
		"./hdd:x":                    {path: "./hdd:x"},
		"flash:/dev/sda":             {class: "flash", path: "/dev/sda"},
		"hdd:/dev/a:1":               {class: "hdd", path: "/dev/a:1"},
		"hybrid:flash=/dev/a,hdd=b":  {class: "hybrid", path: "/dev/a", disk: "b"},
		"hybrid:hdd=b,flash=/dev/a":  {class: "hybrid", path: "/dev/a", disk: "b"},
		"hybrid:flash=a=1,hdd=b:2,3": {},
		"hybrid:flash=a":             {},
		"hybrid:flash=a,flash=b":     {},
		"hybrid:flash=a,hdd=":        {},
		"hybrid:flash=a,hdd=b,hdd=c": {},
		"hybrid:a,b":                 {},
		"hybrid:":                    {},
		"hdd:":                       {},
		"":                           {},
	} {
		got, err := parseDevice(s)
		if got != want || (err != nil) != (want == deviceSpec{}) {
			t.Errorf("%q: %+v, %v", s, got, err)
		}
		var e *domain.Error
		if err != nil && (!errors.As(err, &e) || e.Kind != domain.Invalid ||
			!strings.Contains(e.Remedy, "hybrid:flash=PATH,hdd=PATH")) {
			t.Errorf("%q: %v", s, err)
		}
	}
	for want, g := range map[string]backends.Geometry{
		"flash": {Size: 8}, "hdd": {Size: 8, Rotational: true}, "hybrid": {Size: 8, Boundary: 4},
	} {
		if got := classOf(g); got != want {
			t.Errorf("%+v is %s", g, got)
		}
	}
}

// TestAddedBesidesNamed proves that a device which was added, and is named at the start in another
// form, is opened once.
func TestAddedBesidesNamed(t *testing.T) {
	k := keptDevices{Added: []string{"/dev/a", "/dev/b", "hybrid:flash=/dev/c,hdd=/dev/d"}}
	named := []string{"hdd:/dev/./a", "hybrid:hdd=/dev/d,flash=/dev/c"}
	if got := k.besides(named); !slices.Equal(got, []string{"/dev/b"}) {
		t.Errorf("%q", got)
	}
	if got := k.besides(nil); len(got) != 3 {
		t.Errorf("%q", got)
	}
}
