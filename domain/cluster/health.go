package cluster

import "weft/domain"

// DamagesMax is how many damaged places of one pass are events; the count in ScrubFinished holds
// all of them.
const DamagesMax = 200

// ClassNVRAM is the class under which a node's NVRAM stands among the devices. No volume is placed
// there, and it is scrubbed with the devices whose journals it holds.
const ClassNVRAM = "nvram"

// ScrubRequested asks for a pass over a device now, and ends a pause.
type ScrubRequested struct{}

// ScrubPaused says that a device shall not be scrubbed until somebody asks for it again.
type ScrubPaused struct{}

// ScrubFinished says what a pass came to.
type ScrubFinished struct {
	Pass    uint64       `msgpack:"pass,omitempty"`
	Checked domain.Bytes `msgpack:"checked,omitempty"`
	Damaged int64        `msgpack:"damaged,omitempty"` // places found damaged, mended ones included
}

// DamageFound says that a place of a device is not what it has to be. A block that came from
// another device as lost is of the pass to come, which finds it again. Volume, snapshot and block
// say whose data it is; they are zero for what belongs to the device itself.
type DamageFound struct {
	Pass     uint64            `msgpack:"pass,omitempty"` // of the scrub
	Part     string            `msgpack:"part,omitempty"`
	Volume   domain.VolumeID   `msgpack:"volume,omitempty"`
	Snapshot domain.SnapshotID `msgpack:"snapshot,omitempty"`
	Block    int64             `msgpack:"block,omitempty"`
	Version  string            `msgpack:"version,omitempty"`
	Offset   domain.Bytes      `msgpack:"offset,omitempty"` // on the device
	Detail   string            `msgpack:"detail,omitempty"`
	Mended   bool              `msgpack:"mended,omitempty"` // it was written anew
}

// Place tells whether two facts are of one place. What has no offset is told by whose it is.
func (f *DamageFound) Place(o *DamageFound) bool {
	return f.Part == o.Part && f.Offset == o.Offset && (f.Offset != 0 ||
		f.Volume == o.Volume && f.Snapshot == o.Snapshot && f.Block == o.Block)
}

// DeviceSuspended says that a device is slow or errs: it serves on, and takes new volumes only
// where no other device can. DeviceReadmitted ends it.
type DeviceSuspended struct {
	Rule string `msgpack:"rule,omitempty"` // "stall", "latency", "write-errors"
	Why  string `msgpack:"why,omitempty"`
}

// EventType implements domain.Event.
func (ScrubRequested) EventType() string { return "ScrubRequested" }

// EventType implements domain.Event.
func (ScrubPaused) EventType() string { return "ScrubPaused" }

// EventType implements domain.Event.
func (ScrubFinished) EventType() string { return "ScrubFinished" }

// EventType implements domain.Event.
func (DamageFound) EventType() string { return "DamageFound" }

// EventType implements domain.Event.
func (DeviceSuspended) EventType() string { return "DeviceSuspended" }

// Scrub asks for a pass over a device, or for a pause. Unsupported for NVRAM.
type Scrub struct {
	Device domain.DeviceID
	Pause  bool
}

// Observe records what a node found out about a device: ScrubFinished, DamageFound or
// DeviceSuspended. What is known already records nothing, and neither does a place of a pass that
// has ended, or one beyond DamagesMax.
type Observe struct {
	Device domain.DeviceID
	Fact   domain.Event
}

// Resume notes that a suspended device is well again.
type Resume struct {
	Device domain.DeviceID
	Node   domain.NodeID
}

// CommandType implements domain.Command.
func (c Scrub) CommandType() string {
	if c.Pause {
		return "PauseScrub"
	}
	return "StartScrub"
}

// Stream implements domain.Command.
func (c Scrub) Stream() domain.StreamID { return DeviceStream(c.Device) }

// CommandType implements domain.Command.
func (c Observe) CommandType() string { return "Observe" + c.Fact.EventType() }

// Stream implements domain.Command.
func (c Observe) Stream() domain.StreamID { return DeviceStream(c.Device) }

// CommandType implements domain.Command.
func (Resume) CommandType() string { return "ResumeDevice" }

// Stream implements domain.Command.
func (c Resume) Stream() domain.StreamID { return DeviceStream(c.Device) }

// health is what is known of a device besides its admission.
type health struct {
	Suspended bool
	Paused    bool          // the scrub
	Pass      uint64        // of the last ScrubFinished
	Found     []DamageFound // of the pass under way
}

// after folds one event.
func (s health) after(ev domain.Event) health {
	switch ev := ev.(type) {
	case *ScrubRequested:
		s.Paused = false
	case *ScrubPaused:
		s.Paused = true
	case *ScrubFinished:
		s.Pass, s.Found = ev.Pass, nil
	case *DamageFound:
		if len(s.Found) > 0 && s.Found[0].Pass != ev.Pass {
			s.Found = nil // nobody heard of that pass's end
		}
		s.Found = append(s.Found[:len(s.Found):len(s.Found)], *ev)
	case *DeviceSuspended:
		s.Suspended = true
	case *DeviceReadmitted:
		s.Suspended = false
	}
	return s
}

// decideHealth judges what is about a device's health.
func (s Device) decideHealth(c domain.Command) ([]domain.Event, error) {
	if !s.Exists {
		return nil, domain.Errorf(domain.NotFound, "no such device")
	}
	switch c := c.(type) {
	case Scrub:
		switch {
		case s.Class == ClassNVRAM:
			return nil, domain.Errorf(domain.Unsupported,
				"NVRAM is scrubbed with the devices whose journals it holds")
		case !c.Pause:
			return []domain.Event{&ScrubRequested{}}, nil
		case !s.Paused:
			return []domain.Event{&ScrubPaused{}}, nil
		}
		return nil, nil
	case Resume:
		if s.Suspended && !s.Failed {
			return []domain.Event{&DeviceReadmitted{c.Node}}, nil
		}
		return nil, nil
	case Observe:
		return s.observe(c.Fact)
	}
	return nil, domain.Errorf(domain.Internal, "device: unknown command %T", c)
}

func (s Device) observe(fact domain.Event) ([]domain.Event, error) {
	var known bool
	switch f := fact.(type) {
	case *ScrubFinished:
		known = f.Pass <= s.Pass
	case *DamageFound:
		known = f.Pass <= s.Pass
		n := 0
		for _, o := range s.Found {
			if o.Pass != f.Pass {
				continue
			}
			n++
			known = known || o.Place(f)
		}
		known = known || n >= DamagesMax
	case *DeviceSuspended:
		known = s.Suspended || s.Failed
	default:
		return nil, domain.Errorf(domain.Internal, "device: %T is no fact", fact)
	}
	if known {
		return nil, nil
	}
	return []domain.Event{fact}, nil
}
