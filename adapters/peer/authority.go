package peer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"strings"
	"time"

	"weft/domain"
)

// Lives of certificates.
const (
	// AuthorityLife is how long a cluster's authority is good.
	AuthorityLife = 20 * 365 * 24 * time.Hour
	// CertLife is how long a node's certificate is good.
	CertLife = 24 * time.Hour
	// RenewAfter is the age at which a node gets its next one.
	RenewAfter = 8 * time.Hour
	// skew is how far clocks of nodes may differ before a new certificate is not good yet.
	skew = 5 * time.Minute
)

// Authority is the cluster's own authority: its certificate and key as PEM.
type Authority struct{ Cert, Key []byte }

// NewAuthority makes the authority of a new cluster.
func NewAuthority(cluster domain.ClusterID, now time.Time) (Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Authority{}, err
	}
	t := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "weft " + cluster.String()},
		NotBefore: now.Add(-skew), NotAfter: now.Add(AuthorityLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return Authority{}, err
	}
	k, err := encodeKey(key)
	return Authority{Cert: encodeCert(der), Key: k}, err
}

// Pin is the fingerprint of an authority's certificate.
func (a Authority) Pin() ([32]byte, error) {
	c, err := parseCert(a.Cert)
	if err != nil {
		return [32]byte{}, err
	}
	return sha256.Sum256(c.Raw), nil
}

// sign gives a node's certificate, with the authority's behind it.
func (a Authority) sign(
	pub crypto.PublicKey, cluster domain.ClusterID, node domain.NodeID, now time.Time,
) ([]byte, error) {
	ca, err := parseCert(a.Cert)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(a.Key)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: node.String()},
		DNSNames: []string{ServerName(cluster)}, URIs: []*url.URL{nodeURI(cluster, node)},
		NotBefore: now.Add(-skew), NotAfter: now.Add(CertLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, ca, pub, key)
	if err != nil {
		return nil, err
	}
	return append(encodeCert(der), a.Cert...), nil
}

// ServerName is the name that every node of a cluster proves.
func ServerName(cluster domain.ClusterID) string { return cluster.String() + ".weft" }

func nodeURI(cluster domain.ClusterID, node domain.NodeID) *url.URL {
	return &url.URL{Scheme: "weft", Host: cluster.String(), Path: "/node/" + node.String()}
}

// nodeOf reads from a certificate, which the handshake has verified, whose it is.
func nodeOf(c *x509.Certificate, cluster domain.ClusterID) (domain.NodeID, error) {
	for _, u := range c.URIs {
		id, ok := strings.CutPrefix(u.Path, "/node/")
		if u.Scheme == "weft" && u.Host == cluster.String() && ok {
			n, err := domain.ParseUUID(id)
			return domain.NodeID{UUID: n}, err
		}
	}
	return domain.NodeID{}, domain.Errorf(domain.Denied, "the certificate names no node of cluster %s",
		cluster)
}

func serial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:])
	return new(big.Int).SetBytes(b[:])
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func parseCert(b []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, domain.Errorf(domain.Corrupt, "no certificate")
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, domain.Errorf(domain.Corrupt, "certificate: %v", err)
	}
	return c, nil
}

func parseKey(b []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, domain.Errorf(domain.Corrupt, "no key")
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, domain.Errorf(domain.Corrupt, "key: %v", err)
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, domain.Errorf(domain.Corrupt, "key of type %T", k)
	}
	return key, nil
}
