package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"weft/adapters/cli"
	"weft/adapters/client"
	"weft/domain"
)

// What the demonstration makes.
const (
	demoTemplate = "gold"
	demoApp      = "demo"
	demoVolume   = "disk1"
	// demoWait is how long the volume may take to come online.
	demoWait = 60 * time.Second
)

// demoDoc is what `weft demo -o json` prints when the volume is ready, on one line.
type demoDoc struct {
	API    string `json:"api"`
	Token  string `json:"token"`
	Volume string `json:"volume"`
	NBD    string `json:"nbd,omitempty"`
	ISCSI  string `json:"iscsi,omitempty"`
}

// demo is `weft demo`.
func demo(ctx context.Context, o cli.DemoOptions) error {
	o.API = vacantOr(o.API, o.APIGiven)
	o.NBD = vacantOr(o.NBD, o.NBDGiven)
	o.ISCSI = vacantOr(o.ISCSI, o.ISCSIGiven)
	o.Peer = vacantOr(o.Peer, o.PeerGiven)
	o.Events = vacantOr(o.Events, o.EventsGiven)
	r, err := up(ctx, o.ServeOptions)
	if err != nil {
		return err
	}
	defer r.down()
	v, err := r.demoVolume(ctx, o.Size, r.media())
	if err != nil {
		if ctx.Err() != nil {
			return nil // told to stop before it was ready
		}
		return err
	}
	if err := r.announceDemo(o, v); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// vacantOr gives any free port in place of a default one that is taken.
func vacantOr(addr string, given bool) string {
	if given {
		return addr
	}
	l, err := net.Listen("tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return "127.0.0.1:0"
	}
	if err == nil {
		_ = l.Close() // it held nothing
	}
	return addr
}

// demoVolume makes what is not there yet, the way any client would, and waits until the volume is
// online. Whatever is there stays as it is.
func (r *running) demoVolume(ctx context.Context, size domain.Bytes, media string) (
	client.Volume, error,
) {
	var none client.Volume
	if r.token == "" {
		return none, &domain.Error{
			Op: "demo", Kind: domain.Denied, Ref: r.dir.path,
			Msg:    "this folder no longer keeps the administrator's token",
			Remedy: "make a new one with: weft token --data-dir " + r.dir.path,
		}
	}
	c, err := client.New(client.Config{
		URL: r.api, Token: r.token, CA: r.Node.api.ca, Agent: "weft-demo/" + version(),
	})
	if err != nil {
		return none, err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, demoWait)
	defer cancel()
	_, err = c.CreateTemplate(ctx, client.TemplateBody{
		Name: demoTemplate, Description: "one copy on " + media,
		Intent: &client.Intent{
			Availability: &client.Availability{Replicas: 1},
			Placement:    &client.Placement{Capacity: media},
		},
	}, client.Change{})
	if err != nil && !domain.IsKind(err, domain.Exists) {
		return none, domain.Wrap(err, "demo", "")
	}
	body := client.VolumeBody{Name: demoVolume, Size: size}
	a, err := c.CreateApp(ctx, client.AppBody{
		Name: demoApp, Template: demoTemplate, Volumes: []client.VolumeBody{body},
	}, client.Change{})
	if domain.IsKind(err, domain.Exists) {
		if a, err = c.App(ctx, demoApp, client.At{}); err == nil && !holds(a.Value, demoVolume) {
			a, err = c.AddVolume(ctx, demoApp, body, client.Change{})
		}
	}
	if err != nil {
		return none, domain.Wrap(err, "demo", "")
	}
	app, err := c.Online(ctx, a.Position, "", demoApp, demoVolume)
	if err != nil {
		return none, domain.Wrap(err, "demo", "")
	}
	for _, v := range app.Volumes {
		if v.Name == demoVolume {
			return v, nil
		}
	}
	return none, domain.Errorf(domain.NotFound, "the volume %s/%s is gone", demoApp, demoVolume)
}

func holds(a client.App, volume string) bool {
	for _, v := range a.Volumes {
		if v.Name == volume {
			return true
		}
	}
	return false
}

// announceDemo says that the volume is ready, and how to attach it.
func (r *running) announceDemo(o cli.DemoOptions, v client.Volume) error {
	if o.JSON {
		return printLine(o.Out, demoDoc{
			API: r.api, Token: r.token, Volume: v.App + "/" + v.Name, NBD: v.NBD, ISCSI: v.ISCSI,
		})
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Weft %s serves the volume %s/%s, %s.\n\n", version(), v.App, v.Name, v.Size)
	r.facts(&b)
	fmt.Fprintf(&b, "\nThe volume:\n  %s\n  %s\n\nUse it from another terminal:\n", v.NBD, v.ISCSI)
	for _, line := range cli.Attach(v.NBD, v.ISCSI) {
		b.WriteString("  " + line + "\n")
	}
	b.WriteString("\nSee what Weft did:\n  weft get volumes -o wide\n  weft why volume/" +
		v.App + "/" + v.Name + "\n  weft events list\n" +
		"\nCtrl-C stops it; the same command continues with the same data.\n")
	_, err := io.WriteString(o.Out, b.String())
	return err
}
