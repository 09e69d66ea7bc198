//go:build !amd64

package checksum

// canFold is never set here: hash/crc32 does it all.
var canFold = false

func aligned([]byte) bool { return false }

func fold(*byte, int, uint32) uint32                  { panic("checksum: no fold") }
func foldCopy(_, _ *byte, _ int, _ uint32) uint32     { panic("checksum: no fold") }
func foldCopyPast(_, _ *byte, _ int, _ uint32) uint32 { panic("checksum: no fold") }
