package cluster

import (
	"fmt"
	"slices"
	"strings"

	"weft/domain"
)

// FailureDomain is a part of an installation that fails as a whole: a site, a zone, a feed of
// power, a rack, a chassis. Its name counts within the wider ones around it: rack r1 of zone a is
// not rack r1 of zone b.
type FailureDomain struct {
	Kind string `msgpack:"kind,omitempty"`
	Name string `msgpack:"name,omitempty"`
}

// Location says in which failure domains a node stands, the widest first; empty for nobody knows.
type Location []FailureDomain

// DomainNameMax is the longest name of a failure domain in bytes.
const DomainNameMax = 63

// domainKinds from the widest to the narrowest.
var domainKinds = [...]string{"site", "zone", "power", "rack", "chassis"}

// NoLocation is how an empty location is written.
const NoLocation = "none"

// ParseLocation reads a location such as "zone=a,rack=r1", in any order; "none" or nothing is the
// empty one. The error is of kind Invalid and names the part.
func ParseLocation(text string) (Location, error) {
	if text == "" || text == NoLocation {
		return nil, nil
	}
	var l Location
	for part := range strings.SplitSeq(text, ",") {
		kind, name, ok := strings.Cut(part, "=")
		if !ok {
			return nil, domain.Errorf(domain.Invalid, "%q is no location: write KIND=NAME, such as rack=r1",
				clipped(part))
		}
		l = append(l, FailureDomain{kind, name})
	}
	slices.SortStableFunc(l, func(a, b FailureDomain) int { return kindOf(a) - kindOf(b) })
	return l, l.Validate()
}

// String gives what ParseLocation reads.
func (l Location) String() string {
	if len(l) == 0 {
		return NoLocation
	}
	parts := make([]string, len(l))
	for i, d := range l {
		parts[i] = d.Kind + "=" + d.Name
	}
	return strings.Join(parts, ",")
}

// Validate refuses unknown kinds, two of one kind, a wrong order, and names that are none, with an
// error of kind Invalid.
func (l Location) Validate() error {
	var k domain.Checker
	last := -1
	for i, d := range l {
		at := fmt.Sprintf("location[%d]", i)
		kind := kindOf(d)
		k.Check(kind < len(domainKinds), at, "%q is no kind of failure domain: %s",
			clipped(d.Kind), strings.Join(domainKinds[:], ", "))
		k.Check(kind > last, at, "%s stands twice, or below a narrower one", clipped(d.Kind))
		k.Check(validDomainName(d.Name), at,
			"%q is no name of a failure domain: 1 to %d letters, digits, '-', '_' and '.'",
			clipped(d.Name), DomainNameMax)
		last = kind
	}
	return k.Err("node.SetLocation", "")
}

// kindOf gives the place of a domain's kind in domainKinds, their number for an unknown one.
func kindOf(d FailureDomain) int {
	if at := slices.Index(domainKinds[:], d.Kind); at >= 0 {
		return at
	}
	return len(domainKinds)
}

func validDomainName(name string) bool {
	if name == "" || len(name) > DomainNameMax {
		return false
	}
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') &&
			!strings.ContainsRune("-_.", rune(c)) {
			return false
		}
	}
	return true
}

func clipped(s string) string { return s[:min(len(s), DomainNameMax)] }

// path names the domain of a kind that a node stands in, with the wider ones around it. Nodes of
// which nobody knows it stand together: they may.
func (l Location) path(kind int) string {
	var b strings.Builder
	for k := range kind + 1 {
		b.WriteByte('/')
		for _, d := range l {
			if kindOf(d) == k {
				b.WriteString(d.Name)
			}
		}
	}
	return b.String()
}

// spread tells how close together nodes stand: for each kind of domain, the widest first, how many
// pairs of them share one. Less is better, a wider kind counts before a narrower one.
type spread [len(domainKinds)]int

func spreadOf(places []Location) spread {
	var s spread
	for kind := range s {
		seen := map[string]int{}
		for _, l := range places {
			p := l.path(kind)
			s[kind] += seen[p]
			seen[p]++
		}
	}
	return s
}

// less tells whether s is the better spread.
func (s spread) less(o spread) bool { return slices.Compare(s[:], o[:]) < 0 }

// domainsOf counts the domains of the widest kind in which the places differ; each place by itself
// where they differ in none.
func domainsOf(places []Location) int {
	for kind := range domainKinds {
		seen := map[string]bool{}
		for _, l := range places {
			seen[l.path(kind)] = true
		}
		if len(seen) > 1 {
			return len(seen)
		}
	}
	return len(places)
}

// NodeLocationChanged says in which failure domains a node stands.
type NodeLocationChanged struct {
	Location Location `msgpack:"location,omitempty"`
}

// EventType implements domain.Event.
func (NodeLocationChanged) EventType() string { return "NodeLocationChanged" }

// SetLocation says in which failure domains a node stands. What is so already is no error.
type SetLocation struct {
	Node     domain.NodeID
	Location Location
}

// CommandType implements domain.Command.
func (SetLocation) CommandType() string { return "SetNodeLocation" }

// Stream implements domain.Command.
func (c SetLocation) Stream() domain.StreamID { return NodeStream(c.Node) }

// Validate implements domain.Validator.
func (c SetLocation) Validate() error { return c.Location.Validate() }
