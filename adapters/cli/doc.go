// Package cli is the command line of Weft: it turns words into calls of the API and answers into
// tables, JSON or YAML. What needs the node itself (serve, demo, the token) is handed in as
// Programs; everything else goes through adapters/client, as any other client would.
//
// Its contract:
//
//   - Results go to standard output; errors, hints and progress to standard error (L1).
//   - -o json is stable: fields are added, never renamed or removed; golden files hold it (L2).
//   - Exit codes: 0 ok, 1 error, 2 not valid, 3 conflict, 4 degraded, 5 timeout (L3).
//   - An error is one line, its violations one line each, and a line that says what to do (L4).
//   - Hints and colours appear on a terminal only; NO_COLOR is honoured (L5).
package cli
