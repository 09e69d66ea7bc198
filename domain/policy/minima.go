package policy

import (
	"fmt"

	"weft/domain"
)

// ReservePercent is the part of what a device gives that minima may take before a plan says that
// they are too many.
const ReservePercent = 70

// crowdedScore takes the score of a device whose minima are too many below that of the fullest one
// with room for them.
const crowdedScore = 1001

// minima is what is reserved on a device, or what it gives: requests and bytes a second.
type minima struct{ iops, bps int64 }

// minimum gives what a wish reserves on the device it comes to.
func minimum(w *Wish) minima {
	return minima{w.Set.Intent.Performance.IOPSMin, w.Set.Intent.Performance.BWMinBPS}
}

func (m minima) plus(o minima) minima { return minima{m.iops + o.iops, m.bps + o.bps} }

// gives is what a device of a class is known to give, of requests of 4 KiB and of bytes in large
// ones, at random. Devices are not measured: these are what the slower ones of a class do.
func gives(class string) minima {
	if class == "hdd" {
		return minima{150, 80 << 20}
	}
	return minima{20_000, 400 << 20}
}

// crowded says why minima are more than a device of a class may be asked for; empty: they are not.
func (m minima) crowded(class string) string {
	g := gives(class)
	for _, x := range []struct {
		want, gives int64
		what        string
	}{
		{m.iops, g.iops, fmt.Sprintf("%d requests", m.iops)},
		{m.bps, g.bps, domain.Bytes(m.bps).String()},
	} {
		if x.want > x.gives*ReservePercent/100 {
			return fmt.Sprintf("the minima on its device come to %s a second, more than %d %% of what a "+
				"%s device is known to give", x.what, ReservePercent, class)
		}
	}
	return ""
}

// reserve counts what the wishes that have a place reserve there.
func (p *planner) reserve(wishes []Wish) {
	for i := range wishes {
		if f := p.facts[wishes[i].Volume]; f != nil {
			p.reserved[f.Device] = p.reserved[f.Device].plus(minimum(&wishes[i]))
		}
	}
}

// because adds to the reason of a step, if its volume reserves something, that its device cannot
// be relied on for it.
func (p *planner) because(w *Wish, device domain.DeviceID, why string) string {
	if minimum(w) == (minima{}) {
		return why
	}
	for i := range p.o.Devices {
		if d := &p.o.Devices[i]; d.Device == device {
			if c := p.reserved[device].crowded(d.Class); c != "" {
				return why + "; " + c
			}
		}
	}
	return why
}
