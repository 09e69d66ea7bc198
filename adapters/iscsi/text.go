package iscsi

import (
	"strconv"
	"strings"

	"weft/domain"
)

// Limits of text.
const (
	textMax      = 64 << 10 // bytes gathered over continued requests
	keysMax      = 64
	exchangesMax = 32
	keyMax       = 63  // bytes of a key's name
	valueMax     = 255 // bytes of a value, but for those that hold binary data
	binaryMax    = 2048
)

// pair is one key=value.
type pair struct{ key, value string }

// parseText reads NUL-separated key=value pairs. It returns an error of kind Invalid for text that
// is malformed or over a limit.
func parseText(b []byte) ([]pair, error) {
	if len(b) > textMax {
		return nil, domain.Errorf(domain.TooLarge, "text of %d bytes", len(b))
	}
	var pairs []pair
	for item := range strings.SplitSeq(string(b), "\x00") {
		if item == "" {
			continue // padding, or the end
		}
		key, value, ok := strings.Cut(item, "=")
		if !ok || key == "" || len(key) > keyMax {
			return nil, domain.Errorf(domain.Invalid, "malformed key")
		}
		most := valueMax
		if key == "CHAP_C" || key == "CHAP_R" || key == "SendTargets" || key == "AuthMethod" {
			most = binaryMax
		}
		if len(value) > most {
			return nil, domain.Errorf(domain.TooLarge, "value of %s has %d bytes", key, len(value))
		}
		if len(pairs) == keysMax {
			return nil, domain.Errorf(domain.TooLarge, "more than %d keys", keysMax)
		}
		pairs = append(pairs, pair{key, value})
	}
	return pairs, nil
}

// formatText writes pairs.
func formatText(pairs []pair) []byte {
	var b []byte
	for _, p := range pairs {
		b = append(b, p.key...)
		b = append(b, '=')
		b = append(b, p.value...)
		b = append(b, 0)
	}
	return b
}

// number reads a numerical value: decimal or 0x hexadecimal.
func number(s string, least, most uint64) (uint64, bool) {
	base := 10
	if rest, ok := strings.CutPrefix(strings.ToLower(s), "0x"); ok {
		s, base = rest, 16
	}
	n, err := strconv.ParseUint(s, base, 32)
	return n, err == nil && n >= least && n <= most
}

// choose gives the first of ours that the other side offers.
func choose(ours []string, offered string) (string, bool) {
	theirs := strings.Split(offered, ",")
	for _, o := range ours {
		for _, v := range theirs {
			if v == o {
				return o, true
			}
		}
	}
	return "", false
}
