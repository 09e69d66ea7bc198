package iscsi

import (
	"strconv"
)

// What this target offers in negotiation, in bytes where a length.
const (
	segmentMax    = 256 << 10 // our MaxRecvDataSegmentLength
	firstBurstMax = 256 << 10
	burstMax      = 1 << 20
	segmentLogin  = 8192 // both sides, until negotiated
	lengthMost    = 1<<24 - 1
)

// params are the negotiated values of a session.
type params struct {
	headerDigest, dataDigest bool
	segment                  int // the initiator's MaxRecvDataSegmentLength
	firstBurst, burst        int
	initialR2T, immediate    bool
}

// defaults are the values of RFC 7143 for keys that are never offered.
func defaults() params {
	return params{
		segment: segmentLogin, firstBurst: 65536, burst: 262144, initialR2T: true, immediate: true,
	}
}

const (
	notUnderstood = "NotUnderstood"
	irrelevant    = "Irrelevant"
	rejected      = "Reject"
)

// negotiate answers one operational key. An empty answer means that the key only declares. ok is
// false for a value that ends the login.
func (p *params) negotiate(k pair, digests []string, discovery bool) (answer string, ok bool) {
	switch k.key {
	case "HeaderDigest", "DataDigest":
		v, found := choose(digests, k.value)
		if !found {
			return rejected, false
		}
		if k.key == "HeaderDigest" {
			p.headerDigest = v == "CRC32C"
		} else {
			p.dataDigest = v == "CRC32C"
		}
		return v, true
	case "MaxRecvDataSegmentLength":
		n, ok := number(k.value, 512, lengthMost)
		p.segment = int(n)
		return "", ok
	case "MaxConnections":
		return lesser(k.value, 1, 65535, 1)
	case "MaxOutstandingR2T":
		return lesser(k.value, 1, 65535, 1)
	case "ErrorRecoveryLevel":
		return lesser(k.value, 0, 2, 0)
	case "DefaultTime2Retain":
		return lesser(k.value, 0, 3600, 0)
	case "DefaultTime2Wait":
		n, ok := number(k.value, 0, 3600)
		return strconv.FormatUint(max(n, 2), 10), ok
	case "FirstBurstLength", "MaxBurstLength":
		return p.bursts(k, discovery)
	case "InitialR2T", "ImmediateData", "DataPDUInOrder", "DataSequenceInOrder":
		return p.flags(k, discovery)
	case "IFMarker", "OFMarker":
		return "No", true
	case "IFMarkInt", "OFMarkInt":
		return irrelevant, true
	case "TaskReporting":
		return choice("RFC3720", k.value)
	case "iSCSIProtocolLevel":
		return lesser(k.value, 0, 31, 1)
	}
	return notUnderstood, true
}

func choice(ours, offered string) (string, bool) {
	if v, ok := choose([]string{ours}, offered); ok {
		return v, true
	}
	return rejected, true
}

func lesser(value string, least, most, ours uint64) (string, bool) {
	n, ok := number(value, least, most)
	return strconv.FormatUint(min(n, ours), 10), ok
}

func (p *params) bursts(k pair, discovery bool) (string, bool) {
	n, ok := number(k.value, 512, lengthMost)
	switch {
	case !ok:
		return rejected, false
	case discovery:
		return irrelevant, true
	case k.key == "FirstBurstLength":
		p.firstBurst = min(int(n), firstBurstMax)
		return strconv.Itoa(p.firstBurst), true
	}
	p.burst = min(int(n), burstMax)
	return strconv.Itoa(p.burst), true
}

func (p *params) flags(k pair, discovery bool) (string, bool) {
	yes := k.value == "Yes"
	switch {
	case !yes && k.value != "No":
		return rejected, false
	case discovery:
		return irrelevant, true
	case k.key == "InitialR2T":
		p.initialR2T = yes // either side may ask for it; we do not
	case k.key == "ImmediateData":
		p.immediate = yes
	default:
		return "Yes", true // data comes in order
	}
	return k.value, true
}

// settle makes the values consistent after the last key.
func (p *params) settle() { p.firstBurst = min(p.firstBurst, p.burst) }
