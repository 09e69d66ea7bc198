// Package kurrent is the engine over an EventStoreDB or KurrentDB cluster, through its official Go
// client v4.2.0. It is for those who run such a cluster and want our events there: as a copy that
// eventstore/duplicate keeps, or as the target of a change of engine.
//
// It passes storetest with these differences, which its Engine declares:
//
//   - n of a position is the server's commit position: unique and increasing, with gaps. A cursor
//     must be 0 or a position that was given out.
//   - The chain runs per stream, hash = SHA-256(prev of the stream | content), because the server
//     gives a position only after the append. It stands in the custom metadata (eventstore's
//     FORMAT.md) and is verified on every read, back to the event before.
//   - Any and Exists become At(current): a chained event must know its predecessor.
//   - An event id is known at the place an append expects and among the last idsMax of its stream;
//     one that was used in another stream is not found out.
//   - Each append has a random mark in the metadata, since the server's success for a repeat is
//     that of the first: by it a repeat is told as one, whichever store sends it.
//   - A fencing token is judged by a read before the append, not in one step with it. Terms and
//     fencing therefore stay with the embedded log.
//   - Who follows is told when it has caught up (servers from 23.10 on say so), and that it fell
//     behind only if the server says it.
//
// What the client does wrong is kept from callers, each case with a test: a client that gave up is
// dead for ever and makes whoever waits beside it hang, so that a client serves one call at a time
// and is replaced when it failed; one that lost its server leaks the connection; Recv panics on
// messages it does not know; the text of a wrong expected version is not read, the stream is;
// subscriptions do not come back; "requires leader" never reaches the wire; the first call on a
// follower fails; its log goes to the console.
//
// A server that stamps events with a time that is no integer ends the whole process (log.Fatalf in
// the client); it can not be caught, so only a configured cluster may be connected to.
//
// This room was proved against adapters/esdb and testing/esdouble alone. No real cluster was run.
package kurrent
