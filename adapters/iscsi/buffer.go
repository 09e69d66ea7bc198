package iscsi

import (
	"math/bits"
	"sync"
	"unsafe"
)

// Buffers come in powers of two, aligned to a page so that the disk below needs no copy.
const (
	pageSize     = 4096
	classMin     = 12              // 4 KiB
	classes      = 14              // up to 32 MiB
	classKeepMax = int64(32 << 20) // idle bytes kept per class
)

// buffer is a piece of aligned memory. It has one owner at a time: a command.
type buffer struct {
	b     []byte
	class int
	next  *buffer
}

// buffers is a pool, shared by all sessions of a server.
type buffers struct {
	lists [classes]struct {
		sync.Mutex
		free *buffer
		n    int64
	}
}

// get gives a buffer of at least n bytes, whose content is arbitrary. Nothing larger than the
// largest class is ever asked for.
func (p *buffers) get(n int) *buffer {
	class := max(bits.Len(uint(max(n, 1)-1)), classMin) - classMin
	l := &p.lists[class]
	l.Lock()
	b := l.free
	if b != nil {
		l.free, b.next = b.next, nil
		l.n--
	}
	l.Unlock()
	if b != nil {
		return b
	}
	size := 1 << (class + classMin)
	raw := make([]byte, size+pageSize)
	skip := (pageSize - int(uintptr(unsafe.Pointer(&raw[0]))%pageSize)) % pageSize
	return &buffer{b: raw[skip : skip+size : skip+size], class: class}
}

// put takes a buffer back. Nil is fine.
func (p *buffers) put(b *buffer) {
	if b == nil {
		return
	}
	l := &p.lists[b.class]
	l.Lock()
	defer l.Unlock()
	if (l.n+1)<<(b.class+classMin) <= classKeepMax {
		b.next, l.free = l.free, b
		l.n++
	}
}
