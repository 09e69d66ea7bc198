package eventstore

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/domain"
)

var rewrite = flag.Bool("rewrite", false, "add golden files that are missing; never changes one")

// sample gives the records that the golden files hold: one with every field filled, one with as
// little as a record can have, and one on a higher timeline that follows it.
func sample() map[string]Recorded {
	id := func(s string) domain.EventID {
		return domain.EventID{UUID: domain.DeriveUUID(domain.UUID{}, s)}
	}
	full := Recorded{Before: 5, Data: []byte{0x81, 0xa1, 'a', 0x01}, Header: domain.Header{
		ID: id("event"), Type: "VolumeResized", Schema: 3, Actor: "user/admin", Tenant: "acme",
		Source: "192.0.2.7:4711", RequestID: "r-1", Command: domain.CommandID(id("command")),
		RequestHash: [16]byte{1, 2, 3}, Correlation: id("correlation"), Causation: id("causation"),
		Token: 7, Created: time.Date(2026, 1, 2, 3, 4, 5, 678900, time.UTC), Stream: "volume-1",
		Revision: 2, Position: 9, Prev: [32]byte{31: 9},
	}}
	full.Seal()
	least := Recorded{Header: domain.Header{
		ID: id("x"), Type: "T", Created: time.Unix(1, 0).UTC(), Stream: "a-b", Position: 1,
	}}
	least.Seal()
	raised := least
	raised.ID, raised.Revision, raised.Before = id("y"), 1, 1
	raised.Position, raised.Prev = domain.PositionOf(2, 2), least.Hash
	raised.Seal()
	return map[string]Recorded{"full": full, "least": least, "raised": raised}
}

// The bytes of a record are fixed for ever: those written before decode to what was meant, and the
// same record gives the same bytes.
func TestGoldenRecords(t *testing.T) {
	for name, want := range sample() {
		path := filepath.Join("testdata", name+".record")
		b := AppendRecord(nil, &want)
		golden, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) && *rewrite {
			golden = []byte(hex.EncodeToString(b) + "\n")
			err = os.WriteFile(path, golden, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		old, err := hex.DecodeString(strings.TrimSpace(string(golden)))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(old, b) {
			t.Errorf("%s: encodes to other bytes than before", name)
		}
		got, err := DecodeRecord(want.Position, old)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got.Header != want.Header || got.Before != want.Before || !bytes.Equal(got.Data, want.Data) {
			t.Errorf("%s: decodes to %+v, want %+v", name, got, want)
		}
	}
}

// Every single flipped bit of a record is found, and what is found names the position.
func TestEveryFlippedBit(t *testing.T) {
	for name, r := range sample() {
		b := AppendRecord(nil, &r)
		for bit := range 8 * len(b) {
			b[bit/8] ^= 1 << (bit % 8)
			var corrupt *CorruptError
			if _, err := DecodeRecord(r.Position, b); !errors.As(err, &corrupt) ||
				corrupt.Position != r.Position {
				t.Fatalf("%s: bit %d: %v", name, bit, err)
			}
			b[bit/8] ^= 1 << (bit % 8)
		}
		if _, err := DecodeRecord(r.Position+1, b); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s at another place: %v", name, err)
		}
	}
}

// A record whose checksum was made to fit again is found by its hash: content that changed, and a
// hash that changed.
func TestHashBeyondChecksum(t *testing.T) {
	for _, change := range []func(*Recorded){
		func(r *Recorded) { r.Actor = "user/other" },
		func(r *Recorded) { r.Data[3] = 2 },
		func(r *Recorded) { r.Token++ },
		func(r *Recorded) { r.Prev[0]++ },
		func(r *Recorded) { r.Hash[0]++ },
	} {
		r := sample()["full"]
		change(&r)
		if _, err := DecodeRecord(r.Position, AppendRecord(nil, &r)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

// A record of a newer format is no damage.
func TestNewerFormat(t *testing.T) {
	r := sample()["full"]
	for _, off := range []int{12, 14} {
		b := AppendRecord(nil, &r)
		b[off] = 0x41
		repair(b)
		if _, err := DecodeRecord(r.Position, b); domain.KindOf(err) != domain.Unsupported {
			t.Errorf("byte %d: %v", off, err)
		}
	}
}

// FuzzDecodeRecord: any bytes either fail typed or are exactly what encoding the result gives.
func FuzzDecodeRecord(f *testing.F) {
	for _, r := range sample() {
		b := AppendRecord(nil, &r)
		f.Add(b)
		f.Add(b[:len(b)-1])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		repair(b) // or the checksum would hide everything behind it
		at := domain.Position(0)
		if len(b) > 24 {
			at = domain.Position(b[16])
		}
		r, err := DecodeRecord(at, b)
		if err != nil {
			if k := domain.KindOf(err); k != domain.Corrupt && k != domain.Unsupported {
				t.Fatalf("%v is of kind %v", err, k)
			}
			return
		}
		if again := AppendRecord(nil, &r); !bytes.Equal(again, b) && b[14] == 0 {
			t.Fatalf("decodes, and encodes to other bytes")
		}
	})
}

func BenchmarkDecodeRecord(b *testing.B) {
	r := sample()["full"]
	r.Data = make([]byte, 256)
	r.Seal()
	enc := AppendRecord(nil, &r)
	b.SetBytes(int64(len(enc)))
	for b.Loop() {
		if _, err := DecodeRecord(r.Position, enc); err != nil {
			b.Fatal(err)
		}
	}
}
