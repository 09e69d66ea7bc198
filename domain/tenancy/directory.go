package tenancy

import (
	"bytes"

	"weft/domain"
)

// DirectoryCategory of the one stream that holds the names which are unique in a whole cluster:
// those of tenants and of users. It is no tenant's: whoever may read a tenant learns nothing here.
const DirectoryCategory = "directory"

// NamesMax is the most names of a directory.
const NamesMax = 100_000

// DirectoryStream gives a cluster's directory.
func DirectoryStream(id domain.ClusterID) domain.StreamID {
	return domain.StreamOf(DirectoryCategory, id.UUID)
}

// NameTaken holds a name for an object that is about to be made. Of the name of a person there is a
// keyed digest alone, which tells equal names and nothing more.
type NameTaken struct {
	Kind   string      `msgpack:"kind,omitempty"` // "tenant", "user"
	Name   string      `msgpack:"name,omitempty"` // of a user: in events from before there were tags
	Object domain.UUID `msgpack:"object,omitempty"`
	Tag    []byte      `msgpack:"tag,omitempty"`
}

// NameFreed gives the name of an object back.
type NameFreed struct {
	Object domain.UUID `msgpack:"object,omitempty"`
}

// EventType implements domain.Event.
func (NameTaken) EventType() string { return "NameTaken" }

// EventType implements domain.Event.
func (NameFreed) EventType() string { return "NameFreed" }

// TakeName holds a name in a cluster; Exists when another object has it.
type TakeName struct {
	Cluster domain.ClusterID
	Kind    string
	Name    string
	Object  domain.UUID
	// Person and Tag take the place of Name where it is a person's: the name in clear, which is
	// compared with names that older events hold so, and its digest.
	Person domain.Personal
	Tag    []byte
}

// FreeName gives an object's name back. One that holds none is no error.
type FreeName struct {
	Cluster domain.ClusterID
	Object  domain.UUID
}

// CommandType implements domain.Command.
func (TakeName) CommandType() string { return "TakeName" }

// Stream implements domain.Command.
func (c TakeName) Stream() domain.StreamID { return DirectoryStream(c.Cluster) }

// CommandType implements domain.Command.
func (FreeName) CommandType() string { return "FreeName" }

// Stream implements domain.Command.
func (c FreeName) Stream() domain.StreamID { return DirectoryStream(c.Cluster) }

// Directory is the names folded, in the order they were taken.
type Directory struct{ Names many[NameTaken] }

// DirectoryAggregate is the directory for the executor.
func DirectoryAggregate() domain.Aggregate[Directory] {
	return domain.Aggregate[Directory]{
		Category: DirectoryCategory, Evolve: EvolveDirectory, Decide: DecideDirectory,
	}
}

// EvolveDirectory folds one event.
func EvolveDirectory(d Directory, ev domain.Event) Directory {
	switch ev := ev.(type) {
	case *NameTaken:
		d.Names = d.Names.with(*ev)
	case *NameFreed:
		d.Names = d.Names.without(func(n NameTaken) bool { return n.Object == ev.Object })
	}
	return d
}

// name is what the caller calls it.
func (c TakeName) name() string {
	if c.Name == "" {
		return c.Person.Text
	}
	return c.Name
}

// holds tells whether a name that is taken is the one that is asked for.
func (n NameTaken) holds(c TakeName) bool {
	return n.Kind == c.Kind &&
		(n.Name != "" && n.Name == c.name() || len(n.Tag) > 0 && bytes.Equal(n.Tag, c.Tag))
}

// DecideDirectory judges one command.
func DecideDirectory(d Directory, r domain.Request) ([]domain.Event, error) {
	switch c := r.Command.(type) {
	case TakeName:
		for n := range d.Names.All() {
			if n.holds(c) {
				return nil, &domain.Error{
					Kind: domain.Exists, Ref: c.Kind + "/" + c.name(), Msg: "the name is taken",
					Remedy: "choose another name",
				}
			}
		}
		if d.Names.Len() >= NamesMax {
			return nil, domain.Errorf(domain.NoSpace, "the cluster holds %d names", d.Names.Len())
		}
		return []domain.Event{&NameTaken{c.Kind, c.Name, c.Object, c.Tag}}, nil
	case FreeName:
		for n := range d.Names.All() {
			if n.Object == c.Object {
				return []domain.Event{&NameFreed{c.Object}}, nil
			}
		}
		return nil, nil
	}
	return nil, domain.Errorf(domain.Internal, "directory: unknown command %T", r.Command)
}
