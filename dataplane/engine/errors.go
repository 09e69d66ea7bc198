package engine

import (
	"errors"

	"weft/backends"
	"weft/domain"
)

// translate maps the sentinels of backends onto kinds.
func translate(err error, op, ref string) error {
	if err == nil {
		return nil
	}
	var known *domain.Error
	if errors.As(err, &known) {
		return err
	}
	kind := domain.Unavailable
	for _, k := range []struct {
		err  error
		kind domain.Kind
	}{
		{backends.ErrRange, domain.OutOfRange},
		{backends.ErrAlign, domain.Internal},
		{backends.ErrLocked, domain.Locked},
		{backends.ErrNoSpace, domain.NoSpace},
		{backends.ErrNotPresent, domain.NotFound},
	} {
		if errors.Is(err, k.err) {
			kind = k.kind
		}
	}
	return &domain.Error{Op: op, Kind: kind, Ref: ref, Err: err}
}
