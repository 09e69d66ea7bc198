package projections

import (
	"encoding/json"
	"io"
)

// WriteDigest writes a view's state for Digest as JSON, which is deterministic as long as the state
// is made of structs, of slices in a fixed order, and of maps whose keys are text.
func WriteDigest(w io.Writer, state any) error { return json.NewEncoder(w).Encode(state) }
