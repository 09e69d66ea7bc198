package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"weft/domain"
)

func eventOut(w io.Writer, p int) {
	_, _ = fmt.Fprintf(w, "id: %d\nevent: VolumeCreated\ndata: {\"position\":\"%d\"}\n\n", p, p)
}

// TestWatchGoesOn breaks the connection in the middle of the log, and in the middle of an event:
// the watch asks for what follows the last event delivered, and delivers each once (C4).
func TestWatchGoesOn(t *testing.T) {
	var asked []string
	c, k := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Header.Get("Last-Event-ID")+" "+r.URL.RawQuery)
		_, _ = io.WriteString(w, ": weft\n\n")
		switch len(asked) {
		case 1:
			eventOut(w, 3)
			eventOut(w, 4)
			_, _ = io.WriteString(w, "id: 5\nevent: X\ndata: {\"posi")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		case 2:
			_, _ = io.WriteString(w, "event: error\ndata: \"unavailable\"\n\n")
		case 3:
			eventOut(w, 4) // once more: a server may repeat, a watch does not
			eventOut(w, 5)
			eventOut(w, 6)
		}
	})
	var got []string
	enough := errors.New("enough")
	err := c.Watch(t.Context(), Watched{Since: 2, Types: []string{"Volume", "App"}},
		func(e Event) error {
			if got = append(got, e.Position); e.Position == "6" {
				return enough
			}
			return nil
		})
	if err != enough { //nolint:errorlint // as it is
		t.Fatal(err)
	}
	if want := []string{"3", "4", "5", "6"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	q := " types=Volume%2CApp"
	if want := []string{"2" + q, "4" + q, "4" + q}; !slices.Equal(asked, want) {
		t.Errorf("asked %q, want %q", asked, want)
	}
	if len(k.pauses) != 2 {
		t.Errorf("pauses %v", k.pauses)
	}
}

// TestWatchEnds lists what a watch does not outlive.
func TestWatchEnds(t *testing.T) {
	for name, x := range map[string]struct {
		code  int
		body  string
		kind  domain.Kind
		tries int
	}{
		"refused":         {401, `{"kind":"denied","detail":"no"}`, domain.Denied, 1},
		"away for good":   {503, `{"kind":"unavailable","detail":"no"}`, domain.Unavailable, 4},
		"a corrupt event": {200, "event: error\ndata: \"corrupt\"\n\n", domain.Corrupt, 1},
		"no JSON":         {200, "event: A\ndata: nonsense\n\n", domain.Internal, 1},
		"no position":     {200, "event: A\ndata: {}\n\n", domain.Invalid, 1},
		"too long": {
			200, "data: " + strings.Repeat("x", eventMax) + "\n\n", domain.TooLarge, 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			tries := 0
			c, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				tries++
				problemOut(w, x.code, x.body)
			})
			err := c.Watch(t.Context(), Watched{}, func(Event) error { return nil })
			if !domain.IsKind(err, x.kind) || tries != x.tries {
				t.Errorf("%v, %d tries", err, tries)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, ": weft\n\n")
		_ = http.NewResponseController(w).Flush()
		cancel()
		<-r.Context().Done()
	})
	if err := c.Watch(ctx, Watched{}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestOnlineReadsItsEvents plays a volume that comes online with event 8: each reading asks for a
// state that holds the event it follows from.
func TestOnlineReadsItsEvents(t *testing.T) {
	var asked []string
	c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/watch" {
			eventOut(w, 7)
			eventOut(w, 8)
			return
		}
		least := r.URL.Query().Get("min_position")
		asked = append(asked, least)
		state := "placing"
		if least == "8" {
			state = "online"
		}
		_, _ = fmt.Fprintf(w, `{"name":"web","volumes":[{"name":"a","state":"online"},`+
			`{"name":"b","state":%q}]}`, state)
	})
	a, err := c.Online(t.Context(), 6, "", "web", "")
	if err != nil || a.Volumes[1].State != "online" {
		t.Fatal(a, err)
	}
	if want := []string{"6", "7", "8"}; !slices.Equal(asked, want) {
		t.Errorf("asked %q, want %q", asked, want)
	}
	asked = nil
	if _, err := c.Online(t.Context(), 6, "", "web", "a"); err != nil || len(asked) != 1 {
		t.Errorf("%v, asked %q", err, asked)
	}
}

// TestWaitsSayWhatIsMissing ends the caller's patience while a volume is placed and while one goes.
func TestWaitsSayWhatIsMissing(t *testing.T) {
	// impatient gives a client whose caller gives up when the watch begins.
	impatient := func(t *testing.T) (context.Context, *Client) {
		ctx, cancel := context.WithCancel(t.Context())
		t.Cleanup(cancel)
		c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v1/watch" {
				cancel()
				<-r.Context().Done()
				return
			}
			_, _ = io.WriteString(w, `{"name":"web","volumes":[{"name":"a","state":"placing",`+
				`"compliance":{"reason":"no room"}}]}`)
		})
		return ctx, c
	}
	t.Run("online", func(t *testing.T) {
		ctx, c := impatient(t)
		_, err := c.Online(ctx, 1, "", "web", "")
		var e *domain.Error
		if !errors.As(err, &e) || !errors.Is(err, context.Canceled) || e.Ref != "volume/web/a" ||
			!strings.Contains(e.Msg, "placing, no room") || !strings.Contains(e.Remedy, "weft why") {
			t.Errorf("%#v", err)
		}
	})
	for _, v := range []string{"", "a"} {
		t.Run("gone "+v, func(t *testing.T) {
			ctx, c := impatient(t)
			if err := c.Gone(ctx, 1, "", "web", v); !errors.Is(err, context.Canceled) {
				t.Errorf("%v", err)
			}
		})
	}
	t.Run("gone already", func(t *testing.T) {
		_, c := impatient(t)
		if err := c.Gone(t.Context(), 1, "", "web", "b"); err != nil {
			t.Errorf("%v", err)
		}
	})
}
