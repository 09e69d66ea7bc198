// Package rest serves the native API under /v1: commands in, views out. It decides nothing and
// keeps no state. The OpenAPI 3.1 document is generated from this code, at /openapi.json.
//
// Rules of the API:
//
//   - every mutation takes an Idempotency-Key; the same key with the same body answers the first
//     result, with another body 422. Without a key nothing is promised on retry.
//   - every mutation answers with Weft-Position; a GET with min_position waits until the views
//     hold it
//   - every GET takes at_position and then shows the past
//   - objects carry an ETag, "timeline.revision" of their stream; If-Match refuses a stale writer
//   - errors are RFC 9457 problems with the kind of the error, its reference, a remedy, and all
//     violations at once; they never echo what the client sent as a value
//   - positions are decimal strings, sizes are bytes, times RFC 3339
package rest
