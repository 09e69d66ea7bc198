// Package fsck reads a device without an engine: it decodes what stands where, replays the log and
// counts what lives a second time, and compares. It is naive on purpose. It shares with the engine
// the codecs of dataplane/segment and nothing else, keeps the index as plain maps, resolves every
// name by laying branch over branch from the root on, and takes none of the engine's shortcuts; so
// a mistake would have to be made twice to stay hidden.
//
// It never writes, and has no way to: it is given a Reader. The device must belong to nobody
// meanwhile, or it will see half of what is being written.
//
// What it proves of a sound device:
//
//	K1 the three superblocks agree, both copies of the newest anchor are there, and root and leaves
//	   are what the checkpoint says they are;
//	K2 replaying the log behind the checkpoint meets no damage that anything proves durable;
//	K3 every block that some name sees stands inside a segment, in one place, that no other block
//	   claims, under an entry of that segment which names its branch, its block and its checksum;
//	K4 after a clean stop nothing stands in the index that no name sees, and the log is empty behind
//	   the marks;
//	K5 the bytes of every such block match (where the data is read).
//
// It needs about 40 bytes of memory for each live block.
package fsck
