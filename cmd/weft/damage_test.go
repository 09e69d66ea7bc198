package main

import (
	"bytes"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"weft/domain"
)

// TestDamagedLog proves that one flipped bit in a stored event is reported with its position, by
// the start that meets it and by the check of a stopped node, and that the record is never shown.
func TestDamagedLog(t *testing.T) {
	dir := t.TempDir()
	n, down := startNode(t, dir)
	c := &tester{t, "http://" + n.api.addr, n.dir.fresh, &http.Client{Transport: &http.Transport{}}}
	t.Cleanup(c.http.CloseIdleConnections)
	c.want(c.do("POST", "/v1/apps", shopBody), 201, "")
	down()
	v, err := verifyLog(t.Context(), dir)
	if err != nil || !v.Sound {
		t.Fatalf("before: %+v, %v", v, err)
	}
	path := filepath.Join(dir, "log", "member", "snap", "db")
	db, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(db, []byte("AppInstanceCreated"))
	if at < 0 {
		t.Fatal("the event is not in the database")
	}
	db[at+30] ^= 4
	if err := os.WriteFile(path, db, 0o600); err != nil {
		t.Fatal(err)
	}
	v, err = verifyLog(t.Context(), dir)
	if err != nil || v.Sound || v.Bad == "" {
		t.Fatalf("after: %+v, %v", v, err)
	}
	_, _, err = Start(t.Context(), Options{
		DataDir: dir, API: "127.0.0.1:0", NBD: "off", ISCSI: "off", Peer: "127.0.0.1:0",
		Logger: slog.New(slog.DiscardHandler),
	})
	if !domain.IsKind(err, domain.Corrupt) || !strings.Contains(err.Error(), "position "+v.Bad) {
		t.Errorf("start: %v, want position %s", err, v.Bad)
	}
}
