package peer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"sync"
	"time"

	"weft/domain"
)

// Portal gives the TLS of a port that people's tools reach: a certificate of the cluster's
// authority for these host names and addresses. It lives in memory, as long as a node's own, and
// the next handshake after RenewAfter makes a new one. Clients are told to trust the authority's
// file.
func (id *Identity) Portal(hosts []string) *tls.Config {
	p := &portal{id: id, hosts: hosts}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, // what the clients of others speak
		NextProtos: []string{"h2"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return p.certificate()
		},
		Time: id.now,
	}
}

type portal struct {
	id    *Identity
	hosts []string

	mu   sync.Mutex
	cert *tls.Certificate
	made time.Time
}

func (p *portal) certificate() (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.id.now()
	if p.cert != nil && now.Before(p.made.Add(RenewAfter)) && !now.Before(p.made) {
		return p.cert, nil
	}
	ca, err := parseCert(p.id.ca.Cert)
	if err != nil {
		return nil, err
	}
	signer, err := parseKey(p.id.ca.Key)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, domain.Wrap(err, "peer.Portal", "")
	}
	t := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "weft " + p.id.Node.String()},
		NotBefore: now.Add(-skew), NotAfter: now.Add(CertLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, h := range p.hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else if h != "" {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, ca, key.Public(), signer)
	if err != nil {
		return nil, domain.Wrap(err, "peer.Portal", "")
	}
	p.cert = &tls.Certificate{Certificate: [][]byte{der, ca.Raw}, PrivateKey: key}
	p.made = now
	return p.cert, nil
}
