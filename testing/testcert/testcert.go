// Package testcert makes certificates for servers of tests on the loopback interface.
package testcert

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
	"sync"
	"testing"
	"time"
)

// life of a certificate, in either direction from now.
const life = time.Hour

type pair struct {
	config *tls.Config
	ca     []byte
}

var once = sync.OnceValues(issue)

// issue makes an authority, and a server certificate that it signs: clients written in Rust take no
// authority for a server.
func issue() (pair, error) {
	now := time.Now()
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: now.Add(-life), NotAfter: now.Add(life), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "test server"},
		NotBefore: now.Add(-life), NotAfter: now.Add(life),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{
			x509.ExtKeyUsageServerAuth,
		},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
	}
	authority, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair{}, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair{}, err
	}
	ca, err := x509.CreateCertificate(rand.Reader, root, root, &authority.PublicKey, authority)
	if err != nil {
		return pair{}, err
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, root, &key.PublicKey, authority)
	if err != nil {
		return pair{}, err
	}
	return pair{
		config: &tls.Config{
			Certificates: []tls.Certificate{{Certificate: [][]byte{der, ca}, PrivateKey: key}},
			MinVersion:   tls.VersionTLS12,
		},
		ca: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca}),
	}, nil
}

// Loopback gives the configuration of a server at 127.0.0.1 or localhost, and a file in the test's
// folder with the authority that its clients are to trust.
func Loopback(t testing.TB) (server *tls.Config, authority string) {
	t.Helper()
	p, err := once()
	if err != nil {
		t.Fatal(err)
	}
	authority = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(authority, p.ca, 0o600); err != nil {
		t.Fatal(err)
	}
	return p.config.Clone(), authority
}
