package peer

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"testing"
	"time"
)

// handshake connects to a portal by a name and gives the certificate that was shown.
func handshake(t *testing.T, server *tls.Config, roots *x509.CertPool, name string, c *clock) (
	*x509.Certificate, error,
) {
	t.Helper()
	a, b := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s := tls.Server(a, server)
		_ = s.Handshake() // the client's view is judged
		_ = a.Close()
	}()
	s := tls.Client(b, &tls.Config{RootCAs: roots, ServerName: name, Time: c.now})
	err := s.Handshake()
	_ = b.Close()
	<-done
	if err != nil {
		return nil, err
	}
	return s.ConnectionState().PeerCertificates[0], nil
}

// TestPortal proves that people's tools may verify a portal by its names and addresses under the
// cluster's authority and under no other, that the certificate is made anew when it is due and not
// before, and that it is none by which a node could pass.
func TestPortal(t *testing.T) {
	c := newClock()
	ca := authority(t, c)
	id := identity(t, c, ca, one)
	p := id.Portal([]string{"192.0.2.7", "store1", ""})
	first, err := handshake(t, p, id.roots, "store1", c)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := handshake(t, p, id.roots, "192.0.2.7", c); err != nil ||
		!again.Equal(first) {
		t.Errorf("by address: %v", err)
	}
	if _, err := handshake(t, p, id.roots, "store2", c); err == nil {
		t.Error("a name that it does not bear")
	}
	other := identity(t, c, authority(t, c), two)
	if _, err := handshake(t, p, other.roots, "store1", c); err == nil {
		t.Error("another cluster's authority")
	}
	if _, err := nodeOf(first, cluster); err == nil {
		t.Error("the certificate names a node")
	}
	if len(first.ExtKeyUsage) != 1 || first.ExtKeyUsage[0] != x509.ExtKeyUsageServerAuth {
		t.Errorf("uses %v", first.ExtKeyUsage)
	}
	c.advance(RenewAfter + time.Second)
	next, err := handshake(t, p, id.roots, "store1", c)
	if err != nil || next.Equal(first) || !next.NotAfter.After(first.NotAfter) {
		t.Errorf("not renewed: %v", err)
	}
	c.advance(CertLife * 30)
	if _, err := handshake(t, p, id.roots, "store1", c); err != nil {
		t.Errorf("a month later: %v", err)
	}
}
