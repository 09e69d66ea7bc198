package engine

import (
	"sync"

	"weft/backends"
	"weft/dataplane/segment"
)

// Reading ahead of a stream: once a volume was read in order for a while, what comes next is
// fetched into the cache before it is asked for, a window at a time, while the one before is
// consumed. It helps who reads one piece after the other; who keeps several under way has the
// device busy anyway.
const (
	streamLeast = 32  // blocks in order that make a stream
	aheadBlocks = 256 // of a window: one read of the device where it was written in order
	aheadsMax   = 8   // windows that are fetched at once, of an engine
)

// ahead is what a volume knows of its stream.
type ahead struct {
	mu      sync.Mutex
	next    uint64 // block that a stream would read next
	length  int    // blocks read in order up to it
	fetched uint64 // the stream has been fetched up to here
	busy    bool   // a window is being fetched
}

// note enters a read and tells whether it goes on with a stream. It may begin to fetch a window. A
// read that would not ask the cache ends a stream: what is fetched for it would be read twice.
func (a *ahead) note(v *Volume, block uint64, count int) bool {
	if v.e.cfg.Reads == nil {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if block != a.next || count > streamBlocks {
		a.next, a.length, a.fetched = block+uint64(count), count, 0
		return false
	}
	a.next, a.length = a.next+uint64(count), a.length+count
	if a.length < streamLeast {
		return false
	}
	from := max(a.fetched, a.next)
	if end := v.blocks(); !a.busy && from < min(end, a.next+aheadBlocks) {
		to := min(from+aheadBlocks, end, (from/segment.LeafBlocks+1)*segment.LeafBlocks)
		if v.e.aheads.begin() {
			a.busy, a.fetched = true, to
			go func() {
				defer v.e.aheads.end()
				v.fetch(from, int(to-from))
				a.mu.Lock()
				a.busy = false
				a.mu.Unlock()
			}()
		}
	}
	return true
}

// blocks gives how many blocks the volume has.
func (v *Volume) blocks() uint64 { return uint64(v.end.Load()) / segment.BlockSize }

// fetch reads blocks of one extent into the cache. What cannot be read or does not verify is left
// to who asks for it.
func (v *Volume) fetch(block uint64, count int) {
	rd := readers.Get().(*reader) //nolint:errcheck,forcetypeassert // the pool holds nothing else
	defer rd.release()
	rd.again, rd.had = false, 0
	if rd.lookup(v, block, count, nil) != nil {
		return
	}
	buf := v.e.aheads.buffer()
	defer v.e.aheads.put(buf)
	for i := 0; i < count; {
		if rd.loc[i].Kind() != segment.Flash || v.e.nv.holds(rd.loc[i]) {
			i++
			continue
		}
		if rd.loc[i].Packed() {
			n := rd.fetchPacked(v, i, buf)
			if n == 0 {
				return
			}
			i += n
			continue
		}
		n := rd.together(i)
		p := buf[:n*segment.BlockSize]
		if v.e.dev.ReadAt(p, rd.loc[i].Off()) != nil {
			return
		}
		for j := range n {
			b := p[j*segment.BlockSize : (j+1)*segment.BlockSize]
			if rd.verify(b, i+j, 1) < 0 {
				v.e.cfg.Reads.Ahead(v.e.placeOf(rd.loc[i+j]), b)
			}
		}
		i += n
	}
}

// aheads is what an engine has under way ahead of streams.
type aheads struct {
	wg sync.WaitGroup
	mu struct {
		sync.Mutex
		n     int
		ended bool
		spare [][]byte
	}
}

// begin takes one of the places; false when there is none.
func (a *aheads) begin() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mu.ended || a.mu.n == aheadsMax {
		return false
	}
	a.mu.n++
	a.wg.Add(1)
	return true
}

func (a *aheads) end() {
	a.mu.Lock()
	a.mu.n--
	a.mu.Unlock()
	a.wg.Done()
}

// stop lets nothing begin any more and waits for what is under way.
func (a *aheads) stop() {
	a.mu.Lock()
	a.mu.ended = true
	a.mu.Unlock()
	a.wg.Wait()
}

// buffer gives memory for a window.
func (a *aheads) buffer() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := len(a.mu.spare); n > 0 {
		p := a.mu.spare[n-1]
		a.mu.spare = a.mu.spare[:n-1]
		return p
	}
	return backends.AlignedBuffer(aheadBlocks * segment.BlockSize)
}

func (a *aheads) put(p []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mu.spare = append(a.mu.spare, p)
}
