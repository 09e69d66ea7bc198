package main

import "fmt"

const (
	// roomLow is from which part of what a device can hold on its node says so, percent. Volumes are
	// promised more than there is (policy.Overcommit), so hosts can fill a device that no wish would.
	roomLow = 90
	// roomAgain is below which part it is over, percent; between the two nothing changes.
	roomAgain = 85
	// roomWork is how the room of a device is called among what a node cannot do, before its path.
	roomWork = "keeping room on "
)

// fill is how full a device is.
type fill struct {
	path         string
	live, usable int64 // bytes
}

// percent gives it in whole ones; what can hold nothing is full.
func (f fill) percent() int64 {
	if f.usable <= 0 {
		return 100
	}
	return f.live * 100 / f.usable
}

// rooms tells which devices run full, by the way that a node tells what it cannot do. It belongs to
// one goroutine.
type rooms struct {
	bg   *background
	told map[string]int64 // percent, by the path of each device that runs full
}

// look takes how full the devices are now. Each whole percent is told once.
func (r *rooms) look(all []fill) {
	seen := map[string]bool{}
	for _, f := range all {
		what, pct := roomWork+f.path, f.percent()
		seen[what] = true
		was, low := r.told[what]
		switch {
		case low && pct < roomAgain:
			delete(r.told, what)
			r.bg.end(what)
		case pct != was && (low || pct >= roomLow):
			r.told[what] = pct
			r.bg.note(what, 0, fmt.Errorf("%d %% is used, and writes fail once all is: delete or "+
				"discard something, or let volumes leave for another device", pct))
		}
	}
	for what := range r.told {
		if !seen[what] {
			delete(r.told, what)
		}
	}
	r.bg.keep(roomWork, seen)
}

// fills gives how full the devices are.
func (ds *devices) fills() (out []fill) {
	for _, u := range ds.all() {
		if u.engine == nil {
			continue
		}
		st := u.engine.Stats()
		_, geo := u.engine.Info()
		out = append(out, fill{geo.Path, st.LiveBytes, st.UsableBytes})
	}
	return out
}
