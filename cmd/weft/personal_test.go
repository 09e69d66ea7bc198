package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"weft/domain"
	"weft/domain/identity"
	"weft/domain/tenancy"
	"weft/eventstore"
)

// What the tests tell the node about a person, none of which is in anything else it writes.
const (
	personName    = "annabel.quux@example.org"
	personSubject = "subject-zyxwv"
	personNote    = "laptop of annabel-quux"
)

// personal finds a text about the person, in clear or as JSON shows bytes.
func personal(b []byte) string {
	for _, text := range []string{personName, personSubject, personNote} {
		if bytes.Contains(b, []byte(text)) || bytes.Contains(b, fmt.Appendf(nil, "%x", text)) {
			return text
		}
	}
	return ""
}

// logHolds reads every record of a node's log and tells which holds a text about the person,
// whether in its payload or in what stands around it.
func logHolds(t *testing.T, n *Node) string {
	t.Helper()
	for r, err := range n.backend.store.ReadAll(t.Context(), 0, eventstore.Forward, domain.Filter{},
		eventstore.NoLimit) {
		if err != nil {
			t.Fatal(err)
		}
		if text := personal(eventstore.AppendRecord(nil, &r)); text != "" {
			return r.Type + " " + r.Position.String() + ": " + text
		}
	}
	return ""
}

// person makes a user with everything that the log ever learns about one, who then does something.
func (c *tester) person() *tester {
	c.t.Helper()
	c.must("POST", "/v1/users", fmt.Sprintf(`{"name":%q}`, personName))
	c.must("POST", "/v1/users/"+personName+"/grant", `{"role":"operator"}`)
	a := c.must("POST", "/v1/tokens", fmt.Sprintf(
		`{"user":%q,"role":"admin","ttl_seconds":3600,"note":%q}`, personName, personNote,
	))
	c.must("POST", "/v1/identity-providers",
		`{"name":"corp","issuer":"https://id.example.org","client_id":"weft"}`)
	c.must("POST", "/v1/users/"+personName+"/link",
		fmt.Sprintf(`{"provider":"corp","subject":%q}`, personSubject))
	me := c.as(a.text("token"))
	me.must("POST", "/v1/templates", `{"name":"mine"}`)
	me.want(me.do("POST", "/v1/tenants", `{"name":"more"}`), 403, "denied")
	return me
}

// under reads all files of a folder, without the ones of the data plane.
func under(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && d.Name() == "devices":
			return filepath.SkipDir
		case d.IsDir():
			return nil
		}
		out[path], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestLogNamesNobody proves that no record of the log, and no file of the node's folder, holds the
// name of a user, their subject at a provider or a note of theirs, whatever they did and were
// refused; that all of it is shown nevertheless; and that two users cannot bear one name.
func TestLogNamesNobody(t *testing.T) {
	dir := t.TempDir()
	n, down := startNode(t, dir)
	c := &tester{t, "http://" + n.api.addr, n.dir.fresh, newHTTP(t)}
	me := c.person()
	if found := logHolds(t, n); found != "" {
		t.Errorf("the log holds %s", found)
	}
	c.want(c.do("POST", "/v1/users", fmt.Sprintf(`{"name":%q}`, personName)), 409, "exists")
	for path, want := range map[string]string{
		"/v1/users": personName, "/v1/tokens": personNote, "/v1/audit": "user/" + personName,
		"/v1/events?types=UserCreated": personName, "/v1/events?types=UserLinked": personSubject,
		"/v1/events?types=TokenIssued": personNote, "/v1/audit/refusals": "user/" + personName,
		"/v1/events?types=TemplateCreated": "user/" + personName,
	} {
		if text := fmt.Sprint(c.must("GET", path, "").body); !strings.Contains(text, want) {
			t.Errorf("%s does not show %s: %s", path, want, text)
		}
	}
	if a := me.must("GET", "/v1/whoami", ""); a.text("name") != personName {
		t.Errorf("whoami: %v", a.body)
	}
	seen := c.watchUntil(t, "TemplateCreated", func() {})
	if !strings.Contains(seen, personName) {
		t.Errorf("the watch shows %s", seen)
	}
	down()
	for path, b := range under(t, dir) {
		if text := personal(b); text != "" {
			t.Errorf("%s holds %s", path, text)
		}
	}
	n, down = startNode(t, dir)
	defer down()
	c = &tester{t, "http://" + n.api.addr, c.token, newHTTP(t)}
	if text := fmt.Sprint(c.must("GET", "/v1/users", "").body); !strings.Contains(text, personName) {
		t.Errorf("after a restart: %s", text)
	}
	if a := c.must("POST", "/v1/events:verify", ""); a.body["sound"] != true {
		t.Errorf("verify: %v", a.body)
	}
}

// TestBrokersAreToldNoNames proves that what an outlet publishes holds no text about a person, also
// where an event from before there were keys has it in clear, and holds the rest.
func TestBrokersAreToldNoNames(t *testing.T) {
	c, err := newCodec(nil)
	if err != nil {
		t.Fatal(err)
	}
	user, text := domain.UserID{UUID: domain.UUID{7}}, domain.Personal{Text: personName}
	sealed := domain.Personal{Box: []byte{1}}
	for _, ev := range []domain.Event{
		&identity.UserCreated{User: user, Name: text},
		&identity.UserLinked{User: user, Subject: text},
		&identity.TokenIssued{Owner: user, Note: text},
		&tenancy.NameTaken{Kind: "user", Name: personName, Object: user.UUID},
		&identity.UserCreated{User: user, Name: sealed},
	} {
		b, err := eventJSON(unnamed(c, ev))
		if err != nil || personal(b) != "" || bytes.Contains(b, []byte(`"name"`)) ||
			!bytes.Contains(b, []byte(user.String())) {
			t.Errorf("%s is published as %s, %v", ev.EventType(), b, err)
		}
	}
	b, err := eventJSON(unnamed(c, &tenancy.NameTaken{Kind: "tenant", Name: "acme"}))
	if err != nil || !bytes.Contains(b, []byte("acme")) {
		t.Errorf("a tenant's name is left out: %s, %v", b, err)
	}
}
