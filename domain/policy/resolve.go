// Package policy is the policy engine, pure: it resolves layers of intent into a policy set in
// which every field knows its source, and compares wishes with facts into a plan whose every step
// knows its reason. The same input gives the same plan on every node; with nothing to do it gives
// an empty one, which is what lets the loop around it converge.
package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"weft/domain/intent"
	"weft/domain/snapshot"
)

// Layer is one source of intent, such as "template/gold@3" or "app/shop". Later layers win.
type Layer struct {
	Name   string
	Intent intent.Intent
}

// Field is one effective field of a policy set.
type Field struct {
	Path       string
	Value      string
	From       string   // the layer it comes from
	Overridden []string // layers whose value lost, lowest first
}

// Set is the resolved intent of one volume.
type Set struct {
	Intent intent.Intent
	Fields []Field // in a fixed order; only those that some layer set
}

// field tells how to read and copy one field of an intent.
type field struct {
	path string
	get  func(*intent.Intent) string // empty: no demand
	copy func(to, from *intent.Intent)
}

func number(path string, at func(*intent.Intent) *int64) field {
	return field{
		path: path,
		get: func(i *intent.Intent) string {
			if v := *at(i); v != 0 {
				return strconv.FormatInt(v, 10)
			}
			return ""
		},
		copy: func(to, from *intent.Intent) { *at(to) = *at(from) },
	}
}

func text(path string, at func(*intent.Intent) *string) field {
	return field{
		path: path,
		get:  func(i *intent.Intent) string { return *at(i) },
		copy: func(to, from *intent.Intent) { *at(to) = *at(from) },
	}
}

// fields lists every field of an intent in the order in which a set shows them.
func fields() []field {
	type in = intent.Intent
	return []field{
		number("performance.latency_p99_us", func(i *in) *int64 { return &i.Performance.LatencyP99US }),
		number("performance.iops_min", func(i *in) *int64 { return &i.Performance.IOPSMin }),
		number("performance.iops_max", func(i *in) *int64 { return &i.Performance.IOPSMax }),
		number("performance.bw_min_bps", func(i *in) *int64 { return &i.Performance.BWMinBPS }),
		number("performance.bw_max_bps", func(i *in) *int64 { return &i.Performance.BWMaxBPS }),
		number("performance.burst_s", func(i *in) *int64 { return &i.Performance.BurstS }),
		number("availability.replicas", func(i *in) *int64 { return &i.Availability.Replicas }),
		text("availability.ack", func(i *in) *string { return &i.Availability.Ack }),
		{
			path: "availability.survive",
			get: func(i *in) string {
				if len(i.Availability.Survive) == 0 {
					return ""
				}
				return fmt.Sprint(i.Availability.Survive)
			},
			copy: func(to, from *in) { to.Availability.Survive = maxSurvive(to, from) },
		},
		text("placement.hot", func(i *in) *string { return &i.Placement.Hot }),
		text("placement.capacity", func(i *in) *string { return &i.Placement.Capacity }),
		text("security.authn", func(i *in) *string { return &i.Security.Authn }),
		text("security.encryption", func(i *in) *string { return &i.Security.Encryption }),
		text("cost.compression", func(i *in) *string { return &i.Cost.Compression }),
		number("lifecycle.priority", func(i *in) *int64 { return &i.Lifecycle.Priority }),
		{
			path: "protection.snapshots",
			get:  func(i *in) string { return rulesText(i.Protection.Snapshots) },
			copy: func(to, from *in) { to.Protection.Snapshots = unionRules(to, from) },
		},
	}
}

// maxSurvive merges two lists: the larger count of each level, levels in the order they came.
func maxSurvive(a, b *intent.Intent) []intent.Survive {
	var out []intent.Survive
next:
	for _, s := range append(append([]intent.Survive(nil), a.Availability.Survive...),
		b.Availability.Survive...) {
		for i := range out {
			if out[i].Domain == s.Domain {
				out[i].Count = max(out[i].Count, s.Count)
				continue next
			}
		}
		out = append(out, s)
	}
	return out
}

// unionRules merges two schedules: of two rules with one interval the later layer's holds, and the
// shortest interval comes first.
func unionRules(a, b *intent.Intent) []intent.SnapshotRule {
	out := slices.Clone(b.Protection.Snapshots)
	for _, r := range a.Protection.Snapshots {
		same := func(o intent.SnapshotRule) bool { return o.EveryS == r.EveryS }
		if !slices.ContainsFunc(b.Protection.Snapshots, same) {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(x, y intent.SnapshotRule) int { return cmp.Compare(x.EveryS, y.EveryS) })
	return out
}

// rulesText gives a schedule as people read it: "1h keep 24, 1d keep 7".
func rulesText(rules []intent.SnapshotRule) string {
	var parts []string
	for _, r := range rules {
		parts = append(parts, fmt.Sprintf("%s keep %d", snapshot.FormatEvery(r.Every()), r.Keep))
	}
	return strings.Join(parts, ", ")
}

// Defaults is the product's own layer, below all others.
func Defaults() Layer {
	return Layer{Name: "default", Intent: intent.Intent{
		Availability: intent.Availability{
			Replicas: 3, Ack: "all", Survive: []intent.Survive{{Domain: "node", Count: 1}},
		},
		Placement: intent.Placement{Capacity: "flash"},
		Security:  intent.Security{Authn: "none"},
		Lifecycle: intent.Lifecycle{Priority: 50},
	}}
}

// Resolve folds layers, lowest first, over the product's defaults. It is total and deterministic.
func Resolve(layers []Layer) Set {
	var s Set
	all := append([]Layer{Defaults()}, layers...)
	for _, f := range fields() {
		var eff *Field
		for i := range all {
			if f.get(&all[i].Intent) == "" {
				continue
			}
			if eff == nil {
				eff = &Field{Path: f.path}
			} else {
				eff.Overridden = append(eff.Overridden, eff.From)
			}
			f.copy(&s.Intent, &all[i].Intent)
			eff.From = all[i].Name
		}
		if eff != nil {
			eff.Value = f.get(&s.Intent)
			s.Fields = append(s.Fields, *eff)
		}
	}
	return s
}
