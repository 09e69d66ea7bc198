package codec

import (
	"time"

	"weft/domain"
	"weft/domain/identity"
)

// The forms that events had in schema 1, where the log held personal text in clear.
type (
	userCreated1 struct {
		User domain.UserID `msgpack:"user"`
		Name string        `msgpack:"name"`
	}
	userLinked1 struct {
		User     domain.UserID             `msgpack:"user"`
		Provider domain.IdentityProviderID `msgpack:"provider"`
		Subject  string                    `msgpack:"subject"`
	}
	tokenIssued1 struct {
		Token   domain.AccessTokenID `msgpack:"token"`
		Owner   domain.UserID        `msgpack:"owner"`
		Hash    []byte               `msgpack:"hash"`
		Role    string               `msgpack:"role"`
		Tenant  domain.TenantID      `msgpack:"tenant"`
		Expires time.Time            `msgpack:"expires"`
		Note    string               `msgpack:"note"`
	}
)

// older leads from the schemas that events had before.
func older(r *Registry) {
	r.Upcast("NameTaken", 1, func(data []byte) ([]Stored, error) {
		return []Stored{{"NameTaken", 2, data}}, nil // which it is a form of: there are no tags
	})
	r.Upcast("UserCreated", 1, upcast(2, func(o userCreated1) domain.Event {
		return &identity.UserCreated{User: o.User, Name: domain.Personal{Text: o.Name}}
	}))
	r.Upcast("UserLinked", 1, upcast(2, func(o userLinked1) domain.Event {
		return &identity.UserLinked{
			User: o.User, Provider: o.Provider, Subject: domain.Personal{Text: o.Subject},
		}
	}))
	r.Upcast("TokenIssued", 1, upcast(2, func(o tokenIssued1) domain.Event {
		return &identity.TokenIssued{
			Token: o.Token, Owner: o.Owner, Hash: o.Hash, Role: o.Role, Tenant: o.Tenant,
			Expires: o.Expires, Note: domain.Personal{Text: o.Note},
		}
	}))
}

// upcast makes an upcaster of a function between the two forms.
func upcast[O any](to uint16, f func(O) domain.Event) Upcaster {
	return func(data []byte) ([]Stored, error) {
		var old O
		if err := Unmarshal(data, &old); err != nil {
			return nil, err
		}
		ev := f(old)
		next, err := Marshal(ev)
		return []Stored{{ev.EventType(), to, next}}, err
	}
}
