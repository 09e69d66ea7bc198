package iscsi

import (
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha3"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"hash"
	"strconv"
	"strings"

	"weft/domain"
)

// Limits of CHAP, in bytes.
const (
	secretMin    = 12
	secretMax    = 64
	challengeLen = 32
	challengeMax = 1024
)

// Credential is a user name and its secret of 12 to 64 bytes.
type Credential struct {
	User   string
	Secret string
}

// chapHashes holds the algorithms by their number, in the order of our preference.
var chapHashes = []struct {
	number string
	make   func() hash.Hash
}{
	{"8", func() hash.Hash { return sha3.New256() }},
	{"7", sha256.New},
	{"5", md5.New},
}

// chap is one authentication: first the initiator proves itself, then, if it asks, the target.
type chap struct {
	accepted []Credential // of initiators
	own      *Credential  // for mutual authentication
	makeHash func() hash.Hash
	id       byte
	ours     []byte
	done     bool
}

// begin answers CHAP_A with algorithm and challenge.
func (c *chap) begin(offered string) ([]pair, error) {
	var numbers []string
	for _, h := range chapHashes {
		numbers = append(numbers, h.number)
	}
	chosen, ok := choose(numbers, offered)
	if !ok {
		return nil, domain.Errorf(domain.Denied, "no CHAP algorithm in common")
	}
	for _, h := range chapHashes {
		if h.number == chosen {
			c.makeHash = h.make
		}
	}
	fresh := make([]byte, challengeLen+1)
	if _, err := rand.Read(fresh); err != nil {
		return nil, domain.Wrap(err, "iscsi.chap", "")
	}
	c.id, c.ours = fresh[0], fresh[1:]
	return []pair{
		{"CHAP_A", chosen},
		{"CHAP_I", strconv.Itoa(int(c.id))},
		{"CHAP_C", "0x" + hex.EncodeToString(c.ours)},
	}, nil
}

// verify checks the initiator's answer, and gives ours when it sent a challenge.
func (c *chap) verify(keys map[string]string) ([]pair, error) {
	refused := domain.Errorf(domain.Denied, "CHAP failed for user %q", keys["CHAP_N"])
	if c.makeHash == nil || c.done {
		return nil, domain.Errorf(domain.Invalid, "CHAP answer out of turn")
	}
	got, err := decodeBinary(keys["CHAP_R"])
	if err != nil {
		return nil, err
	}
	found := 0
	for _, a := range c.accepted {
		want := c.response(c.id, a.Secret, c.ours)
		found |= subtle.ConstantTimeCompare([]byte(a.User), []byte(keys["CHAP_N"])) &
			subtle.ConstantTimeCompare(want, got)
	}
	if found == 0 {
		return nil, refused
	}
	c.done = true
	challenge, mutual := keys["CHAP_C"]
	if !mutual {
		return nil, nil
	}
	return c.prove(keys["CHAP_I"], challenge)
}

// prove answers the initiator's challenge. One that equals our own would make us sign what we asked
// for: a reflection.
func (c *chap) prove(identifier, challenge string) ([]pair, error) {
	id, ok := number(identifier, 0, 255)
	theirs, err := decodeBinary(challenge)
	switch {
	case err != nil || !ok || len(theirs) == 0:
		return nil, domain.Errorf(domain.Invalid, "malformed CHAP challenge")
	case c.own == nil:
		return nil, domain.Errorf(domain.Denied, "mutual CHAP is not configured")
	case subtle.ConstantTimeCompare(theirs, c.ours) == 1:
		return nil, domain.Errorf(domain.Denied, "CHAP challenge reflected")
	}
	answer := c.response(byte(id), c.own.Secret, theirs)
	return []pair{{"CHAP_N", c.own.User}, {"CHAP_R", "0x" + hex.EncodeToString(answer)}}, nil
}

func (c *chap) response(id byte, secret string, challenge []byte) []byte {
	h := c.makeHash()
	h.Write([]byte{id})
	h.Write([]byte(secret))
	h.Write(challenge)
	return h.Sum(nil)
}

// decodeBinary reads a binary value: 0x hexadecimal or 0b base64.
func decodeBinary(s string) ([]byte, error) {
	if len(s) < 2 || len(s) > 2+2*challengeMax {
		return nil, domain.Errorf(domain.Invalid, "malformed binary value")
	}
	var b []byte
	var err error
	switch strings.ToLower(s[:2]) {
	case "0x":
		text := s[2:]
		if len(text)%2 == 1 {
			text = "0" + text
		}
		b, err = hex.DecodeString(text)
	case "0b":
		b, err = base64.StdEncoding.DecodeString(s[2:])
	default:
		err = domain.Errorf(domain.Invalid, "neither 0x nor 0b")
	}
	if err != nil {
		return nil, domain.Errorf(domain.Invalid, "malformed binary value")
	}
	return b, nil
}
