package journal

import (
	"fmt"
	"slices"

	"weft/backends"
	"weft/dataplane/checksum"
	"weft/domain"
)

// SharesMax is the most devices that share a region.
const SharesMax = 64

const (
	regionMagic = 0x31524e4a54464557 // "WEFTJNR1"
	shareSize   = 32                 // of a line of the table
	sharesOff   = 128
)

// Region is a node's NVRAM with a table of the shares of its devices. It belongs to whoever opened
// it; only its shares are used from many goroutines.
type Region struct {
	dev  backends.ByteDevice
	head regionHeader
}

type regionHeader struct {
	cluster domain.ClusterID
	node    domain.NodeID
	turn    uint64
	shares  []share
}

type share struct {
	device    domain.DeviceID
	off, size int64
}

// OpenRegion takes memory that is a node's region, or makes a region of memory that is zero where a
// region begins. It returns Denied for that of another node, Exists for memory that holds something
// else, Corrupt where the table is damaged: what the devices need is not told then.
func OpenRegion(dev backends.ByteDevice, cluster domain.ClusterID, node domain.NodeID) (*Region,
	error,
) {
	r, path := &Region{dev: dev}, dev.Geometry().Path
	mem := dev.Bytes()
	if len(mem) < headerMax {
		return nil, domain.Errorf(domain.Invalid, "%s: %d bytes are no region", path, len(mem))
	}
	head, found, ours := newest(mem)
	r.head = head
	switch {
	case !slices.ContainsFunc(mem[:2*page], func(b byte) bool { return b != 0 }):
		r.head = regionHeader{cluster: cluster, node: node}
		r.write()
	case !found && ours:
		return nil, domain.Errorf(domain.Corrupt, "%s: the table of shares is damaged", path)
	case !found:
		return nil, &domain.Error{
			Kind: domain.Exists, Ref: path, Msg: "the memory holds data that is not Weft's",
			Remedy: "wipe it by hand if it may go",
		}
	case r.head.cluster != cluster || r.head.node != node:
		return nil, &domain.Error{
			Kind: domain.Denied, Ref: path,
			Msg:    fmt.Sprintf("the NVRAM belongs to node %s of cluster %s", r.head.node, r.head.cluster),
			Remedy: "use the data folder of that node, or wipe the memory by hand",
		}
	}
	return r, nil
}

// newest gives the newer of a region's two tables that verify, and tells whether either is one of a
// region at all.
func newest(mem []byte) (head regionHeader, found, ours bool) {
	for i := range 2 {
		if len(mem) < (i+1)*page {
			break
		}
		p := mem[i*page : (i+1)*page]
		ours = ours || le.Uint64(p) == regionMagic
		if h, ok := decodeRegion(p, int64(len(mem))); ok && (!found || h.turn > head.turn) {
			head, found = h, true
		}
	}
	return head, found, ours
}

// Allot gives the devices that have no share one each: equal parts of what is free, as far as that
// is at least least for each of them; else none. Durable on return.
func (r *Region) Allot(devices []domain.DeviceID, least int64) {
	var without []domain.DeviceID
	for _, d := range devices {
		if _, ok := r.Share(d); !ok {
			without = append(without, d)
		}
	}
	off, free := r.gap()
	if len(without) == 0 || len(r.head.shares)+len(without) > SharesMax {
		return
	}
	size := free / int64(len(without)) / page * page
	if size < max(least, page) {
		return
	}
	for _, d := range without {
		r.head.shares = append(r.head.shares, share{d, off, size})
		off += size
	}
	slices.SortFunc(r.head.shares, func(a, b share) int { return int(a.off/page) - int(b.off/page) })
	r.write()
}

// gap gives the largest free stretch behind the table.
func (r *Region) gap() (off, size int64) {
	at := int64(headerMax)
	end := share{off: int64(len(r.dev.Bytes())) / page * page}
	for _, s := range append(slices.Clone(r.head.shares), end) {
		if s.off-at > size {
			off, size = at, s.off-at
		}
		at = s.off + s.size
	}
	return off, size
}

// Release takes a device's share back. Nothing of it may be needed any more. Durable on return.
func (r *Region) Release(device domain.DeviceID) {
	n := len(r.head.shares)
	r.head.shares = slices.DeleteFunc(r.head.shares, func(s share) bool { return s.device == device })
	if len(r.head.shares) < n {
		r.write()
	}
}

// Devices lists whose shares there are.
func (r *Region) Devices() []domain.DeviceID {
	list := make([]domain.DeviceID, len(r.head.shares))
	for i, s := range r.head.shares {
		list[i] = s.device
	}
	return list
}

// Share gives a device's part of the memory; false when it has none.
func (r *Region) Share(device domain.DeviceID) (backends.ByteDevice, bool) {
	for _, s := range r.head.shares {
		if s.device == device {
			return &part{r.dev, s.off, s.size}, true
		}
	}
	return nil, false
}

// Geometry describes the memory.
func (r *Region) Geometry() backends.Geometry { return r.dev.Geometry() }

func (r *Region) write() {
	r.head.turn++
	off := int64(r.head.turn%2) * page
	r.head.encode(r.dev.Bytes()[off : off+page])
	r.dev.Persist(off, page)
}

func (h *regionHeader) encode(b []byte) {
	clear(b)
	le.PutUint64(b[0:], regionMagic)
	le.PutUint32(b[8:], version)
	le.PutUint32(b[12:], uint32(len(h.shares)))
	copy(b[16:], h.cluster.UUID[:])
	copy(b[32:], h.node.UUID[:])
	le.PutUint64(b[48:], h.turn)
	for i, s := range h.shares {
		p := b[sharesOff+i*shareSize:]
		copy(p, s.device.UUID[:])
		le.PutUint64(p[16:], uint64(s.off))
		le.PutUint64(p[24:], uint64(s.size))
	}
	le.PutUint32(b[page-4:], checksum.Sum(b[:page-4]))
}

// decodeRegion reads a table, whose shares lie one behind the other in memory of a size.
func decodeRegion(b []byte, size int64) (h regionHeader, ok bool) {
	n := int(le.Uint32(b[12:]))
	if le.Uint64(b) != regionMagic || le.Uint32(b[8:]) != version || n > SharesMax ||
		le.Uint32(b[page-4:]) != checksum.Sum(b[:page-4]) {
		return h, false
	}
	copy(h.cluster.UUID[:], b[16:])
	copy(h.node.UUID[:], b[32:])
	h.turn = le.Uint64(b[48:])
	at := int64(headerMax)
	for i := range n {
		p := b[sharesOff+i*shareSize:]
		s := share{off: int64(le.Uint64(p[16:])), size: int64(le.Uint64(p[24:]))}
		copy(s.device.UUID[:], p)
		if s.off < at || s.size <= 0 || s.size > size || s.off > size-s.size ||
			s.off%page != 0 || s.size%page != 0 {
			return h, false
		}
		at = s.off + s.size
		h.shares = append(h.shares, s)
	}
	return h, true
}

// part is a stretch of memory.
type part struct {
	dev       backends.ByteDevice
	off, size int64
}

// Geometry describes the stretch.
func (p *part) Geometry() backends.Geometry {
	g := p.dev.Geometry()
	g.Size, g.Path = p.size, fmt.Sprintf("%s at %d", g.Path, p.off)
	return g
}

// Bytes gives the stretch.
func (p *part) Bytes() []byte { return p.dev.Bytes()[p.off : p.off+p.size : p.off+p.size] }

// Persist makes a range of the stretch durable.
func (p *part) Persist(off, n int64) { p.dev.Persist(p.off+off, n) }

// Close does nothing: the memory is the region's.
func (*part) Close() error { return nil }
