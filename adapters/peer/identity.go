package peer

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"weft/domain"
)

// The files of an identity. The authority's key is there because every node may come to vote and
// then admits others.
const (
	authorityCert = "ca.pem"
	authorityKey  = "ca.key"
	nodeCert      = "node.pem"
	nodeKey       = "node.key"
)

// Identity is a node's certificate and the authority it trusts, as files of one folder. Other
// libraries read the files; a new certificate replaces the old one in one step.
type Identity struct {
	Cluster domain.ClusterID
	Node    domain.NodeID

	dir   string
	write func(path string, b []byte) error // durably, as a whole
	now   func() time.Time
	ca    Authority
	roots *x509.CertPool
	key   *ecdsa.PrivateKey
	cert  atomic.Pointer[tls.Certificate]
}

// Files says where an identity lives and how its files are written.
type Files struct {
	Dir   string
	Write func(path string, b []byte) error
	Now   func() time.Time
}

// HasIdentity tells whether a folder holds an identity.
func HasIdentity(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, nodeKey))
	return err == nil
}

// CreateIdentity makes a node's identity under an authority and keeps both. The key is written
// last: a folder with it is whole.
func CreateIdentity(
	f Files, ca Authority, cluster domain.ClusterID, node domain.NodeID,
) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	cert, err := ca.sign(key.Public(), cluster, node, f.Now())
	if err != nil {
		return err
	}
	pem, err := encodeKey(key)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(f.Dir, 0o700); err != nil {
		return err
	}
	for _, x := range []struct {
		name string
		b    []byte
	}{{authorityCert, ca.Cert}, {authorityKey, ca.Key}, {nodeCert, cert}, {nodeKey, pem}} {
		if err := f.Write(filepath.Join(f.Dir, x.name), x.b); err != nil {
			return err
		}
	}
	return nil
}

// OpenIdentity reads a node's identity and renews it when it is due. The error is NotFound without
// one, Corrupt for files that do not fit together.
func OpenIdentity(f Files, cluster domain.ClusterID, node domain.NodeID) (*Identity, error) {
	id := &Identity{Cluster: cluster, Node: node, dir: f.Dir, write: f.Write, now: f.Now}
	read := func(name string, to *[]byte) error {
		b, err := os.ReadFile(id.File(name))
		if errors.Is(err, fs.ErrNotExist) {
			return domain.Errorf(domain.NotFound, "%s is missing", name)
		}
		*to = b
		return err
	}
	var key []byte
	err := errors.Join(read(authorityCert, &id.ca.Cert), read(authorityKey, &id.ca.Key),
		read(nodeKey, &key))
	if err != nil {
		return nil, domain.Wrap(err, "peer.OpenIdentity", f.Dir)
	}
	if id.key, err = parseKey(key); err != nil {
		return nil, domain.Wrap(err, "peer.OpenIdentity", nodeKey)
	}
	ca, err := parseCert(id.ca.Cert)
	if err != nil {
		return nil, domain.Wrap(err, "peer.OpenIdentity", authorityCert)
	}
	id.roots = x509.NewCertPool()
	id.roots.AddCert(ca)
	if c, err := tls.LoadX509KeyPair(id.File(nodeCert), id.File(nodeKey)); err == nil {
		id.cert.Store(&c)
	}
	_, err = id.Renew()
	return id, err
}

// File gives the path of one of the identity's files.
func (id *Identity) File(name string) string { return filepath.Join(id.dir, name) }

// Paths gives the files that other libraries read: certificate, key, authority.
func (id *Identity) Paths() (cert, key, ca string) {
	return id.File(nodeCert), id.File(nodeKey), id.File(authorityCert)
}

// Authority gives the cluster's authority.
func (id *Identity) Authority() Authority { return id.ca }

// Renew replaces the certificate when it is older than RenewAfter, and tells whether it did.
// Connections that are open stay; the next handshake shows the new one.
func (id *Identity) Renew() (bool, error) {
	now := id.now()
	if c := id.cert.Load(); c != nil && c.Leaf != nil &&
		now.Before(c.Leaf.NotBefore.Add(skew+RenewAfter)) && now.After(c.Leaf.NotBefore) {
		return false, nil
	}
	return true, id.replace(now)
}

func (id *Identity) replace(now time.Time) error {
	chain, err := id.ca.sign(id.key.Public(), id.Cluster, id.Node, now)
	if err != nil {
		return domain.Wrap(err, "peer.Renew", "")
	}
	if err := id.write(id.File(nodeCert), chain); err != nil {
		return domain.Wrap(err, "peer.Renew", nodeCert)
	}
	c, err := tls.LoadX509KeyPair(id.File(nodeCert), id.File(nodeKey))
	if err != nil {
		return domain.Wrap(err, "peer.Renew", nodeCert)
	}
	id.cert.Store(&c)
	return nil
}

// renewEvery is how often Keep looks.
const renewEvery = time.Minute

// Keep renews the certificate until the context ends. looked hears what came of each look; the old
// certificate is good for many more tries.
func (id *Identity) Keep(ctx context.Context, looked func(error)) {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			_, err := id.Renew()
			looked(err)
		}
	}
}

// Expires tells until when the certificate is good.
func (id *Identity) Expires() time.Time { return id.cert.Load().Leaf.NotAfter }

// serverTLS asks for a certificate without demanding one, because a machine that joins has none;
// one that is shown must be good (T1). The handlers demand it.
func (id *Identity) serverTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ClientCAs: id.roots, ClientAuth: tls.VerifyClientCertIfGiven,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return id.cert.Load(), nil
		},
		Time: id.now, NextProtos: []string{"h2", "http/1.1"},
		SessionTicketsDisabled: true, // a resumed session would not look at the certificate again
	}
}

// clientTLS trusts nodes of this cluster; with a node it accepts that one alone (T4).
func (id *Identity) clientTLS(node domain.NodeID) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: id.roots, ServerName: ServerName(id.Cluster),
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return id.cert.Load(), nil
		},
		Time: id.now,
		VerifyConnection: func(s tls.ConnectionState) error {
			if node.IsZero() {
				return nil
			}
			got, err := nodeOf(s.PeerCertificates[0], id.Cluster)
			if err == nil && got != node {
				err = domain.Errorf(domain.Denied, "node %s answers for node %s", got, node)
			}
			return err
		},
	}
}
