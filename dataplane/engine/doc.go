// Package engine is the log-structured store of one device: it takes records of 4 KiB blocks,
// writes them to the log in group commits, keeps the index from block to place, cleans segments,
// takes checkpoints and recovers from any crash.
//
// # What it promises
//
//	E1  An acknowledged record is read back after any crash, until a later record replaced it.
//	E2  The state after a crash is a prefix of each lane's LSN order.
//	E2b A record is there whole or not at all.
//	E3  Torn, reordered and stale chunks are never visible; cut ones never come back.
//	E3b Damage inside the durable log is reported and costs only its own entries.
//	E5  A snapshot is what its volume held at one instant, to the byte; what no name sees is free.
//	E5b What a name says that it holds alone (Sharing) is what its deletion gives back.
//	E6  Cleaning changes no readable byte.
//	E7  A segment is written again only after an anchor that no longer refers to it.
//	E9  Unmap, delete and cleaning succeed on a full device; no wait without a wake-up.
//	E10 Bytes that do not match their checksum are never returned.
//	E11 Behind a failed flush nothing is trusted: the engine goes out of service, its log stays.
//	E12c No key closes two blocks under one nonce; erasing a volume takes no clone with it.
//	E14 What a journal acknowledged survives every race between overwriting and destaging it.
//	E22 A compressed block is what it was, and takes exactly as much less room as is counted.
//	E15 An idle engine writes nothing.
//	E16 A device that needs its journal is not opened without it, but by a word of its operator.
//
// # Shape
//
// A device holds lanes. An extent (4 MiB of one branch) belongs to one lane, and a lane owns one
// LSN counter, one log chain, its part of the index, and one mutex. A host's goroutine copies its
// record into the lane's open chunk and leaves; two writers per lane seal whatever has gathered
// and write it in one go, so group commit needs no timer. A chunk is acknowledged when it and all
// chunks before it are durable; only then does the index change, so a reader never sees what a
// crash could take back.
//
//	Append -> [open chunk] -> seal (place, chain) -> write+FUA -> in LSN order: index, Appended
//
// One maintenance goroutine per device takes checkpoints and cleans. It alone frees segments, and
// only behind an anchor: so recovery may always trust what the last anchor and the log behind it
// name, needs no order between a move and its source, and ignores the cleaner's chunks that no
// checkpoint has taken up. The price is that cleaning under a full device takes checkpoints.
//
// # Journal
//
// With a share of NVRAM (Config.Journal) a record is stored there, enters the index and is
// acknowledged in the host's own call; the log takes it later, sorted with others, if it was not
// overwritten by then (nvram.go). A goroutine of each lane, the placer, gives the destager's chunks
// their places, and others, the carriers, write them, several at once. The log itself, checkpoints,
// cleaning and recovery know nothing of it but this: an image calls a block lost whose newest copy
// is in the journal, an anchor names the journal, and after the log the journal is replayed.
//
// The order of records against branches needs no more: a record names a branch that its host can
// only have learnt when the BRANCH record was durable in the log, so after a crash the branch is
// there before the journal is replayed; and a cut happens under all lanes' mutexes, where every
// record appended before it is in the index already.
//
// # Families
//
// A volume, its snapshots and its clones are a family: a tree of branches. Only heads take writes.
// A cut freezes the head and puts a new one on it: one record in the first lane's log, and one
// instant under all lanes' mutexes, whatever the size. Every record names the branch that was the
// head when it was appended, so it goes where it belongs whenever it is entered or replayed.
//
// A leaf holds what one branch wrote in one extent. A reader asks the leaf of its branch, then that
// of the nearest older one, and so on:
//
//	head        [ . 7 . . H . ]      H: a hole over what is older
//	snapshot 2  [ . . . 5 . . ]      the head reads [ 1 7 2 5 - 4 ]
//	snapshot 1  [ 1 3 2 . 6 4 ]
//
// Each copy of a block stands in one leaf only, so the cleaner moves it by one change and nobody
// counts references: a copy is live while the way from some name to it is free. What a write hides
// is dropped at once if no name is left (hidden), what a deletion leaves behind by the sweep. A
// leaf that would stand deeper than depthMax keeps a view, all it sees resolved, in no image.
//
// # Encryption
//
// A volume is encrypted for all its life, or never. Its blocks are closed when their chunk is given
// its place, or put into the journal, since key and nonce follow from that (crypt.go), and opened
// behind the checksum of a read. Its key stands, wrapped under the cluster's, in the device's key
// table (keys.go). A clone has a key of its own; what it sees of its origin stays under the
// origin's, which is therefore destroyed only when no branch is left that wrote under it.
//
// # Replicas
//
// A replica's records have versions that others have given; what each does is decided when it is
// accepted and logged with it (replica.go). Until a record is settled it is held, whole, and its
// blocks live whether a leaf names them or not; the cleaner moves it so (replicamove.go). What is
// known of a slice beside that is in replicastate.go. A copy that missed writes becomes whole in a
// join session (replicaera.go), by copies of blocks (replicafill.go), from a member that noted what
// may be missing (replicadirty.go). It is cut by generation, into a line of branches
// (replicacut.go). Its records go through the journal, by a few rules of order (replicajournal.go).
// Ordinary volumes pay a comparison with nil.
//
// # Compression
//
// Where its volume says so a block is compressed when it is destaged or moved (squeeze.go), to 1 to
// 7 units of 512 bytes, and stays so. The index has its place in units and its length.
//
// # Space
//
// NoSpace is decided when a record is appended: its data and the growth of its leaf's image must
// fit what cleaning can always win back. Overwrites, unmaps and deletions need no room of their
// own, unless a snapshot keeps what they replace. Of the free segments, hosts leave some for the
// cleaner, and both leave what the next checkpoint would write. Whoever waits for a segment is
// woken by a checkpoint, and whatever may make a segment worth cleaning wakes the maintenance while
// somebody waits.
//
// # Pair
//
// On a pair of flash and disk (backends/hybrid) the log goes on over both: the disk's segments are
// those of the cleaner's cold stream and of nothing else. What is cold goes there as the cleaner
// moves blocks, driven by the fill of the flash (disk.go). What is read again there is copied to
// free segments of the flash, which nothing but the read knows of (copies.go), or comes back.
//
//	E19 No random write reaches the disk: each goes on where the one before ended, or begins a
//	    segment.
//
// # Migration
//
// A family goes to another engine while it is in use (migrate.go): its tree is copied branch by
// branch, what hosts write meanwhile once more, and a line in the log is the switch. Ordinary
// volumes pay a comparison with nil.
//
// # Locks
//
// Engine.control, of a migration the source's before the target's, before maintenance.ckpt and
// lane.seal before lane.mu, those by number and all of them for a change of the tree, before
// Engine.mu; nvram.mu behind lane.mu; space.mu, copies.mu, replica.mu, fresh.mu and requests are
// leaf locks. A batch is destaged under nvram.turn, before all of them. The cleaner and the
// destager may rest for hosts (qos.Scheduler.Begin) under maintenance.ckpt and nvram.turn, not
// under a lane's mutex. No call into the device is made with lane.mu or space.mu held. Appended
// callbacks run without any lock.
package engine
