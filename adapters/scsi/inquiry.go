package scsi

import (
	"crypto/sha256"
	"encoding/hex"
	"math/bits"
	"strings"

	"weft/domain"
)

// oui stands in the NAA identifiers: a locally administered value, as none is registered.
const oui = 0x025746

const vendor = "WEFT    "

// naa derives the NAA type 6 identifier of a volume: 6, the OUI, and 100 bits of a digest of the
// id. A digest, because some bits of a UUID are fixed and 28 have to go.
func naa(id domain.VolumeID) [16]byte {
	sum := sha256.Sum256(id.UUID[:])
	var n [16]byte
	copy(n[:], sum[:16])
	n[0] = 0x60 | oui>>20
	n[1] = oui >> 12 & 0xff
	n[2] = oui >> 4 & 0xff
	n[3] = oui&0xf<<4 | n[3]&0x0f
	return n
}

// NAA gives the NAA type 6 identifier that hosts know a volume by, on every node and path.
func NAA(id domain.VolumeID) [16]byte { return naa(id) }

// serial is the unit serial number: the first 16 hex digits of the id.
func serial(id domain.VolumeID) string { return hex.EncodeToString(id.UUID[:8]) }

// doInquiry serves INQUIRY: standard data and vital product data.
func doInquiry(t *task) outcome {
	evpd, code := t.cdb[1]&0x01 != 0, t.cdb[2]
	allocation := t.command.allocation(t.cdb)
	if t.cdb[1]&0xfe != 0 {
		return badField
	}
	if !evpd {
		if code != 0 {
			return badField
		}
		return t.reply(t.standard(), allocation)
	}
	build, ok := vital[code]
	if !ok && code != 0 {
		return badField
	}
	var body []byte
	if code == 0 {
		body = []byte{0x00, 0x80, 0x83, 0x86, 0x8f, 0xb0, 0xb1, 0xb2}
	} else {
		body = build(t)
	}
	b := []byte{0x00, code}
	b = put16(b, uint16(len(body)))
	return t.reply(append(b, body...), allocation)
}

// vital holds the vital product data pages besides the list of them.
var vital = map[byte]func(*task) []byte{
	0x80: func(t *task) []byte { return []byte(serial(t.info.ID)) },
	0x83: (*task).identification,
	0x86: (*task).extended,
	0x8f: (*task).copyPage,
	0xb0: (*task).limits,
	0xb1: (*task).characteristics,
	0xb2: (*task).provisioning,
}

func (t *task) standard() []byte {
	b := make([]byte, 96)
	b[2] = 0x06             // SPC-4
	b[3] = 0x10 | 0x02      // HISUP, response data format
	b[4] = byte(len(b) - 5) // additional length
	b[5] = 0x10 | 0x08      // TPGS implicit, 3PC
	b[6] = 0x10             // MULTIP
	b[7] = 0x02             // CMDQUE
	product := "FLASH VOLUME"
	if t.info.Rotational {
		product = "DISK VOLUME"
	}
	copy(b[8:], vendor)
	copy(b[16:], pad(product, 16))
	copy(b[32:], pad(t.unit.revision, 4))
	for i, v := range []uint16{0x00a0, 0x0460, 0x04c0, 0x0960} { // SAM-5, SPC-4, SBC-3, iSCSI
		copy(b[58+2*i:], put16(nil, v))
	}
	return b
}

func pad(s string, n int) string { return (s + strings.Repeat(" ", n))[:n] }

// designator appends one designation descriptor. kind is protocol, association and type as byte 0
// and 1 hold them.
func designator(b []byte, set, kind byte, data []byte) []byte {
	b = append(b, set, kind, 0, byte(len(data)))
	return append(b, data...)
}

// name gives a SCSI name string: ended by NUL and filled to a multiple of four.
func name(s string) []byte {
	b := append([]byte(s), 0)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// identification is page 83. The first three designators name the logical unit and never differ;
// the rest name the port the command came by.
func (t *task) identification() []byte {
	const (
		lun, port, target     = 0x00, 0x90, 0xa0 // association, with PIV
		iscsi                 = 0x50             // protocol identifier
		binarySet, ascii, utf = 1, 2, 3
	)
	n := naa(t.info.ID)
	b := designator(nil, binarySet, lun|3, n[:])
	b = designator(b, ascii, lun|1, []byte(vendor+t.info.ID.String()))
	b = designator(b, utf, lun|8, name("naa."+strings.ToUpper(hex.EncodeToString(n[:]))))
	_, group := t.unit.group(t.nexus.port)
	b = designator(b, iscsi|binarySet, port|4, put16([]byte{0, 0}, t.nexus.port))
	b = designator(b, iscsi|binarySet, port|5, put16([]byte{0, 0}, group))
	b = designator(b, iscsi|utf, port|8, name(t.nexus.target))
	device, _, _ := strings.Cut(t.nexus.target, ",")
	return designator(b, iscsi|utf, target|8, name(device))
}

func (*task) extended() []byte {
	b := make([]byte, 60)
	b[1] = 0x07 // HEADSUP, ORDSUP, SIMPSUP
	b[3] = 0x01 // LUICLR
	return b
}

// limits is page B0, in blocks.
func (t *task) limits() []byte {
	of := func(n int64) uint32 { return uint32(t.blocksOf(n)) }
	b := []byte{0x00, compareMax} // WSNZ=0
	b = put16(b, uint16(of(page)))
	b = put32(b, of(transferMax))
	b = put32(b, of(int64(64*domain.KiB)))
	b = put32(b, 0) // pre-fetch
	b = put32(b, unmapMax)
	b = put32(b, unmapEntriesMax)
	b = put32(b, of(page))
	b = put32(b, 1<<31) // UGAVALID, alignment 0
	b = put64(b, uint64(of(writeSameMax)))
	b = put32(b, of(atomicMax))
	return append(b, make([]byte, 16)...) // atomic alignment, granularity, boundaries
}

func (t *task) characteristics() []byte {
	b := make([]byte, 60)
	copy(b, put16(nil, 1))
	if t.info.Rotational {
		copy(b, put16(nil, 7200))
	}
	b[3] = 0x50 // WABEREQ, WACEREQ: reads after an erasure succeed
	return b
}

func (t *task) provisioning() []byte {
	// LBPU, LBPWS, LBPWS10, LBPRZ=001b; thin. A threshold counts GiB.
	exponent := bits.Len64(uint64(t.blocksOf(int64(domain.GiB)))) - 1
	return []byte{byte(exponent), 0xe4, 0x02, 0x00}
}

// doCapacity10 serves READ CAPACITY(10).
func doCapacity10(t *task) outcome {
	if t.cdb[8]&0x01 == 0 && get32(t.cdb[2:]) != 0 {
		return badField
	}
	b := put32(nil, uint32(min(t.capacity()-1, 0xffffffff)))
	return t.reply(put32(b, uint32(t.info.LogicalBlock)), 8)
}

// doCapacity16 serves READ CAPACITY(16).
func doCapacity16(t *task) outcome {
	b := put64(nil, t.capacity()-1)
	b = put32(b, uint32(t.info.LogicalBlock))
	physical := max(t.info.PhysicalBlock, t.info.LogicalBlock)
	exponent := bits.Len(uint(physical/t.info.LogicalBlock)) - 1
	b = append(b, 0, byte(exponent), 0xc0, 0) // LBPME, LBPRZ
	return t.reply(append(b, make([]byte, 16)...), t.command.allocation(t.cdb))
}

// doReady serves TEST UNIT READY.
func doReady(*task) outcome { return good }

// doRequestSense serves REQUEST SENSE: the first unit attention, the progress of an erasure, or
// nothing.
func doRequestSense(t *task) outcome {
	o := check(keyNone, 0, 0)
	if a, ok := t.nexus.next(); ok {
		o = check(keyAttention, a.asc, a.ascq)
	} else if e := t.unit.erase.busy(); e != good {
		o = e
	}
	b := make([]byte, senseMax)
	n := o.sense(b, t.cdb[1]&0x01 != 0)
	return t.reply(b[:n], int(t.cdb[4]))
}

// doStartStop serves START STOP UNIT. A volume that others share is not stopped by one of them.
func doStartStop(t *task) outcome {
	start, loadEject, condition := t.cdb[4]&0x01 != 0, t.cdb[4]&0x02 != 0, t.cdb[4]>>4
	if condition != 0 || loadEject {
		return badField
	}
	if !start {
		return badField
	}
	return good
}

// doDefects10 serves READ DEFECT DATA(10): the lists are empty, as the medium mends itself.
func doDefects10(t *task) outcome {
	format := t.cdb[2] & 0x1f
	return t.reply([]byte{0, format, 0, 0}, t.command.allocation(t.cdb))
}

// doDefects12 serves READ DEFECT DATA(12).
func doDefects12(t *task) outcome {
	format := t.cdb[1] & 0x1f
	return t.reply([]byte{0, format, 0, 0, 0, 0, 0, 0}, t.command.allocation(t.cdb))
}

// doReportUnits serves REPORT LUNS for a transport that has one logical unit and leaves the command
// to it.
func doReportUnits(t *task) outcome {
	one := make([]byte, 16) // list length, and LUN 0
	one[3] = 8
	return t.reply(one, t.command.allocation(t.cdb))
}
