package engine

import (
	"context"
	"crypto/cipher"
	"log/slog"
	"sync"
	"sync/atomic"

	"weft/backends"
	"weft/dataplane/cache"
	"weft/dataplane/qos"
	"weft/dataplane/segment"
	"weft/dataplane/tier"
	"weft/domain"
)

// Mode says when a record counts as durable.
type Mode uint8

// The modes.
const (
	// Durable acknowledges what survives a power cut: each chunk is written with FUA on a device
	// whose cache is volatile.
	Durable Mode = iota
	// Process acknowledges what survives a crash of this process only. For development and for
	// comparison with peers that never flush; the volume's status says so.
	Process
)

// String names the mode as the volume's status does.
func (m Mode) String() string {
	if m == Process {
		return "process"
	}
	return "durable"
}

// Config is what Open needs. Zero fields mean the defaults.
type Config struct {
	Device  backends.Device
	Cluster domain.ClusterID // checked against the superblock
	Node    domain.NodeNumber
	Mode    Mode
	// Journal is the device's share of NVRAM, all of it for this device; nil is none. A share that was
	// never used is formatted. Once used it belongs to the device: without it, or with another, Open
	// refuses. It stays the caller's to close, after the engine.
	Journal backends.ByteDevice
	// DropJournal lets Open destage all that the journal holds and give it up before anything else is
	// done, so that the device needs it no more.
	DropJournal bool
	// AcceptLoss lets Open go on where the journal that the device needs is not the one it is given:
	// what was acknowledged and stood there only is gone. It is reported, once for each volume.
	AcceptLoss bool
	// ClusterKey, 32 bytes, wraps the keys of encrypted volumes. Without it, or under another than
	// they were made under, those volumes are there and are not served (Volume.Keyless); everything
	// else goes on. Open keeps no reference to it.
	ClusterKey []byte
	// Reads keeps what is read again and again; engines may share one. nil: nothing is kept.
	Reads *cache.Cache
	// CheckpointBytes of log are written between checkpoints: it bounds recovery. Default: an
	// eighth of the device, at most 16 GiB.
	CheckpointBytes int64
	// Clock is what the pace of writers into a journal goes by, and by what the cleaner learns how it
	// reads best; the zero value is the system's.
	Clock tier.Clock
	// Report is told of every corruption and failure, once each. It must not block.
	Report func(Fact)
	Logger *slog.Logger

	// closing is told of every block that is encrypted, in tests.
	closing func(a cipher.AEAD, nonce, block []byte)
	// strew lets each batch of the destager go straight that may, in tests, whatever it is like.
	strew bool
}

// Fact is a change of a device's trustworthiness, for the log of the node and its operator.
type Fact struct {
	What   string // "corrupt", "failed", "recovered", "journal-lost"
	Device domain.DeviceID
	Volume domain.VolumeID // zero when not about a volume
	Block  uint64
	Detail string
}

// Engine is the store of one device. All methods may be called from many goroutines.
type Engine struct {
	cfg Config
	dev backends.Device
	// lendFrom overrules partMin in tests; 0 does not.
	lendFrom int
	super    *segment.Superblock
	fua      bool
	lanes    []*lane
	space    *space
	cache    chunkPool
	nv       *nvram // nil without a journal
	cached   uint32 // the device's number in the cache of reads
	aheads   aheads
	copies   copies
	sched    *qos.Scheduler
	keys     keyring
	requests requests // what replicas hold, by request
	floors   floors
	// lossAccepted says what was wrong with the journal that Open went on without.
	lossAccepted error
	// footers are, by stream, the bytes of the body that was written last.
	footers [segment.StreamCount]atomic.Int64
	behind  sync.WaitGroup // footers and headers of lanes' segments that are under way

	incarnation uint32
	versionSeq  atomic.Uint64 // the last version seq given out
	anchorSeq   atomic.Uint64 // of the last durable anchor, which every segment's header repeats
	failed      atomic.Bool
	faults      atomic.Uint64 // flushes that failed, and durable writes: nothing unflushed is trusted

	mu struct {
		sync.RWMutex
		branches   map[uint32]*branch
		byVolume   map[domain.VolumeID]*Volume
		bySnapshot map[domain.SnapshotID]*Volume
		replicas   map[uint32]*replica          // by branch
		graves     map[domain.VolumeID]struct{} // replicas that were deleted
		nextBranch uint32
		closed     bool
	}
	control sync.Mutex // serialises what changes branches

	maint   maintenance
	scrub   scrubState
	windows [2]*window // of the cleaner
	stats   counters
}

// counters are the engine's own statistics.
type counters struct {
	records, reads, userBytes, readBytes   atomic.Int64
	chunks, logBytes, movedBytes, metaByte atomic.Int64
	checkpoints, cleaned, corrupt, stalls  atomic.Int64
	destaged, destages, delayed, full      atomic.Int64
	cooled, promoted, diskCleaned, held    atomic.Int64
	copied, copyReads                      atomic.Int64
	packed, packedBytes                    atomic.Int64
}

// Stats is a reading of the engine. Sizes are bytes, counts are since Open.
type Stats struct {
	Records, Reads                            int64
	UserBytes, ReadBytes                      int64
	Chunks, LogBytes, MovedBytes, MetaBytes   int64
	Checkpoints, Cleaned, Corruptions, Stalls int64
	Segments, FreeSegments, ReservedSegments  int64
	LiveBytes, UsableBytes, CapacityBytes     int64
	// GarbageBytes is what segments that are not free hold beside what lives: what was overwritten
	// and deleted, which the cleaner wins back; headers, checkpoints, and what is not written yet of
	// an open one.
	GarbageBytes                             int64
	SinceCheckpoint, IndexBytes, OpenVolumes int64

	// JournalBytes is the size of the NVRAM journal, 0 without one, and JournalUsed what is not free
	// of it. Of what hosts wrote, DestagedBytes went to the device so far; the rest is in the journal
	// or was overwritten there. JournalDelayed records waited for their turn, JournalFull for room.
	JournalBytes, JournalUsed   int64
	DestagedBytes, Destages     int64
	JournalDelayed, JournalFull int64

	// PackedBlocks were compressed, to PackedBytes. SavedBytes is by how much what lives on the device
	// takes less room than its size, so LiveBytes and it make up the data.
	PackedBlocks, PackedBytes, SavedBytes int64

	// Of a pair: DiskBytes is the capacity of the disk and DiskLiveBytes what lives there, both
	// counted above, too; 0 where there is none. FlashFill is how full the flash is, in parts of a
	// thousand. CooledBytes were destaged to the disk, PromotedBytes went back, CopiedBytes were
	// copied to free segments of the flash, CopyReads counts the reads that were served from there,
	// DiskCleaned the disk's segments that were cleaned, FlashDelayed the chunks of hosts that were
	// kept back.
	DiskBytes, DiskLiveBytes, FlashFill int64
	CooledBytes, PromotedBytes          int64
	CopiedBytes, CopyReads              int64
	DiskCleaned, FlashDelayed           int64
}

// Stats reads the counters; the values are not of one instant.
func (e *Engine) Stats() Stats {
	s := Stats{
		Records: e.stats.records.Load(), Reads: e.stats.reads.Load(),
		UserBytes: e.stats.userBytes.Load(), ReadBytes: e.stats.readBytes.Load(),
		Chunks: e.stats.chunks.Load(), LogBytes: e.stats.logBytes.Load(),
		MovedBytes: e.stats.movedBytes.Load(), MetaBytes: e.stats.metaByte.Load(),
		Checkpoints: e.stats.checkpoints.Load(), Cleaned: e.stats.cleaned.Load(),
		Corruptions: e.stats.corrupt.Load(), Stalls: e.stats.stalls.Load(),
		SinceCheckpoint: e.maint.logged.Load(), OpenVolumes: int64(len(e.Volumes())),
	}
	e.space.read(&s)
	s.CooledBytes, s.PromotedBytes = e.stats.cooled.Load(), e.stats.promoted.Load()
	s.CopiedBytes, s.CopyReads = e.stats.copied.Load(), e.stats.copyReads.Load()
	s.DiskCleaned, s.FlashDelayed = e.stats.diskCleaned.Load(), e.stats.held.Load()
	s.PackedBlocks, s.PackedBytes = e.stats.packed.Load(), e.stats.packedBytes.Load()
	s.SavedBytes = e.space.saved.Load()
	if e.nv != nil {
		e.nv.read(&s)
	}
	for _, l := range e.lanes {
		s.IndexBytes += l.memory.Load()
	}
	return s
}

// Info describes the device under the engine.
func (e *Engine) Info() (domain.DeviceID, backends.Geometry) {
	return e.super.Device, e.dev.Geometry()
}

// clock gives the engine's clock.
func (e *Engine) clock() tier.Clock {
	if e.cfg.Clock.Now == nil {
		return tier.System()
	}
	return e.cfg.Clock
}

// Scheduler gives what shares the device between its volumes and the engine's own work. Reads and
// records do not pass through it by themselves: disks ask it before they come here.
func (e *Engine) Scheduler() *qos.Scheduler { return e.sched }

// Mode tells what an acknowledgement means: Process also where the journal is volatile.
func (e *Engine) Mode() Mode {
	if e.nv != nil && e.nv.share.Volatile() {
		return Process
	}
	return e.cfg.Mode
}

// Journal describes the memory of the engine's journal; false when it has none.
func (e *Engine) Journal() (backends.Geometry, bool) {
	if e.nv == nil {
		return backends.Geometry{}, false
	}
	return e.nv.share.Geometry(), true
}

// Volatile tells whether an acknowledged write may be lost by a power cut.
func (e *Engine) Volatile() bool {
	return e.cfg.Mode == Process || e.dev.Geometry().Durability == backends.Volatile ||
		e.nv != nil && e.nv.share.Volatile()
}

// Flush makes everything acknowledged durable. In Durable mode that is so already, but for what a
// volatile journal holds: that is destaged.
func (e *Engine) Flush(ctx context.Context) error {
	if !e.Volatile() {
		return nil
	}
	if e.nv != nil && e.nv.share.Volatile() {
		if err := e.nv.drain(ctx); err != nil {
			return err
		}
	}
	err := e.dev.Flush(ctx)
	if err != nil {
		e.faults.Add(1)
	}
	return e.device(err, "engine.Flush")
}

// report notes a fact once.
func (e *Engine) report(f Fact) {
	f.Device = e.super.Device
	if f.What == "corrupt" || f.What == "journal-lost" {
		e.stats.corrupt.Add(1)
	}
	if e.cfg.Report != nil {
		e.cfg.Report(f)
	}
}

// fail takes the engine out of service: a device that refuses the same chunk in two segments.
func (e *Engine) fail(err error) {
	if !e.failed.Swap(true) {
		e.report(Fact{What: "failed", Detail: err.Error()})
		e.space.wake()
		for _, l := range e.lanes {
			l.wake()
		}
		e.nv.wake()
	}
}

// device translates a backend's error, once, at this edge.
func (e *Engine) device(err error, op string) error {
	return translate(err, op, e.dev.Geometry().Path)
}

// Close takes a checkpoint, marks the device clean, stops all goroutines and leaves the device
// open: it belongs to the caller. Records appended and not yet acknowledged are finished first.
func (e *Engine) Close() error {
	e.mu.Lock()
	if e.mu.closed {
		e.mu.Unlock()
		return nil
	}
	e.mu.closed = true
	e.mu.Unlock()
	e.aheads.stop()
	e.floors.stop()
	e.nv.stop() // what it has not destaged stays there for the next Open
	for _, l := range e.lanes {
		l.close() // what waits for a segment still needs the cleaner
	}
	e.behind.Wait()
	e.maint.stopCleaning()
	e.maint.stop()
	if e.failed.Load() {
		return domain.Errorf(domain.Unavailable, "device failed; its log will be replayed")
	}
	return e.checkpoint(true)
}

// Abandon stops all goroutines and writes nothing more, as a crash would. For tests and for a
// device that is to be given up.
func (e *Engine) Abandon() {
	e.mu.Lock()
	closed := e.mu.closed
	e.mu.closed = true
	e.mu.Unlock()
	if closed {
		return
	}
	e.failed.Store(true)
	e.aheads.stop()
	e.space.wake()
	for _, l := range e.lanes {
		l.wake()
	}
	e.floors.stop()
	e.maint.stopCleaning()
	for _, l := range e.lanes {
		l.close()
	}
	e.nv.stop()
	e.behind.Wait()
	e.maint.stop()
}
