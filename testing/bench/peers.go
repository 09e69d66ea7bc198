package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// toolLimit bounds a program that only sets something up.
const toolLimit = 10 * time.Second

// bridge starts a qemu-nbd that makes an NBD export on a unix socket out of a logical unit: fio as
// Debian builds it speaks no iSCSI.
func bridge(ctx context.Context, dir, name, uri string) (*child, string, error) {
	socket := filepath.Join(dir, name+".sock")
	c, err := spawn(nil, nil, nil, "qemu-nbd", "--format=raw", "--cache=none", "--persistent",
		"--shared=8", "--socket="+socket, "--export-name="+exportName, uri)
	if err != nil {
		return nil, "", err
	}
	if err := c.await(ctx, answers("unix", socket)); err != nil {
		c.stop()
		return nil, "", err
	}
	return c, unixURI(socket), nil
}

func unixURI(socket string) string { return "nbd+unix:///" + exportName + "?socket=" + socket }

func tcpURI(addr string) string { return "nbd://" + addr + "/" + exportName }

// startQEMU serves a file by qemu-nbd over TCP with O_DIRECT.
func startQEMU(ctx context.Context, file, aio string) (*child, string, error) {
	port, err := freePort()
	if err != nil {
		return nil, "", err
	}
	addr := "127.0.0.1:" + strconv.Itoa(port)
	c, err := spawn(nil, nil, nil, "qemu-nbd", "--format=raw", "--cache=none", "--aio="+aio,
		"--persistent", "--shared=8", "--bind=127.0.0.1", "--port="+strconv.Itoa(port),
		"--export-name="+exportName, file)
	if err != nil {
		return nil, "", err
	}
	if err := c.await(ctx, answers("tcp", addr)); err != nil {
		c.stop()
		return nil, "", err
	}
	return c, tcpURI(addr), nil
}

// startTGT serves a file by a tgtd of its own, with O_DIRECT: its control socket is in our folder,
// so it meets no other tgtd.
func startTGT(ctx context.Context, dir, file string) (*child, string, error) {
	port, err := freePort()
	if err != nil {
		return nil, "", err
	}
	env := []string{"TGT_IPC_SOCKET=" + filepath.Join(dir, "tgt")}
	control := strconv.Itoa(port % 32768)
	addr := "127.0.0.1:" + strconv.Itoa(port)
	c, err := spawn(nil, nil, env, "tgtd", "-f", "-C", control, "--iscsi", "portal="+addr)
	if err != nil {
		return nil, "", err
	}
	admin := func(args ...string) error {
		argv := append([]string{"tgtadm", "-C", control, "--lld", "iscsi"}, args...)
		_, err := outputEnv(ctx, toolLimit, env, argv...)
		return err
	}
	ready := func() bool {
		return admin("--op", "show", "--mode", "target") == nil && answers("tcp", addr)()
	}
	err = c.await(ctx, ready)
	for _, args := range [][]string{
		{"--op", "new", "--mode", "target", "--tid", "1", "-T", tgtName},
		{
			"--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "-b", file,
			"--bsoflags", "direct",
		},
		{"--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL"},
	} {
		if err == nil {
			err = admin(args...)
		}
	}
	if err != nil {
		c.stop()
		return nil, "", err
	}
	return c, "iscsi://" + addr + "/" + tgtName + "/1", nil
}

const tgtName = "iqn.2026-01.org.weft:bench-tgt"

// needs lists, by column, the programs that it cannot do without, and the package of each.
var needs = map[string][]string{
	raw: {"fio"}, nbdDurable: {"fio"}, nbdProcess: {"fio"}, nbdUnix: {"fio"},
	iscsiDurable: {"fio", "qemu-nbd", "qemu-img"}, iscsiProcess: {"fio", "qemu-nbd", "qemu-img"},
	qemuNBD: {"fio", "qemu-nbd"}, tgt: {"fio", "qemu-nbd", "qemu-img", "tgtd", "tgtadm"},
}

var packageOf = map[string]string{
	"fio": "fio", "qemu-nbd": "qemu-utils (and qemu-block-extra)",
	"qemu-img": "qemu-utils (and qemu-block-extra)", "tgtd": "tgt", "tgtadm": "tgt",
}

// missing tells which columns cannot be measured here, and why.
func missing() map[string]string {
	out := map[string]string{}
	for _, column := range columns() {
		for _, program := range needs[column] {
			if _, err := exec.LookPath(program); err != nil {
				out[column] = fmt.Sprintf("%s is not installed: package %s", program,
					packageOf[program])
			}
		}
	}
	return out
}

// errNoFIO stops the program: without fio there is nothing to compare with.
var errNoFIO = errors.New("fio is not installed: package fio")
