package iscsi

import (
	"slices"
	"testing"
	"time"

	"weft/domain"
)

// TestLoginNegotiates proves the result of every operational key, offers at and beyond our limits.
func TestLoginNegotiates(t *testing.T) {
	b := newBench(t, Config{Digests: []string{"CRC32C", "None"}, Alias: "shelf"}, nil)
	offers := map[string][2]string{
		"HeaderDigest":        {"None,CRC32C", "CRC32C"},
		"DataDigest":          {"None", "None"},
		"InitialR2T":          {"No", "No"},
		"ImmediateData":       {"Yes", "Yes"},
		"MaxBurstLength":      {"16776192", "1048576"},
		"FirstBurstLength":    {"65536", "65536"},
		"MaxConnections":      {"8", "1"},
		"MaxOutstandingR2T":   {"8", "1"},
		"ErrorRecoveryLevel":  {"2", "0"},
		"DefaultTime2Wait":    {"0", "2"},
		"DefaultTime2Retain":  {"20", "0"},
		"DataPDUInOrder":      {"No", "Yes"},
		"DataSequenceInOrder": {"Yes", "Yes"},
		"IFMarker":            {"Yes", "No"},
		"X-example":           {"1", "NotUnderstood"},
	}
	i := b.dial()
	keys := i.opening()
	for k, v := range offers {
		keys = append(keys, pair{k, v[0]})
	}
	status, got := i.exchange(stageOperational, stageFull, keys...)
	i.must(status)
	for k, v := range offers {
		if got[k] != v[1] {
			t.Errorf("%s=%s was answered by %q, want %q", k, v[0], got[k], v[1])
		}
	}
	if got["TargetPortalGroupTag"] != "1" || got["TargetAlias"] != "shelf" {
		t.Errorf("group %q, alias %q", got["TargetPortalGroupTag"], got["TargetAlias"])
	}
	if got["MaxRecvDataSegmentLength"] != "262144" {
		t.Errorf("segment %q", got["MaxRecvDataSegmentLength"])
	}
	i.headerD = true
	i.ready()
}

// TestLoginRefuses proves the status of logins that must not succeed.
func TestLoginRefuses(t *testing.T) {
	secret := []Credential{{"host", "correct horse battery"}}
	cases := []struct {
		name   string
		target func(*Target)
		keys   func(i *initiator) []pair
		want   int
	}{
		{"unknown target", nil, func(i *initiator) []pair {
			return []pair{{"InitiatorName", i.name}, {"TargetName", "iqn.2026-01.example:no"}}
		}, loginNoTarget},
		{"no initiator name", nil, func(*initiator) []pair {
			return []pair{{"TargetName", testTarget}}
		}, loginMissing},
		{"no target name", nil, func(i *initiator) []pair {
			return []pair{{"InitiatorName", i.name}}
		}, loginMissing},
		{"not on the list", func(t *Target) {
			t.AllowAny, t.Initiators = false, []string{"iqn.2026-01.example.host:other"}
		}, (*initiator).opening, loginForbidden},
		{"authentication skipped", func(t *Target) {
			t.CHAP = secret
		}, (*initiator).opening, loginAuth},
		{"moved", func(t *Target) {
			t.Redirect = "192.0.2.1:3260"
		}, (*initiator).opening, loginMoved},
		{"bad value", nil, func(i *initiator) []pair {
			return append(i.opening(), pair{"MaxBurstLength", "12"})
		}, loginInitiator},
		{"twice", nil, func(i *initiator) []pair {
			return append(i.opening(), pair{"InitialR2T", "No"}, pair{"InitialR2T", "No"})
		}, loginInitiator},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, Config{}, c.target)
			i := b.dial()
			status, got := i.exchange(stageOperational, stageFull, c.keys(i)...)
			if status != c.want {
				t.Errorf("status %04x, want %04x", status, c.want)
			}
			if c.want == loginMoved && got["TargetAddress"] != "192.0.2.1:3260" {
				t.Errorf("TargetAddress %q", got["TargetAddress"])
			}
			i.gone()
			if n := b.server.Stats().LoginFailures; n != 1 {
				t.Errorf("%d failures counted", n)
			}
		})
	}
}

// TestCHAP proves one-way and mutual authentication, and that what must not pass does not.
func TestCHAP(t *testing.T) {
	const user, secret, own = "host", "correct horse battery", "staple of the target"
	challenge := "0x00112233445566778899aabbccddeeff"
	raw, _ := decodeBinary(challenge)
	cases := []struct {
		name, algorithm, user, secret, challenge, chosen string
		want                                             int
	}{
		{"md5", "5", user, secret, "", "5", loginOK},
		{"sha256", "5,7", user, secret, "", "7", loginOK},
		{"mutual", "5", user, secret, challenge, "5", loginOK},
		{"mutual sha256", "7", user, secret, challenge, "7", loginOK},
		{"wrong secret", "5", user, "correct horse buttery", "", "", loginAuth},
		{"wrong user", "5", "ghost", secret, "", "", loginAuth},
		{"reflected", "5", user, secret, "reflect", "", loginAuth},
		{"no algorithm", "6", user, secret, "", "", loginAuth},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, Config{}, func(x *Target) {
				x.CHAP = []Credential{{user, secret}}
				x.Own = &Credential{"weft", own}
			})
			i := b.dial()
			status, got := i.chapLogin(c.algorithm, c.user, c.secret, c.challenge)
			if status != c.want {
				t.Fatalf("status %04x, want %04x", status, c.want)
			}
			if c.want != loginOK {
				i.gone()
				return
			}
			if c.challenge != "" && got["CHAP_R"] != chapAnswer(c.chosen, 9, own, raw) {
				t.Error("the target did not prove itself")
			}
			i.ready()
		})
	}
}

// TestConfigRefuses proves that credentials and targets that cannot be safe are refused.
func TestConfigRefuses(t *testing.T) {
	b := newBench(t, Config{}, nil)
	long := "correct horse battery"
	for name, x := range map[string]Target{
		"short secret": {Name: testTarget, CHAP: []Credential{{"u", "short"}}},
		"one secret for both": {
			Name: testTarget, CHAP: []Credential{{"u", long}}, Own: &Credential{"t", long},
		},
		"no name":  {Name: "disk"},
		"unit 256": {Name: testTarget, LUNs: map[uint16]LUN{256: b.unit}},
	} {
		if err := b.server.SetTargets([]Target{x}); !domain.IsKind(err, domain.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := New(Config{Digests: []string{"MD5"}}); !domain.IsKind(err, domain.Invalid) {
		t.Errorf("digest: %v", err)
	}
}

// TestDiscovery proves that SendTargets answers with the advertised portals, and only targets that
// the initiator may use.
func TestDiscovery(t *testing.T) {
	b := newBench(t, Config{Advertise: []string{"203.0.113.7:3260", "[2001:db8::1]:3260"}}, nil)
	hidden := Target{Name: "iqn.2026-01.example.weft:hidden", Initiators: []string{"iqn.other"}}
	if err := b.server.SetTargets([]Target{b.target, hidden}); err != nil {
		t.Fatal(err)
	}
	got := b.dial().discover()
	want := []string{testTarget, "203.0.113.7:3260,1", "[2001:db8::1]:3260,1"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestDiscoveryAuthentication proves that a discovery session must authenticate when asked to.
func TestDiscoveryAuthentication(t *testing.T) {
	b := newBench(t, Config{Discovery: []Credential{{"host", "correct horse battery"}}}, nil)
	i := b.dial()
	status, _ := i.exchange(stageOperational, stageFull,
		pair{"InitiatorName", i.name}, pair{"SessionType", "Discovery"})
	if status != loginAuth {
		t.Errorf("status %04x", status)
	}
}

// TestLoginTimes proves that a silent connection is closed.
func TestLoginTimes(t *testing.T) {
	b := newBench(t, Config{LoginTime: 50 * time.Millisecond}, nil)
	b.dial().gone()
}

// TestSessionsLimit proves the answer at the limit of sessions.
func TestSessionsLimit(t *testing.T) {
	b := newBench(t, Config{Sessions: 1}, nil)
	b.login(1)
	i := b.dial()
	i.isid = 2
	if status := i.enter(nil); status != loginResources {
		t.Errorf("status %04x", status)
	}
	b.login(1) // a reinstated session takes its predecessor's place
}
