package compress

import "weft/domain"

// Mode is what a volume asks for.
type Mode uint8

// The modes.
const (
	Off      Mode = iota
	OnlyS2        // s2, whether it is destaged or moved
	OnlyZstd      // zstd
	Auto          // s2 where it is destaged, zstd where it is moved, which is what stays
)

// ParseMode reads a mode: "off" or nothing, "s2", "zstd", "auto". Invalid for another word.
func ParseMode(s string) (Mode, error) {
	switch s {
	case "", "off":
		return Off, nil
	case "s2":
		return OnlyS2, nil
	case "zstd":
		return OnlyZstd, nil
	case "auto":
		return Auto, nil
	}
	return Off, domain.Errorf(domain.Invalid, "compression %q: off, s2, zstd or auto", s)
}

// Warm gives the codec for what is written for the first time.
func (m Mode) Warm() Codec {
	switch m {
	case OnlyS2, Auto:
		return S2
	case OnlyZstd:
		return Zstd
	case Off:
	}
	return None
}

// Cold gives the codec for what is moved and was not compressed.
func (m Mode) Cold() Codec {
	if m == Auto {
		return Zstd
	}
	return m.Warm()
}
