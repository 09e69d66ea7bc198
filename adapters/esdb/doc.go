// Package esdb serves the event log by the gRPC protocol of EventStoreDB, so that its official
// clients of every language replay our history unmodified: server features, gossip, reads of
// streams and of $all in both directions, filters by prefix and by regular expression, catch-up and
// persistent subscriptions.
//
// The log is an audit log. Appends, deletes, tombstones and stream metadata are refused with access
// denied: an intent must pass the command API. A principal bound to a tenant sees that tenant's
// events and no others.
//
// What a recorded event carries besides its bytes is JSON in its custom metadata, with every 64-bit
// number as a decimal string: all that is needed to compute its content hash and its place in the
// chain again. Commit and prepare position are both our position, timeline<<48 | n.
//
// The wire format is that of the protocol files of EventStore-Client-Go v4.2.0 (Apache-2.0), whose
// generated messages are used as they are.
package esdb
