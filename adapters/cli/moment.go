package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"weft/domain"
)

// momentFlag is a flag that takes a moment of the past. Text is how the API takes it: a position,
// or an RFC 3339 time; empty until it is given.
type momentFlag struct {
	text string
	now  func() time.Time // nil: time.Now
}

// atFlag adds --at.
func atFlag(cmd *cobra.Command, m *momentFlag) {
	cmd.Flags().Var(m, "at", "show the state at this position of the event log, or at this time")
}

// String implements pflag.Value.
func (m *momentFlag) String() string { return m.text }

// Type implements pflag.Value.
func (*momentFlag) Type() string { return "when" }

// layouts are the forms of a person's own clock.
var layouts = []string{"2006-01-02 15:04:05", "2006-01-02 15:04", time.DateOnly}

// Set implements pflag.Value.
func (m *momentFlag) Set(s string) error {
	if p, err := domain.ParsePosition(s); err == nil {
		m.text = p.String()
		return nil
	}
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		m.text = t.UTC().Format(time.RFC3339Nano)
		return nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		now := time.Now
		if m.now != nil {
			now = m.now
		}
		m.text = now().Add(-d).UTC().Format(time.RFC3339Nano)
		return nil
	}
	for _, l := range layouts {
		if t, err := time.ParseInLocation(l, s, time.Local); err == nil {
			m.text = t.UTC().Format(time.RFC3339Nano)
			return nil
		}
	}
	return fmt.Errorf("%q is neither a position, nor a time, nor how long ago", s)
}
