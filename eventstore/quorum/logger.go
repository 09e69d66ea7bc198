package quorum

import (
	"context"
	"log/slog"
	"slices"

	"go.uber.org/zap/zapcore"
)

// idle lists what etcd says at every start, or at the first, that means nothing without listeners
// and before the first snapshot. It goes out at Debug.
var idle = []string{
	"Running http and grpc server on single port. This is not recommended for production.",
	"simple token is not cryptographically signed",
	"Failed to detect schema version",
	"failed to update storage version",
}

// bridge passes what etcd says at Warn and above on to slog and drops the rest. A silent logger
// would hide the one line by which etcd tells that another process holds its files.
type bridge struct {
	to     *slog.Logger
	fields []zapcore.Field
}

var _ zapcore.Core = (*bridge)(nil)

// Enabled implements zapcore.Core.
func (*bridge) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel }

// With implements zapcore.Core.
func (b *bridge) With(f []zapcore.Field) zapcore.Core {
	return &bridge{to: b.to, fields: append(b.fields[:len(b.fields):len(b.fields)], f...)}
}

// Check implements zapcore.Core.
func (b *bridge) Check(e zapcore.Entry, c *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if b.Enabled(e.Level) {
		return c.AddCore(e, b)
	}
	return c
}

// Write implements zapcore.Core.
func (b *bridge) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := slog.LevelWarn
	if e.Level >= zapcore.ErrorLevel {
		level = slog.LevelError
	}
	if slices.Contains(idle, e.Message) {
		level = slog.LevelDebug
	}
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range append(b.fields[:len(b.fields):len(b.fields)], fields...) {
		f.AddTo(enc)
	}
	b.to.Log(context.Background(), level, "etcd: "+e.Message, "fields", enc.Fields)
	return nil
}

// Sync implements zapcore.Core.
func (*bridge) Sync() error { return nil }
