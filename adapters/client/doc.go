// Package client is the typed Go client of Weft's API /v1. The command line uses it, and so do the
// adapters that drive Weft from elsewhere. It carries wire types of its own, so that it can be
// used without the server.
//
// What it promises:
//
//   - Every change bears an Idempotency-Key, drawn once per call and kept over its retries: a reply
//     that was lost makes no second object (C1).
//   - It retries 429, 503 and broken connections, a bounded number of times with growing pauses,
//     and honours Retry-After up to a bound (C2). Nothing else is retried.
//   - Every failure is a *domain.Error: of the problem document when the node sent one, of kind
//     Unavailable when no node answered (C3).
//   - A watch goes on after the last event it delivered when its connection breaks: no event is
//     missed and none is delivered twice (C4).
//
// A Client may be used from several goroutines. It starts none that outlives a call; Close gives
// idle connections up.
package client
