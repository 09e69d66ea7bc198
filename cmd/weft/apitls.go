package main

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"weft/adapters/peer"
	"weft/domain"
)

// secured tells whether the API speaks TLS: where somebody said so, and where its address is
// reached from other machines and nobody said otherwise.
func secured(mode, addr string) bool {
	return mode == "on" || mode != "off" && !loopback(addr)
}

// scheme is how clients write the address of the API.
func scheme(tls bool) string {
	if tls {
		return "https://"
	}
	return "http://"
}

// apiTLS gives the TLS of the API: by the operator's own certificate where there is one, else by
// one of the cluster's authority for every name that this machine is called by. The authority's
// file is empty with the operator's own. Look watches over that until its context ends.
func apiTLS(o Options, id *peer.Identity, addr string, bg *background, log *slog.Logger) (
	cfg *tls.Config, ca string, look func(context.Context), err error,
) {
	cfg, look = id.Portal(namesOf(addr)), func(context.Context) {}
	if o.APICert == "" {
		_, _, ca = id.Paths()
	} else {
		own := &certFile{cert: o.APICert, key: o.APIKey, bg: bg, log: log}
		if _, err := own.certificate(nil); err != nil {
			return nil, "", nil, &domain.Error{
				Op: "serve", Kind: domain.Invalid, Ref: o.APICert, Err: err,
				Msg:    "the API's certificate and key",
				Remedy: "give PEM files that belong together as --api-cert and --api-key",
			}
		}
		cfg.GetCertificate, look = own.certificate, own.look
	}
	cfg.NextProtos = []string{"h2", "http/1.1"}
	return cfg, ca, look, nil
}

// namesOf lists what a port's clients may call it. One that listens everywhere has all addresses of
// the machine.
func namesOf(addr string) []string {
	names := hostsOf(reachable(addr))
	host, _, _ := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); ip == nil || !ip.IsUnspecified() {
		return names
	}
	list, _ := net.InterfaceAddrs() // without them the names are left
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLoopback() {
			names = append(names, n.IP.String())
		}
	}
	return names
}

// certFile is a certificate that its operator renews by replacing the files. It is safe for many.
type certFile struct {
	cert, key string
	bg        *background // shows what cannot be loaded, and a certificate that has run out
	log       *slog.Logger

	mu     sync.Mutex
	loaded *tls.Certificate
	at     time.Time // when the file of the certificate changed last, as it was loaded
	failed time.Time // the same, of files that could not be loaded
	why    error     // these could not; nil: what is loaded is what stands there
}

// What is shown of a certFile, and how often it is looked at while nobody calls.
const (
	apiCertificate = "the API's certificate"
	certLookEvery  = 10 * time.Second
)

// look looks at the files until the context ends, so that what is wrong with them shows before a
// client meets it.
func (c *certFile) look(ctx context.Context) {
	for ctx.Err() == nil {
		pair, err := c.certificate(nil)
		c.judge(pair, err, time.Now())
		pause(ctx, certLookEvery)
	}
}

// judge shows or forgets a trouble by the certificate in use.
func (c *certFile) judge(pair *tls.Certificate, err error, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		err = c.why
	}
	if err == nil && pair.Leaf != nil && now.After(pair.Leaf.NotAfter) {
		err = domain.Errorf(domain.Expired, "it ran out at %s; replace %s and %s",
			pair.Leaf.NotAfter.UTC().Format(time.RFC3339), c.cert, c.key)
	}
	c.bg.note(apiCertificate, 0, err)
}

// certificate implements tls.Config.GetCertificate. Files that cannot be loaded leave the last
// certificate in use, and are told once.
func (c *certFile) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	info, err := os.Stat(c.cert)
	if err == nil {
		at := info.ModTime()
		if c.loaded != nil && at.Equal(c.at) {
			c.why = nil
			return c.loaded, nil
		}
		if c.loaded != nil && at.Equal(c.failed) {
			return c.loaded, nil
		}
		var pair tls.Certificate
		if pair, err = tls.LoadX509KeyPair(c.cert, c.key); err == nil {
			c.loaded, c.at, c.why = &pair, info.ModTime(), nil
			return c.loaded, nil
		}
	}
	if c.loaded == nil {
		return nil, err
	}
	if c.why == nil {
		c.log.Warn("the API's new certificate cannot be loaded, the last one stays", "err", err)
	}
	c.why = domain.Wrap(err, "loading the API's certificate", c.cert)
	if info != nil {
		c.failed = info.ModTime()
	}
	return c.loaded, nil
}
