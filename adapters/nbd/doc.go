// Package nbd serves disks by the NBD protocol: fixed newstyle handshake, simple and structured
// replies, base:allocation. It parses, checks, maps errors and holds no state of a disk.
//
// # One connection
//
//	socket -> reader -> Disk.Submit ... Complete -> queue -> one writev per batch -> socket
//	             ^                                    |
//	             +------- a place in flight ----------+
//
// The reader goroutine parses requests out of its buffer and submits each at once. A disk that
// completes inside Submit costs no hop: the reply waits in the queue until the reader has nothing
// left to parse, and then the reader sends all of them itself. A disk that completes later, while
// the reader waits for the socket, wakes the writer goroutine, which sends. So:
//
//	N1  Complete never blocks: it takes the connection's lock, appends, and perhaps wakes.
//	N2  Whoever sends holds mu.sending; replies of a batch leave whole and in order.
//	N3  While mu.busy holds, the reader will send before it waits for anything. So nobody is woken.
//	N4  The reader never waits for the socket to take replies: what does not go out at once is the
//	    writer's. A client that sends without reading cannot lock us, only fill its own limits.
//	N5  A request holds its place and its bytes of flightMax and flightBytesMax from before its
//	    payload is read until its reply is sent. At the limit the socket is not read.
//	N6  Reads whose successor is in the reader's buffer are gathered by the disk. The reader kicks
//	    the disk before it waits for anything, and before a request that is no read.
//
// A reply allocates nothing: requests and buffers come from the connection and go back to it.
//
// # Ending
//
// A connection ends by DISC, by the client's close, by an error of the protocol, or by us: Close,
// or SetExports without its export. In all cases what is in flight is completed by the disk first;
// then its replies are sent as far as the client takes them, within closeGrace; then the socket is
// closed. The protocol has no credentials: listen on loopback or a unix socket, list networks in
// Export.Allow, or require TLS with client certificates.
package nbd
