package main

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

//go:embed jobs
var scripts embed.FS

// packages are what stands in the guest beyond Debian's smallest system.
var packages = []string{
	"linux-image-amd64", "kmod", "udev", "iproute2", "util-linux", "e2fsprogs", "fio",
	"open-iscsi", "sg3-utils", "multipath-tools", "nbd-client",
}

// modules are the drivers that are kept, with what they need.
var modules = []string{
	"virtio_pci", "virtio_net", "virtio_rng", "iscsi_tcp", "sd_mod", "sg", "dm_multipath",
	"dm_round_robin", "dm_service_time", "scsi_dh_alua", "nbd", "ext4", "crc32c_generic",
	"crc32c_intel",
}

// image is a guest that can be booted.
type image struct{ kernel, root string }

// image gives the kept image, or makes it. Its name is a hash of all that it is made of.
func (o options) image(ctx context.Context) (image, error) {
	h := sha256.New()
	_, _ = fmt.Fprintln(h, packages, modules)
	files, err := scripts.ReadDir("jobs")
	if err != nil {
		return image{}, err
	}
	for _, f := range files {
		b, err := scripts.ReadFile("jobs/" + f.Name())
		if err != nil {
			return image{}, err
		}
		_, _ = h.Write(b)
	}
	dir := filepath.Join(o.dir, hex.EncodeToString(h.Sum(nil))[:12])
	img := image{kernel: filepath.Join(dir, "vmlinuz"), root: filepath.Join(dir, "root.cpio.gz")}
	if _, err := os.Stat(img.root); err == nil {
		return img, nil
	}
	_, _ = fmt.Fprintln(o.log, "guest: making the image in", dir, "(some minutes, once)")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return img, err
	}
	return img, o.build(ctx, img)
}

// build makes the image of packages of the release that this machine has.
func (o options) build(ctx context.Context, img image) error {
	for _, p := range []string{"mmdebstrap", "cpio", "apt-get"} {
		if _, err := exec.LookPath(p); err != nil {
			return fmt.Errorf("%w: apt-get install mmdebstrap cpio qemu-system-x86", err)
		}
	}
	if os.Getuid() != 0 {
		return errors.New("the image is made by root")
	}
	work, err := os.MkdirTemp(filepath.Dir(img.root), "root.")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	args, err := debian(ctx)
	if err != nil {
		return err
	}
	if err := o.command(ctx, "", "mmdebstrap", append([]string{
		"--variant=minbase", "--mode=root", "--format=directory",
		"--aptopt=APT::Install-Recommends false",
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
		"--dpkgopt=path-exclude=/usr/share/locale/*", "--include=" + strings.Join(packages, ","),
	}, args(work)...)...); err != nil {
		return err
	}
	for name, mode := range map[string]os.FileMode{
		"init": 0o755, "lib.sh": 0o644, "iscsi.sh": 0o644, "nbd.sh": 0o644,
	} {
		b, err := scripts.ReadFile("jobs/" + name)
		if err == nil {
			err = os.WriteFile(filepath.Join(work, name), b, mode)
		}
		if err != nil {
			return err
		}
	}
	return o.pack(ctx, work, img)
}

// debian says where the packages come from: the archive that this machine's own come from.
func debian(ctx context.Context) (func(root string) []string, error) {
	ask := func(name string, args ...string) string {
		out, err := exec.CommandContext(ctx, name, args...).Output()
		if err != nil {
			return ""
		}
		line, _, _ := strings.Cut(string(out), "\n")
		return strings.TrimSpace(line)
	}
	suite := ask("sh", "-c", `. /etc/os-release && echo "$VERSION_CODENAME"`)
	mirror := ask("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages",
		"Origin: Debian", "Label: Debian", "Codename: "+suite)
	if suite == "" || mirror == "" {
		return nil, errors.New("apt knows no archive of Debian: apt-get update first")
	}
	var options []string
	for _, scheme := range []string{"http", "https"} {
		key := "Acquire::" + scheme + "::Proxy"
		if proxy := ask("apt-config", "dump", "--format", "%v%n", key); proxy != "" {
			options = append(options, fmt.Sprintf("--aptopt=%s %q", key, proxy))
		}
	}
	return func(root string) []string { return append(options, suite, root, mirror) }, nil
}

// pack takes what is not needed out of the root and writes kernel and initramfs.
func (o options) pack(ctx context.Context, root string, img image) error {
	const script = `set -e
cd "$1"
version=$(ls lib/modules | head -1)
cp boot/vmlinuz-"$version" "$2"
keep=$(mktemp)
for m in $4; do modprobe -d . -S "$version" --show-depends "$m" 2>/dev/null || true; done |
	awk '$1 == "insmod" { print $2 }' | sed 's,//*,/,g; s,^\./,,' | sort -u > "$keep"
find lib/modules/"$version"/kernel -name '*.ko*' | sort > "$keep.all"
sed 's,.*/,,' "$keep" | sort -u > "$keep.names"
while read -r f; do grep -qx "${f##*/}" "$keep.names" || rm "$f"; done < "$keep.all"
rm -f "$keep" "$keep.all" "$keep.names"
depmod -b . "$version"
rm -rf boot/* var/cache/* var/lib/apt/lists/* usr/share/doc usr/share/locale usr/share/info
find . -xdev | cpio -o -H newc --quiet | gzip -1 > "$3.new"
mv "$3.new" "$3"
`
	abs, err := filepath.Abs(img.root)
	if err != nil {
		return err
	}
	kernel, err := filepath.Abs(img.kernel)
	if err != nil {
		return err
	}
	return o.command(ctx, script, "sh", "-s", root, kernel, abs, strings.Join(modules, " "))
}

// command runs a program with a text on its standard input, and shows what it says when it fails.
func (options) command(ctx context.Context, input, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out[max(0, len(out)-4000):])
	}
	return nil
}
