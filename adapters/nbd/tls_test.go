package nbd

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authority makes a certificate that signs itself and serves all sides, in the files which the
// reference client looks for.
func authority(t *testing.T) (cert tls.Certificate, pool *x509.CertPool, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, DNSNames: []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	dir = t.TempDir()
	for name, b := range map[string][]byte{
		"ca-cert.pem": certPEM, "client-cert.pem": certPEM, "client-key.pem": keyPEM,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if cert, err = tls.X509KeyPair(certPEM, keyPEM); err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	return cert, pool, dir
}

// TestTLS proves that TLS with client certificates can be required, that nothing is told before it,
// that what was agreed on before is forgotten, and that the reference client gets through.
func TestTLS(t *testing.T) {
	cert, pool, dir := authority(t)
	s, err := New(Config{RequireTLS: true, TLS: &tls.Config{
		Certificates: []tls.Certificate{cert}, ClientCAs: pool, MinVersion: tls.VersionTLS12,
		ClientAuth: tls.RequireAndVerifyClientCert,
	}})
	if err != nil {
		t.Fatal(err)
	}
	disk := holes(t, 3)
	if err := s.SetExports([]Export{{Name: "a", Disk: disk}}); err != nil {
		t.Fatal(err)
	}
	addr := listen(t, s, "tcp", "127.0.0.1:0")
	connect := func() *client {
		nc, err := net.Dial("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = nc.Close() })
		c := &client{t: t, nc: nc}
		c.hello(3)
		return c
	}
	c := connect()
	for _, option := range []uint32{optList, optGo, optStructuredReply} {
		if _, last := c.option(option, nil); last != repErrTLSReqd {
			t.Errorf("option %d before TLS: %#x", option, last)
		}
	}
	if _, last := c.option(optStartTLS, nil); last != repAck {
		t.Fatalf("STARTTLS: %#x", last)
	}
	c.nc = tls.Client(c.nc, &tls.Config{
		RootCAs: pool, ServerName: "localhost", Certificates: []tls.Certificate{cert},
	})
	if _, last := c.option(optStartTLS, nil); last != repErrInvalid {
		t.Errorf("TLS in TLS: %#x", last)
	}
	if _, last := c.option(optGo, infoData("a")); last != repAck {
		t.Errorf("go: %#x", last)
	}
	if a := c.ask(0, cmdRead, 0, 1<<20, nil); a.code != 0 || a.body[0] != disk.data[0] {
		t.Errorf("read: %d", a.code)
	}
	ahead := connect()
	ahead.send(uint64(magicOption), uint32(optStartTLS), uint32(0), "ahead")
	ahead.gone()
	name := connect()
	name.send(uint64(magicOption), uint32(optExportName), uint32(1), "a")
	name.gone()
	_, port, _ := net.SplitHostPort(addr.String())
	out := tool(t, "nbdinfo", "--map", "nbds://localhost:"+port+"/a?tls-certificates="+dir)
	if !strings.Contains(out, "14680064") {
		t.Errorf("map by TLS: %s", out)
	}
}
