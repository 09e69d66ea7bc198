package scsi

import (
	"sync"
	"sync/atomic"

	"weft/domain"
)

// Limits of a logical unit.
const (
	attentionMax    = 16  // unit attentions queued per nexus
	registrationMax = 128 // persistent registrations per volume
	nexusMax        = 4096
	transferMax     = int64(domain.MiB)       // bytes of one request to the disk, as advertised
	transferLimit   = int64(32 * domain.MiB)  // bytes of one READ or WRITE that are still served
	atomicMax       = int64(domain.RecordMax) // bytes of one WRITE ATOMIC
	unmapMax        = 1 << 20                 // blocks of one UNMAP
	unmapEntriesMax = 256
	writeSameMax    = int64(domain.GiB)
	compareMax      = 1       // blocks of one COMPARE AND WRITE
	parameterMax    = 1 << 16 // bytes of a parameter list
	answerMax       = 1 << 16 // bytes of parameter data returned
)

// Config says what a logical unit is made of.
type Config struct {
	// Disk is the volume. Required.
	Disk Disk
	// Store keeps persistent reservations. Nil keeps them in memory.
	Store ReservationStore
	// Find gives the disk that a copy command names by its NAA identifier, nil when the initiator
	// must not reach it. A nil Find knows the unit's own disk alone.
	Find func(naa [16]byte) Disk
	// Revision is the product revision level, at most four characters.
	Revision string
}

// Group is a target port group as REPORT TARGET PORT GROUPS gives it.
type Group struct {
	ID    uint16
	State AccessState
	Ports []uint16 // relative target port identifiers
}

// AccessState is an asymmetric access state of SPC.
type AccessState byte

// The asymmetric access states that are in use.
const (
	Optimized     AccessState = 0x0
	NonOptimized  AccessState = 0x1
	Standby       AccessState = 0x2
	Unavailable   AccessState = 0x3
	Offline       AccessState = 0xe
	Transitioning AccessState = 0xf
)

// Unit is one logical unit. Any number of goroutines may use it.
type Unit struct {
	disk     Disk
	store    ReservationStore
	find     func(naa [16]byte) Disk
	revision string
	id       domain.VolumeID
	table    *table

	size   atomic.Int64                 // last size seen; a change raises 2A/09
	dsense atomic.Bool                  // control mode page D_SENSE
	swp    atomic.Bool                  // control mode page SWP
	pr     atomic.Pointer[Reservations] // immutable snapshot, swapped under prMu
	holder atomic.Pointer[nexus]        // holder of RESERVE(6)
	groups atomic.Pointer[[]Group]
	erase  eraser
	gone   atomic.Bool // closed: checked after a task is on its list (S1)

	prMu sync.Mutex // one change of reservations at a time; held during Store.Save

	mu struct {
		sync.Mutex
		nexuses map[*nexus]struct{}
		copies  []copyResult
		closed  bool
	}
	wg    sync.WaitGroup // slow commands
	tasks taskPool
}

// New makes a logical unit over a disk. It returns an error of kind Invalid for a missing or odd
// disk, or that of the store.
func New(c Config) (*Unit, error) {
	if c.Disk == nil {
		return nil, &domain.Error{Op: "scsi.New", Kind: domain.Invalid, Msg: "no disk"}
	}
	info := c.Disk.Info()
	var bad domain.Checker
	bad.Check(info.LogicalBlock == 512 || info.LogicalBlock == 4096, "LogicalBlock",
		"%d is neither 512 nor 4096", info.LogicalBlock)
	bad.Check(info.Size > 0, "Size", "the disk is empty")
	bad.Check(len(c.Revision) <= 4, "Revision", "longer than 4 characters")
	if err := bad.Err("scsi.New", info.Name); err != nil {
		return nil, err
	}
	u := &Unit{
		disk: c.Disk, store: c.Store, find: c.Find, revision: c.Revision, id: info.ID,
		table: newTable(),
	}
	if u.store == nil {
		u.store = &memoryStore{}
	}
	if u.revision == "" {
		u.revision = "1"
	}
	kept, err := u.store.Load(info.ID)
	if err != nil {
		return nil, domain.Wrap(err, "scsi.New", info.Name)
	}
	u.pr.Store(&kept)
	u.size.Store(int64(info.Size))
	u.groups.Store(&[]Group{{ID: 1, State: Optimized, Ports: []uint16{1}}})
	u.mu.nexuses = map[*nexus]struct{}{}
	return u, nil
}

// Close refuses new commands and waits for running ones, after which the disk is not touched any
// more. Nexuses still attached stay answerable: every command ends as if the unit were gone.
func (u *Unit) Close() {
	u.gone.Store(true)
	u.mu.Lock()
	u.mu.closed = true
	u.mu.Unlock()
	u.drain(u.others(nil), 0)
	u.wg.Wait()
}

// SetGroups tells the asymmetric access states of all target port groups; a change raises 2A/06 on
// every nexus. groups belongs to the unit afterwards.
func (u *Unit) SetGroups(groups []Group) {
	u.groups.Store(&groups)
	u.attention(nil, 0x2a, 0x06)
}

// SpaceLow raises the thin provisioning soft threshold, once per nexus until it was reported.
func (u *Unit) SpaceLow() { u.attention(nil, 0x38, 0x07) }

// Reload fetches the reservations from the store after another node changed them, and returns once
// commands that the new state forbids have ended here.
func (u *Unit) Reload() error {
	u.prMu.Lock()
	defer u.prMu.Unlock()
	kept, err := u.store.Load(u.id)
	if err != nil {
		return domain.Wrap(err, "scsi.Reload", u.id.String())
	}
	u.pr.Store(&kept)
	u.drain(u.others(nil), 0)
	return nil
}

// Attach begins a nexus. initiator is the initiator port name ("iqn...,i,0x00023d000001"), target
// that of the target port ("iqn...,t,0x0001"), port its relative identifier. A power-on unit
// attention waits for its first command. The transport calls Close of the nexus in the end.
func (u *Unit) Attach(initiator, target string, port uint16) Nexus {
	n := &nexus{unit: u, initiator: initiator, target: target, port: port}
	n.Attention(0x29, 0x00)
	u.mu.Lock()
	u.mu.nexuses[n] = struct{}{}
	u.mu.Unlock()
	return n
}

// others lists all nexuses but one.
func (u *Unit) others(self *nexus) []*nexus {
	u.mu.Lock()
	defer u.mu.Unlock()
	all := make([]*nexus, 0, len(u.mu.nexuses))
	for n := range u.mu.nexuses {
		if n != self {
			all = append(all, n)
		}
	}
	return all
}

// attention queues a unit attention on all nexuses but one.
func (u *Unit) attention(except *nexus, asc, ascq byte) {
	for _, n := range u.others(except) {
		n.Attention(asc, ascq)
	}
}

// grown notes the disk's size and tells every initiator of a change.
func (u *Unit) grown(size int64) {
	if u.size.Swap(size) != size {
		u.attention(nil, 0x2a, 0x09)
	}
}

// spawn runs a slow command or an erasure in a goroutine that Close joins. It tells whether it did.
func (u *Unit) spawn(f func()) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.mu.closed {
		return false
	}
	u.wg.Go(f)
	return true
}

// group gives the access state of the group that holds a port, and the group's id.
func (u *Unit) group(port uint16) (AccessState, uint16) {
	for _, g := range *u.groups.Load() {
		for _, p := range g.Ports {
			if p == port {
				return g.State, g.ID
			}
		}
	}
	return Optimized, port
}

// memoryStore keeps reservations as long as the process lives.
type memoryStore struct {
	mu   sync.Mutex
	kept map[domain.VolumeID]Reservations
}

// Load implements ReservationStore.
func (m *memoryStore) Load(id domain.VolumeID) (Reservations, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.kept[id], nil
}

// Save implements ReservationStore.
func (m *memoryStore) Save(id domain.VolumeID, r Reservations) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.kept == nil {
		m.kept = map[domain.VolumeID]Reservations{}
	}
	m.kept[id] = r
	return nil
}
