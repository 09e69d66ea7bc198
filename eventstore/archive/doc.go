// Package archive keeps a history in sealed, hashed files: what an online backup writes, what a
// restore reads, and where old ranges of the log go.
//
// A folder holds segments of consecutive records, each named by its first n, and nothing else that
// matters: no manifest, so none can disagree with them. A segment that is full is sealed and never
// written again; the last one is replaced as a whole when the log has grown. Each file is written
// beside its name, flushed, and renamed, and then the folder is flushed.
//
// Two things keep such a folder. Folder is a backup: written and read from end to end. History is
// the old part of a node's own log: open at any place, with an index beside each segment, and with
// bounds that follow from n alone, so that every node has the same files and any can give them to
// any other. A segment of a History counts once it was read back from the disk and verified whole.
//
// Every byte of a file is covered twice: records by their own checksum, content hash and chain
// (eventstore's FORMAT.md), head and foot by a checksum, and the whole by a SHA-256 in the foot,
// which is the segment's root: equal roots, equal histories. A segment names the hash it
// continues, so files of two histories, or a lost file between two, are found.
package archive
