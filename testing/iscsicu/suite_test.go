package iscsicu_test

import (
	"flag"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"weft/adapters/iscsi"
	"weft/adapters/scsi"
	"weft/domain"
	"weft/testing/iscsicu"
	"weft/testing/iscsicu/ramdisk"
)

// givenURLs lets the suite run against a target that runs already; all its data is lost.
var givenURLs = flag.String("urls", "", "iscsi:// URLs of a running target, comma separated")

// passMin is the bar; every test that can pass without removable or read-only media should.
const passMin = 200

// faulty names the tests of libiscsi 1.19 that are wrong in themselves on a thin 512e unit.
var faulty = map[string]string{
	"iSCSI.iSCSITMF.LUNResetSimpleAsync": "asserts a flag that only its callback sets, before " +
		"the callback can run, and then frees its session twice",
	"SCSI.GetLBAStatus.UnmapSingle": "asks for block i+1 and wants the answer to begin at i+8; " +
		"passes where a physical block is one logical block",
	"SCSI.Sanitize.Reset": "wants an erasure of more than 4 s; passes on a disk that takes " +
		"that long (TestLibiscsiSlowErasure)",
}

// limit is when a test counts as hung. Most take milliseconds; machines are shared and the race
// detector is slow, so only what never ends may reach it.
const limit = 5 * time.Minute

// erasure is how long the slow disk takes: the test sleeps 4 s and then looks whether it is done.
// Then it sleeps 60 s at a time and answers no ping; a session that ends meanwhile brings a unit
// attention, for which it sleeps again. So the target has patience.
const (
	erasure  = 8 * time.Second
	patience = 10 * time.Minute
)

const targetName = "iqn.2026-01.example.weft:suite"

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start serves a RAM disk as LUN 1 of a target on two portals and gives the URLs.
func start(t *testing.T, info domain.DiskInfo) []string {
	t.Helper()
	info.ID = domain.VolumeID{UUID: domain.DeriveUUID(domain.UUID{}, t.Name())}
	return startDisk(t, ramdisk.New(info), 0)
}

func startDisk(t *testing.T, disk *ramdisk.Disk, nop time.Duration) []string {
	t.Helper()
	unit, err := scsi.New(scsi.Config{Disk: disk})
	if err != nil {
		t.Fatal(err)
	}
	server, err := iscsi.New(iscsi.Config{NopTime: nop})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		server.Close()
		unit.Close()
	})
	err = server.SetTargets([]iscsi.Target{{
		Name: targetName, AllowAny: true, LUNs: map[uint16]iscsi.LUN{1: unit},
	}})
	if err != nil {
		t.Fatal(err)
	}
	var urls []string
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			if err := server.Serve(l); err != nil {
				t.Error(err)
			}
		}()
		urls = append(urls, "iscsi://"+l.Addr().String()+"/"+targetName+"/1")
	}
	return urls
}

// TestLibiscsiSuite runs a foreign conformance suite against our target over two portals: nothing
// may fail, hang or err.
func TestLibiscsiSuite(t *testing.T) {
	if err := iscsicu.Available(); err != nil {
		t.Skipf("NOT TESTED against libiscsi's suite: %v (install libiscsi-bin)", err)
	}
	if testing.Short() {
		t.Skip("NOT TESTED against libiscsi's suite: -short")
	}
	var urls []string
	if *givenURLs != "" {
		urls = strings.Split(*givenURLs, ",")
	} else {
		urls = start(t, domain.DiskInfo{Name: "suite"})
	}
	report, err := iscsicu.Run(t.Context(), iscsicu.Options{
		URLs: urls, Faulty: faulty, Output: t.Output(), Limit: limit,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(report.Summary())
	if err := report.Check(passMin); err != nil {
		t.Error(err)
	}
}

// TestLibiscsiSlowErasure runs the test that wants an erasure to outlast its sleeps, its resets and
// its session, on a disk that takes as long as a real one.
func TestLibiscsiSlowErasure(t *testing.T) {
	if err := iscsicu.Available(); err != nil {
		t.Skipf("NOT TESTED against libiscsi's suite: %v (install libiscsi-bin)", err)
	}
	if testing.Short() {
		t.Skip("NOT TESTED against libiscsi's suite: -short")
	}
	disk := ramdisk.New(domain.DiskInfo{Name: "slow"})
	var once sync.Once
	disk.Hook(func(io *domain.IO) (held bool, err error) {
		if io.Op == domain.OpUnmap { // of an overwriting with zeros, too
			once.Do(func() {
				held = true
				time.AfterFunc(erasure, func() { disk.Run(io) })
			})
		}
		return held, nil
	})
	report, err := iscsicu.Run(t.Context(), iscsicu.Options{
		URLs: startDisk(t, disk, patience)[:1], Prefixes: []string{"SCSI.Sanitize.Reset"},
		Output: t.Output(), Limit: limit,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(report.Summary())
	if err := report.Check(1); err != nil {
		t.Error(err)
	}
}

// TestLibiscsi4Kn runs what depends on the block size on a unit of 4096-byte blocks.
func TestLibiscsi4Kn(t *testing.T) {
	if err := iscsicu.Available(); err != nil {
		t.Skipf("NOT TESTED against libiscsi's suite: %v (install libiscsi-bin)", err)
	}
	urls := start(t, domain.DiskInfo{Name: "4kn", LogicalBlock: 4096})
	report, err := iscsicu.Run(t.Context(), iscsicu.Options{
		URLs: urls, Output: t.Output(), Limit: limit,
		Prefixes: []string{
			"SCSI.GetLBAStatus.", "SCSI.CompareAndWrite.", "SCSI.Unmap.", "SCSI.WriteAtomic16.",
			"SCSI.Inquiry.", "SCSI.ReadCapacity", "SCSI.Write16.", "iSCSI.",
		},
		Faulty: map[string]string{
			"iSCSI.iSCSITMF.LUNResetSimpleAsync": faulty["iSCSI.iSCSITMF.LUNResetSimpleAsync"],
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(report.Summary())
	if err := report.Check(30); err != nil {
		t.Error(err)
	}
}

// TestLibiscsiReadOnly runs the test that wants a write-protected unit.
func TestLibiscsiReadOnly(t *testing.T) {
	if err := iscsicu.Available(); err != nil {
		t.Skipf("NOT TESTED against libiscsi's suite: %v (install libiscsi-bin)", err)
	}
	urls := start(t, domain.DiskInfo{Name: "snapshot", ReadOnly: true})
	report, err := iscsicu.Run(t.Context(), iscsicu.Options{
		URLs: urls[:1], Prefixes: []string{"SCSI.ReadOnly."}, Output: t.Output(), Limit: limit,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(report.Summary())
	if err := report.Check(1); err != nil {
		t.Error(err)
	}
}
