package quorum

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"

	"weft/domain"
	"weft/eventstore"
)

const (
	formatValue = "weft-log 2"
	formatOne   = "weft-log 1" // one record a key, and the end of every stream by itself
	tailSize    = 8 + 32 + 4
	allClusters = "/weft/"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// keys names everything of one cluster.
type keys struct{ root string }

func keysOf(c domain.ClusterID) keys { return keys{allClusters + c.String() + "/"} }

func (k keys) sealed() string              { return k.root + "sealed" }
func (k keys) holder(name string) string   { return k.root + "holder/" + name }
func (k keys) format() string              { return k.root + "format" }
func (k keys) tail() string                { return k.root + "tail" }
func (k keys) heads() string               { return k.root + "head/" } // of format 1
func (k keys) leader() string              { return k.root + "leader/reconciler" }
func (k keys) node(n domain.NodeID) string { return k.root + "node/" + n.String() }
func (k keys) recoveries() string          { return k.root + "recovered/" }
func (k keys) logEnd() string              { return k.root + "log0" } // '0' follows '/'

func (k keys) recovered(t domain.Timeline) string {
	return fmt.Sprintf("%s%04x", k.recoveries(), uint16(t))
}

func (k keys) lost(member uint64) string { return fmt.Sprintf("%slost/%016x", k.root, member) }

// log names the value whose last record is at p.
func (k keys) log(p domain.Position) string {
	return fmt.Sprintf("%slog/%016x", k.root, uint64(p))
}

// position reads the key of a value: where its last record is.
func (k keys) position(key string) (domain.Position, bool) {
	hex, ok := strings.CutPrefix(key, k.root+"log/")
	n, err := strconv.ParseUint(hex, 16, 64)
	return domain.Position(n), ok && err == nil && len(hex) == 16
}

func sealed(b []byte) string {
	return string(binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli)))
}

func unseal(b []byte, size int) ([]byte, bool) {
	if len(b) != size {
		return nil, false
	}
	body := b[:size-4]
	return body, binary.LittleEndian.Uint32(b[size-4:]) == crc32.Checksum(body, castagnoli)
}

func encodeTail(h eventstore.Head) string {
	b := binary.LittleEndian.AppendUint64(make([]byte, 0, tailSize), uint64(h.Position))
	return sealed(append(b, h.Hash[:]...))
}

func decodeTail(b []byte) (eventstore.Head, bool) {
	body, ok := unseal(b, tailSize)
	if !ok {
		return eventstore.Head{}, false
	}
	h := eventstore.Head{Position: domain.Position(binary.LittleEndian.Uint64(body))}
	copy(h.Hash[:], body[8:])
	return h, true
}
