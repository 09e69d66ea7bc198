package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestCertificateIsReplaced proves that an operator's certificate is taken anew when its file
// changes, that one which cannot be loaded leaves the last in use and is told once, and that this,
// and one that has run out, is shown as failing for as long as it lasts.
func TestCertificateIsReplaced(t *testing.T) {
	dir := t.TempDir()
	var log bytes.Buffer
	c := &certFile{
		cert: filepath.Join(dir, "c.pem"), key: filepath.Join(dir, "k.pem"),
		log: slog.New(slog.NewTextHandler(&log, nil)), bg: newBackground(),
	}
	shows := func(now time.Time, want string) {
		t.Helper()
		pair, err := c.certificate(nil)
		c.bg.now = time.Now
		c.judge(pair, err, now)
		c.bg.now = func() time.Time { return time.Now().Add(failingShown) }
		list := c.bg.list()
		if want == "" && len(list) > 0 || want != "" && (len(list) != 1 ||
			list[0].What != apiCertificate || !strings.Contains(list[0].Error, want)) {
			t.Errorf("failing: %+v, want %q", list, want)
		}
	}
	if _, err := c.certificate(nil); err == nil {
		t.Fatal("no file is a certificate")
	}
	at := time.Unix(1e9, 0)
	put := func(cert, key []byte) {
		t.Helper()
		at = at.Add(time.Second)
		for path, b := range map[string][]byte{c.key: key, c.cert: cert} {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chtimes(c.cert, at, at); err != nil {
			t.Fatal(err)
		}
	}
	serves := func(serial int64) {
		t.Helper()
		got, err := c.certificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		x, err := x509.ParseCertificate(got.Certificate[0])
		if err != nil || x.SerialNumber.Int64() != serial {
			t.Fatalf("certificate %v, want %d, %v", x.SerialNumber, serial, err)
		}
	}
	put(selfSigned(t, 1))
	serves(1)
	put(selfSigned(t, 2))
	serves(2)
	_, other := selfSigned(t, 3)
	cert, _ := selfSigned(t, 4)
	put(cert, other)
	for range 3 {
		serves(2)
		shows(at, "private key")
	}
	if n := strings.Count(log.String(), "cannot be loaded"); n != 1 {
		t.Errorf("told %d times", n)
	}
	put(selfSigned(t, 5))
	serves(5)
	shows(time.Now(), "")
	shows(time.Now().Add(2*time.Hour), "ran out")
	shows(time.Now(), "")
	if err := os.Remove(c.cert); err != nil {
		t.Fatal(err)
	}
	serves(5)
	shows(time.Now(), "no such file")
	put(selfSigned(t, 6))
	serves(6)
	shows(time.Now(), "")
}

// selfSigned makes a certificate and its key as PEM.
func selfSigned(t *testing.T, serial int64) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, x, x, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}

// TestSecured proves that an API which others reach is never plain unless somebody said so.
func TestSecured(t *testing.T) {
	for _, c := range []struct {
		mode, addr string
		want       bool
	}{
		{"auto", "127.0.0.1:7780", false},
		{"auto", "[::1]:0", false},
		{"on", "127.0.0.1:0", true},
		{"auto", "0.0.0.0:7780", true},
		{"auto", "192.0.2.7:7780", true},
		{"", "192.0.2.7:1", true},
		{"auto", ":7780", true},
		{"auto", "node1:7780", true},
		{"off", "0.0.0.0:7780", false},
	} {
		if got := secured(c.mode, c.addr); got != c.want {
			t.Errorf("%s at %s: %v", c.mode, c.addr, got)
		}
	}
}
