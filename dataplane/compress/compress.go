package compress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"weft/dataplane/checksum"
)

// Sizes in bytes.
const (
	Block  = 4096
	Unit   = 512
	Max    = Block - Unit // of a compressed block
	header = 8
)

// Codec is how a block is compressed.
type Codec uint8

// The codecs; the numbers stand on devices. None leaves blocks as they are.
const (
	None Codec = 0
	S2   Codec = 1 // a microsecond a block
	Zstd Codec = 2 // ten times that, and smaller: for what is cold
)

// ErrBad says that bytes are no compressed block. Match with errors.Is.
var ErrBad = errors.New("no compressed block")

// decoders is shared by all readers: DecodeAll may be called by many at once.
var decoders = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderLowmem(true), zstd.WithDecodeAllCapLimit(true),
		zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(1<<20))
	if err != nil {
		panic("compress: " + err.Error()) // the options are constants
	}
	return d
})

// Packer compresses. It belongs to one goroutine; the zero value is ready.
type Packer struct {
	zstd *zstd.Encoder
	out  [Block + Block/4]byte
}

// Pack compresses a block, whose CRC-32C is given, and gives how many units of dst it takes: 0 when
// it is to stay as it is. dst has Max bytes and does not overlap the block. A block that does not
// match its CRC becomes one that Unpack refuses.
func (p *Packer) Pack(dst, block []byte, crc uint32, codec Codec) (units int) {
	if codec == None || Dense(block) {
		return 0
	}
	var data []byte
	if codec == Zstd {
		data = p.encoder().EncodeAll(block[:Block], p.out[:0])
	} else {
		data = s2.Encode(p.out[:], block[:Block])
	}
	n := header + len(data)
	if n > Max {
		return 0
	}
	binary.LittleEndian.PutUint32(dst, crc)
	dst[4], dst[5] = byte(codec), 0
	binary.LittleEndian.PutUint16(dst[6:], uint16(len(data)))
	copy(dst[header:], data)
	units = (n + Unit - 1) / Unit
	clear(dst[n : units*Unit])
	return units
}

func (p *Packer) encoder() *zstd.Encoder {
	if p.zstd == nil {
		var err error
		p.zstd, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false),
			zstd.WithSingleSegment(true), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(Block),
			zstd.WithEncoderLevel(zstd.SpeedDefault))
		if err != nil {
			panic("compress: " + err.Error()) // the options are constants
		}
	}
	return p.zstd
}

// Unpack makes a block whole: dst has Block bytes and does not overlap src, which may be longer
// than what was packed. ErrBad, and nothing of use in dst, when src is no compressed block or does
// not become what it was. It allocates nothing but for that error, and takes no more memory than
// one decoder has, whatever src says.
func Unpack(dst, src []byte) error {
	if len(src) < header {
		return fmt.Errorf("%d bytes: %w", len(src), ErrBad)
	}
	n := int(binary.LittleEndian.Uint16(src[6:]))
	if n > len(src)-header || src[5] != 0 {
		return fmt.Errorf("%d bytes in %d: %w", n, len(src), ErrBad)
	}
	data := src[header : header+n]
	dst = dst[:Block:Block]
	var got int
	var err error
	switch Codec(src[4]) {
	case S2:
		if got, err = s2.DecodedLen(data); err == nil && got == Block {
			_, err = s2.Decode(dst, data)
		}
	case Zstd:
		var b []byte
		b, err = decoders().DecodeAll(data, dst[:0])
		got = len(b)
	case None:
		fallthrough
	default:
		return fmt.Errorf("codec %d: %w", src[4], ErrBad)
	}
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrBad, err)
	case got != Block:
		return fmt.Errorf("it is of %d bytes: %w", got, ErrBad)
	case checksum.Sum(dst) != binary.LittleEndian.Uint32(src):
		return fmt.Errorf("checksum of the block: %w", ErrBad)
	}
	return nil
}
