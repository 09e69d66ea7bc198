package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"go.uber.org/goleak"

	"weft/domain"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestHelpTeaches holds that every command says what it does in a line and in full, shows an
// example, and that every example calls a command that exists with flags that it has.
func TestHelpTeaches(t *testing.T) {
	root := New(Programs{Version: "test"})
	var visit func(*cobra.Command)
	visit = func(c *cobra.Command) {
		if c.Name() != "completion" && c.Name() != "help" {
			if c.Short == "" || c.Long == "" || c.Example == "" {
				t.Errorf("%s: Short, Long and Example are needed", c.CommandPath())
			}
			for line := range strings.Lines(c.Example) {
				exampleRuns(t, c, line)
			}
			for _, sub := range c.Commands() {
				visit(sub)
			}
		}
	}
	visit(root)
}

func exampleRuns(t *testing.T, from *cobra.Command, line string) {
	t.Helper()
	words := strings.Fields(strings.NewReplacer("NAME", "x").Replace(line))
	if len(words) == 0 || words[0] != "weft" {
		return // a line of a document
	}
	for i, w := range words {
		if strings.HasPrefix(w, "#") || strings.HasPrefix(w, "<") {
			words = words[:i]
			break
		}
	}
	root := New(Programs{})
	cmd, args, err := root.Find(words[1:])
	if err == nil {
		err = cmd.ParseFlags(args)
	}
	if err == nil {
		err = cmd.Args(cmd, cmd.Flags().Args())
	}
	if err != nil {
		t.Errorf("%s: example %q: %v", from.CommandPath(), line, err)
	}
}

// TestExitCodes holds the table from errors to exit codes (L3).
func TestExitCodes(t *testing.T) {
	for _, x := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("x"), 1},
		{&domain.Error{Kind: domain.NotFound}, 1},
		{&domain.Error{Kind: domain.NoSpace}, 1},
		{&domain.Error{Kind: domain.Unavailable}, 1},
		{fmt.Errorf("x: %w", &domain.Error{Kind: domain.Invalid}), 2},
		{&domain.Error{Kind: domain.Unsupported}, 2},
		{&usage{errors.New("x"), "weft"}, 2},
		{&domain.Error{Kind: domain.Exists}, 3},
		{&domain.Error{Kind: domain.Conflict}, 3},
		{&domain.Error{Kind: domain.Locked}, 3},
		{&domain.Error{Kind: domain.Corrupt}, 4},
		{&degraded{"x"}, 4},
		{&domain.Error{Kind: domain.Aborted, Err: context.DeadlineExceeded}, 5},
		{&domain.Error{Kind: domain.Aborted, Err: context.Canceled}, 1},
	} {
		if got := ExitCode(x.err); got != x.want {
			t.Errorf("%v exits with %d, want %d", x.err, got, x.want)
		}
	}
}

// TestErrorsOnTheScreen holds the lines of an error, and that foreign text cannot move the cursor.
func TestErrorsOnTheScreen(t *testing.T) {
	err := domain.Wrap(&domain.Error{
		Op: "volume.Create", Kind: domain.Invalid, Ref: "app/web", Remedy: "a smaller one",
		Violations: []domain.Violation{{Path: "size", Reason: "3\x1b[2J\nbytes"}, {Reason: "no name"}},
	}, "serve", "outer")
	var b bytes.Buffer
	printError(&b, err, false)
	want := "error: app/web\n  - size: 3 [2J bytes\n  - no name\ntry: a smaller one\n"
	if b.String() != want {
		t.Errorf("got %q\nwant %q", b.String(), want)
	}
	b.Reset()
	printError(&b, err, true)
	want = `{"error":{"kind":"invalid","exit":2,"ref":"app/web","message":"app/web",` +
		`"remedy":"a smaller one","violations":[{"path":"size","reason":"3\u001b[2J\nbytes"},` +
		`{"reason":"no name"}]}}` + "\n"
	if b.String() != want {
		t.Errorf("got %s\nwant %s", b.String(), want)
	}
	for args, want := range map[string]bool{
		"get volumes -o json": true, "get volumes -ojson": true, "get volumes": false,
		"get --output=json x": true, "get -o yaml": false, "get -- -o json": false, "get -o": false,
	} {
		if got := wantsJSON(strings.Fields(args)); got != want {
			t.Errorf("%q: %t", args, got)
		}
	}
}

// TestForms shows one answer in every form.
func TestForms(t *testing.T) {
	l := listing{
		value: struct {
			Name  string   `json:"name"`
			ETag  string   `json:"etag"`
			Items []string `json:"items"`
			Size  int64    `json:"size"`
			URL   string   `json:"url"`
		}{"disk1", `"0.1"`, []string{}, 1 << 40, "a&b"},
		names: []string{"volume/web/disk1"},
		head:  []column{{"NAME", false}, {"STATE", false}, {"ID", true}},
		rows:  [][]string{{"dïsk1", "online", "1"}, {"d", "offline", "22"}},
	}
	for form, want := range map[string]string{
		"json": "{\n  \"name\": \"disk1\",\n  \"etag\": \"\\\"0.1\\\"\",\n  \"items\": [],\n" +
			"  \"size\": 1099511627776,\n  \"url\": \"a&b\"\n}\n",
		"yaml": "name: disk1\netag: '\"0.1\"'\nitems: []\nsize: 1099511627776\nurl: a&b\n",
		"name": "volume/web/disk1\n",
		"table": "NAME   STATE\ndïsk1  \x1b[32monline\x1b[0m\n" +
			"d      \x1b[31moffline\x1b[0m\n",
		"wide": "NAME   STATE    ID\ndïsk1  \x1b[32monline\x1b[0m   1\n" +
			"d      \x1b[31moffline\x1b[0m  22\n",
	} {
		var b bytes.Buffer
		if err := show(&b, form, l, true); err != nil || b.String() != want {
			t.Errorf("%s: %v\ngot  %q\nwant %q", form, err, b.String(), want)
		}
	}
	for n, want := range map[domain.Bytes]string{
		0: "0B", 1023: "1023B", 1536: "1.5KiB", 1 << 30: "1GiB", 3208123550: "3.0GiB",
	} {
		if got := rounded(n); got != want {
			t.Errorf("%d is shown as %s, want %s", int64(n), got, want)
		}
	}
}

// cli runs one command line and gives what came of it.
func cli(env map[string]string, in string, args ...string) (code int, out, errs string) {
	var o, e bytes.Buffer
	code = Main(context.Background(), Programs{
		Version: "test", Env: func(k string) string { return env[k] },
		NewToken: func(dir string) (string, error) { return "new of " + dir, nil },
	}, args, strings.NewReader(in), &o, &e)
	return code, o.String(), e.String()
}

// TestConnection holds where address and token come from, and that a token is given to no other
// node than its own.
func TestConnection(t *testing.T) {
	var got string
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Get("Authorization")
		_, _ = fmt.Fprint(w, `{"items":[]}`)
	})
	mine, other := httptest.NewServer(h), httptest.NewServer(h)
	defer mine.Close()
	defer other.Close()
	state := t.TempDir()
	dir := filepath.Join(state, "elsewhere")
	put := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(filepath.Join(dir, "client.json"), `{"api":"`+mine.URL+`","token":"local"}`)
	put(filepath.Join(state, "weft.current"), dir)
	local := map[string]string{"XDG_STATE_HOME": state}
	for _, x := range []struct {
		env  map[string]string
		args []string
		want string
	}{
		{local, nil, "Bearer local"},
		{
			map[string]string{"XDG_STATE_HOME": "/nonexistent"},
			[]string{"--data-dir", dir},
			"Bearer local",
		},
		{local, []string{"--api", strings.TrimPrefix(mine.URL, "http://")}, "Bearer local"},
		{local, []string{"--api", other.URL}, ""},
		{local, []string{"--token", "given"}, "Bearer given"},
		{map[string]string{"WEFT_API": other.URL, "WEFT_TOKEN": "env"}, nil, "Bearer env"},
		{
			map[string]string{"WEFT_API": "http://127.0.0.1:1", "WEFT_TOKEN": "env"},
			[]string{"--api", other.URL, "--token", "given"},
			"Bearer given",
		},
	} {
		got = "nobody called"
		if code, _, errs := cli(x.env, "", append([]string{"get", "nodes"}, x.args...)...); code != 0 {
			t.Errorf("%v %v: %s", x.env, x.args, errs)
		}
		if got != x.want {
			t.Errorf("%v %v: token %q, want %q", x.env, x.args, got, x.want)
		}
	}
	if code, out, _ := cli(local, "", "token"); code != 0 || out != "new of "+dir+"\n" {
		t.Errorf("%d %s", code, out)
	}
	put(filepath.Join(dir, "client.json"), `{`)
	if code, _, errs := cli(local, "", "get", "nodes"); code != ExitDegraded ||
		!strings.Contains(errs, "try: ") {
		t.Errorf("damaged file: %d %s", code, errs)
	}
}

// TestSecretIsRead from standard input or a file, one line of it, and never from an argument.
func TestSecretIsRead(t *testing.T) {
	var body string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b := new(bytes.Buffer)
		_, _ = b.ReadFrom(r.Body)
		body = b.String()
		_, _ = fmt.Fprint(w, `{"name":"s"}`)
	}))
	defer s.Close()
	own := filepath.Join(t.TempDir(), "own")
	if err := os.WriteFile(own, []byte("the target's"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"WEFT_API": s.URL, "WEFT_TOKEN": "x"}
	code, out, errs := cli(env, "a secret of mine\r\nmore\n", "secret", "set", "s", "--user", "u",
		"--own-user", "t", "--own-file", own)
	if code != 0 || out != "secret/s set\n" {
		t.Fatal(code, out, errs)
	}
	want := `{"user":"u","secret":"a secret of mine","own_user":"t","own_secret":"the target's"}`
	if body != want {
		t.Errorf("got %s, want %s", body, want)
	}
	if code, _, errs := cli(env, "", "secret", "set", "s", "--user", "u"); code != ExitInvalid {
		t.Errorf("empty: %d %s", code, errs)
	}
}

// TestStatusIsDegraded holds the exit code of a status that is complete and not good.
func TestStatusIsDegraded(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/health":
			_, _ = fmt.Fprint(w, `{"status":"degraded","reason":"device d failed: I/O"}`)
		case "/v1/apps":
			_, _ = fmt.Fprint(w, `{"items":[{"name":"web","volumes":[{"name":"a","app":"web",`+
				`"state":"offline","compliance":{"state":"violated","reason":"its device failed"}}]}]}`)
		case "/v1/devices":
			_, _ = fmt.Fprint(w, `{"items":[{"path":"/d","corruptions":2}]}`)
		case "/v1/events:verify":
			_, _ = fmt.Fprint(w, `{"sound":false,"checked":"6","bad":"7","why":"checksum"}`)
		default:
			_, _ = fmt.Fprint(w, `{"items":[]}`)
		}
	}))
	defer s.Close()
	env := map[string]string{"WEFT_API": s.URL, "WEFT_TOKEN": "x"}
	code, out, errs := cli(env, "", "status")
	if code != ExitDegraded || errs != "" {
		t.Errorf("%d %s", code, errs)
	}
	for _, want := range []string{
		"Status:   degraded", "device d failed", "2 corrupt blocks", "volume/web/a: its device failed",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
	code, out, _ = cli(env, "", "events", "verify")
	if code != ExitDegraded || !strings.Contains(out, "DAMAGED at position 7: checksum") {
		t.Errorf("%d %s", code, out)
	}
}

// TestRepairTellsWhatItLeft holds that a node which is down and was not checked, and damage that
// nobody can repair, end in exit code 4 and are said in both forms.
func TestRepairTellsWhatItLeft(t *testing.T) {
	down, verdict := "down", `{"sound":true,"checked":"9"}`
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/nodes":
			_, _ = fmt.Fprintf(w, `{"items":[{"name":"a%%d","state":"ready"},{"name":"b","state":%q},`+
				`{"name":"c","state":"removed"}]}`, down)
		case "/v1/nodes/a%d/log:repair", "/v1/nodes/b/log:repair":
			_, _ = fmt.Fprint(w, verdict)
		default:
			http.NotFound(w, r)
		}
	}))
	defer s.Close()
	env := map[string]string{"WEFT_API": s.URL, "WEFT_TOKEN": "x"}
	code, out, errs := cli(env, "", "events", "repair")
	if code != ExitDegraded || !strings.Contains(out, "node/a%d: the log is sound\n") ||
		!strings.Contains(out, "node/b: it is down and was not checked\n") ||
		errs != "" || strings.Contains(out, "node/c") {
		t.Errorf("%d %s %s", code, out, errs)
	}
	verdict = `{"sound":false,"part":"archive","bad":"7","why":"checksum","alone":true,` +
		`"remedy":"restore"}`
	code, out, _ = cli(env, "", "events", "repair", "-o", "json")
	for _, want := range []string{
		`"node": "b"`, `"why": "the node is down"`, `"part": "archive"`, `"bad": "7"`,
		`"remedy": "restore"`,
	} {
		if code != ExitDegraded || !strings.Contains(out, want) {
			t.Errorf("%s is missing in %d\n%s", want, code, out)
		}
	}
	down, verdict = "ready", `{"sound":true,"checked":"9"}`
	if code, out, errs = cli(env, "", "events", "repair", "-o", "json"); code != 0 ||
		strings.Count(out, `"sound": true`) != 2 || !strings.Contains(errs, "node/b: the log is sound") {
		t.Errorf("%d %s %s", code, out, errs)
	}
}

// FuzzManifest holds that no text breaks the reader of manifests, and that what it accepts is
// whole.
func FuzzManifest(f *testing.F) {
	for _, s := range []string{
		"kind: App\nname: web\nvolumes: [{name: a, size: 4MiB}]\n", "---\n---\n", "[1, 2]", "a: &a [*a]",
		"kind: Template\nname: gold\nintent: {availability: {survive: [{domain: node, count: 1}]}}\n",
		"kind: [App]\n", "kind: App\nkind: App\n", "{\"kind\":\"App\",\"name\":\"x\",\"volumes\":null}",
		"kind: App\nname: web\nvolumes: {a: b}\n", "\t", "kind: App\nname: web\n<<: {foo: 1}\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		list, err := readManifest(strings.NewReader(s))
		if err != nil && !domain.IsKind(err, domain.Invalid) && !domain.IsKind(err, domain.TooLarge) {
			t.Fatalf("%v", err)
		}
		for _, o := range list {
			if o.template == nil && o.app == nil || strings.HasSuffix(o.ref(), "/") {
				t.Fatalf("%+v", o)
			}
		}
	})
}
