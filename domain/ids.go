package domain

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
)

// UUID is a 128-bit identifier in the byte order of RFC 9562. The zero value means "none".
type UUID [16]byte

// IsZero tells whether the identifier is absent.
func (u UUID) IsZero() bool { return u == UUID{} }

// String gives the canonical lower-case form with hyphens.
func (u UUID) String() string {
	var b [36]byte
	hex.Encode(b[0:8], u[0:4])
	hex.Encode(b[9:13], u[4:6])
	hex.Encode(b[14:18], u[6:8])
	hex.Encode(b[19:23], u[8:10])
	hex.Encode(b[24:36], u[10:16])
	b[8], b[13], b[18], b[23] = '-', '-', '-', '-'
	return string(b[:])
}

// MarshalText implements encoding.TextMarshaler.
func (u UUID) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. It takes the canonical form alone.
func (u *UUID) UnmarshalText(text []byte) error {
	v, err := ParseUUID(string(text))
	if err == nil {
		*u = v
	}
	return err
}

// MarshalBinary implements encoding.BinaryMarshaler: the 16 bytes.
func (u UUID) MarshalBinary() ([]byte, error) { return u[:], nil }

// UnmarshalBinary implements encoding.BinaryUnmarshaler.
func (u *UUID) UnmarshalBinary(b []byte) error {
	if len(b) != len(u) {
		return fmt.Errorf("a UUID has 16 bytes, not %d", len(b))
	}
	copy(u[:], b)
	return nil
}

// ParseUUID reads the canonical form of 36 characters, in either case of letters. It returns an
// error of kind Invalid for anything else.
func ParseUUID(s string) (UUID, error) {
	var u UUID
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return u, Errorf(Invalid, "%q is not a UUID", clip(s))
	}
	packed := s[0:8] + s[9:13] + s[14:18] + s[19:23] + s[24:36]
	if _, err := hex.Decode(u[:], []byte(packed)); err != nil {
		return UUID{}, Errorf(Invalid, "%q is not a UUID", clip(s))
	}
	return u, nil
}

// DeriveUUID gives the identifier that follows from its parts: the same parts, the same UUID. It is
// a UUIDv8 as RFC 9562 appendix B.2 describes it: the first half of SHA-256 over the parts, each
// with its length before it, with the version and variant bits set. Version 5 would need SHA-1.
func DeriveUUID(space UUID, parts ...string) UUID {
	h := sha256.New()
	h.Write(space[:])
	var n [4]byte
	for _, p := range parts {
		binary.LittleEndian.PutUint32(n[:], uint32(len(p)))
		h.Write(n[:])
		h.Write([]byte(p))
	}
	var u UUID
	copy(u[:], h.Sum(nil))
	u[6] = u[6]&0x0f | 0x80
	u[8] = u[8]&0x3f | 0x80
	return u
}

// clip shortens foreign text for an error message.
func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "..."
	}
	return s
}

// The identifiers of Weft's objects. Each is a type of its own, so that no call mixes them up.
type (
	// ClusterID names a cluster for its whole life.
	ClusterID struct{ UUID }
	// NodeID names a node; it survives restarts and new addresses.
	NodeID struct{ UUID }
	// DeviceID names a device by the superblock written on it.
	DeviceID struct{ UUID }
	// TenantID names a tenant.
	TenantID struct{ UUID }
	// UserID names a user for ever; the name it signs in with may pass to another user later.
	UserID struct{ UUID }
	// AccessTokenID names a token of the API. It is no secret.
	AccessTokenID struct{ UUID }
	// IdentityProviderID names an issuer of OpenID Connect that vouches for users.
	IdentityProviderID struct{ UUID }
	// OutletID names a place to which events are published.
	OutletID struct{ UUID }
	// TemplateID names an application template; its versions are numbered.
	TemplateID struct{ UUID }
	// AppID names an application instance.
	AppID struct{ UUID }
	// VolumeID names a volume. Every identifier that a host sees of a volume derives from it.
	VolumeID struct{ UUID }
	// SnapshotID names one frozen state of a volume.
	SnapshotID struct{ UUID }
	// SnapshotGroupID names snapshots that were asked for together and are cut at one instant.
	SnapshotGroupID struct{ UUID }
	// ExportID names one way by which hosts reach volumes.
	ExportID struct{ UUID }
	// PlanID names one plan of the reconciler.
	PlanID struct{ UUID }
	// CommandID names a command: the same idempotency key of the same actor gives the same one.
	CommandID struct{ UUID }
	// EventID names an event: it derives from its command and its place in the command's answer.
	EventID struct{ UUID }
)

// EventID gives the identifier of the index-th event that this command produced.
func (c CommandID) EventID(index int) EventID {
	return EventID{DeriveUUID(c.UUID, "event", fmt.Sprint(index))}
}

// ObjectID gives the identifier of the index-th object of a kind that this command creates. A
// retried command therefore creates the same object, never a second one.
func (c CommandID) ObjectID(kind string, index int) UUID {
	return DeriveUUID(c.UUID, "object", kind, fmt.Sprint(index))
}

// Sub gives the identifier of a command issued on behalf of this one.
func (c CommandID) Sub(step string) CommandID {
	return CommandID{DeriveUUID(c.UUID, "sub", step)}
}
