package agent

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"weft/dataplane/compress"
	"weft/dataplane/engine"
	"weft/dataplane/qos"
	"weft/dataplane/vdisk"
	"weft/domain"
	"weft/domain/command"
)

// Tokens keeps the highest token obeyed over restarts. Save is durable on return.
type Tokens interface {
	Load() (uint64, error)
	Save(token uint64) error
}

// Front makes disks reachable. Serve replaces all that is served; when it returns, what was left
// out is not reached any more.
type Front interface {
	Serve(list []Served) error
	// Hosts counts the connections that may use a disk which is reached so.
	Hosts(x command.Export) int
}

// Served is one disk and how it is reached.
type Served struct {
	Export command.Export
	Disk   *vdisk.Disk
}

// Config is what New needs.
type Config struct {
	Node        domain.NodeID
	Number      domain.NodeNumber
	Incarnation uint64
	Engines     []*engine.Engine // those there are at first
	Pool        *vdisk.Pool
	Tokens      Tokens
	Front       Front
	Now         func() time.Time
	// Failing tells what of the node's work fails; nil: nothing is known to.
	Failing func() []command.Failing
}

// Agent obeys orders one at a time.
type Agent struct {
	cfg   Config
	fleet struct {
		sync.RWMutex                  // taken after mu
		list         []*engine.Engine // never changed in place
	}

	mu struct {
		sync.Mutex
		state  State
		served map[domain.VolumeID]Served
	}
}

// New makes an agent that exports nothing yet.
func New(cfg Config) (*Agent, error) {
	a := &Agent{cfg: cfg}
	a.fleet.list = slices.Clone(cfg.Engines)
	token, err := cfg.Tokens.Load()
	if err != nil {
		return nil, domain.Wrap(err, "agent.New", "token")
	}
	a.mu.state.Token = token
	a.mu.served = map[domain.VolumeID]Served{}
	return a, nil
}

// Obey carries out one order. The answer's error has the kind of what went wrong: Stale for an old
// token, NotFound for a device this node does not have, Unsupported for what it does not know.
func (a *Agent) Obey(ctx context.Context, o command.Order) command.Outcome {
	a.mu.Lock()
	defer a.mu.Unlock()
	v, raised, err := a.mu.state.Judge(o)
	if v == Refuse || v == Repeat && !again(o.Kind) {
		return command.Outcome{ID: o.ID, Err: err}
	}
	if raised {
		if err := a.cfg.Tokens.Save(o.Token); err != nil {
			return command.Outcome{ID: o.ID, Err: domain.Wrap(err, "agent.Obey", "token")}
		}
		a.mu.state.Token = o.Token
	}
	out := command.Outcome{ID: o.ID}
	if err := a.obey(ctx, o, &out); err != nil {
		return command.Outcome{ID: o.ID, Err: domain.Wrap(err, "agent."+o.Kind.String(),
			"volume/"+o.Volume.String())}
	}
	a.mu.state = a.mu.state.After(o)
	return out
}

// again tells whether a repeated order is carried out once more: an export, because the front may
// have been restarted, and what has something to answer. All of them change nothing the second
// time.
func again(k command.Kind) bool {
	switch k { //nolint:exhaustive // the others are answered from memory
	case command.ExportVolume, command.CutSnapshots, command.CloneVolume, command.RollbackVolume:
		return true
	}
	return false
}

// Attach takes orders for one more device from now on.
func (a *Agent) Attach(e *engine.Engine) {
	a.fleet.Lock()
	defer a.fleet.Unlock()
	a.fleet.list = append(slices.Clone(a.fleet.list), e)
}

// Detach takes no more orders for a device. Afterwards nobody makes anything on it, and its engine
// may be closed. Conflict where volumes or snapshots stand on it, NotFound where it is not here.
func (a *Agent) Detach(id domain.DeviceID) error {
	a.mu.Lock() // no order is under way
	defer a.mu.Unlock()
	e, err := a.engine(id)
	if err != nil {
		return err
	}
	if v, s, h := len(e.Volumes()), len(e.AllSnapshots()), e.Hidden(); v+s+h > 0 {
		return domain.Errorf(domain.Conflict, "%d volumes and %d snapshots stand on it, and %d families "+
			"on their way", v, s, h)
	}
	a.fleet.Lock()
	defer a.fleet.Unlock()
	a.fleet.list = slices.DeleteFunc(slices.Clone(a.fleet.list), func(x *engine.Engine) bool {
		return x == e
	})
	return nil
}

// engines gives the node's engines of now.
func (a *Agent) engines() []*engine.Engine {
	a.fleet.RLock()
	defer a.fleet.RUnlock()
	return a.fleet.list
}

func (a *Agent) engine(id domain.DeviceID) (*engine.Engine, error) {
	for _, e := range a.engines() {
		if x, _ := e.Info(); x == id {
			return e, nil
		}
	}
	return nil, domain.Errorf(domain.NotFound, "device %s is not on this node", id)
}

// obey carries out an order and notes in out what there is to answer besides success.
func (a *Agent) obey(ctx context.Context, o command.Order, out *command.Outcome) error {
	if o.Kind == command.CutSnapshots {
		return a.cut(ctx, o, out)
	}
	e, err := a.home(o)
	if err != nil {
		return err
	}
	switch o.Kind {
	case command.CreateVolume:
		create := e.Create
		if o.Encrypted {
			create = e.CreateEncrypted
		}
		_, err := create(ctx, o.Volume, o.Size, o.Epoch)
		return err
	case command.ResizeVolume:
		return a.resize(ctx, e, o)
	case command.ExportVolume:
		return a.export(e, o)
	case command.UnexportVolume:
		return a.unexportIdle(o)
	case command.DeleteVolume:
		if err := a.unexport(o.Volume); err != nil {
			return err
		}
		if err := e.Delete(ctx, o.Volume); err != nil {
			return err
		}
		return dropScheduled(ctx, e, o.Volume)
	case command.CloneVolume:
		return a.clone(ctx, e, o, out)
	case command.RollbackVolume:
		return a.rollback(ctx, e, o, out)
	case command.DeleteSnapshot:
		return e.DeleteSnapshot(ctx, o.Snapshot)
	case command.CutSnapshots:
	}
	return domain.Errorf(domain.Unsupported, "order of kind %d", o.Kind)
}

// export makes a volume reachable as ordered. The same disk goes on serving when only the way to it
// changed, so that connections of other protocols live on.
func (a *Agent) export(e *engine.Engine, o command.Order) error {
	v, ok := e.Volume(o.Volume)
	if !ok {
		return domain.Errorf(domain.NotFound, "the volume is not on device %s", o.Device)
	}
	if err := v.Keyless(); err != nil {
		return err
	}
	mode, err := compress.ParseMode(o.Export.Compression)
	if err != nil {
		return err
	}
	s, ok := a.mu.served[o.Volume]
	old := s
	if !ok || !sameDisk(s.Export, o.Export) {
		_, geo := e.Info()
		d, err := vdisk.New(vdisk.Config{
			Target: target(e, v), Pool: a.cfg.Pool, Name: o.Export.Name,
			LogicalBlock: o.Export.LogicalBlock, ReadOnly: o.Export.ReadOnly,
			Rotational: geo.Rotational, Gateway: a.cfg.Number, Incarnation: a.cfg.Incarnation,
		})
		if err != nil {
			return err
		}
		s.Disk = d
	}
	s.Disk.SetLimits(limits(o.Export))
	s.Disk.SetShare(share(o.Export))
	v.SetCompression(mode)
	s.Export = o.Export
	a.mu.served[o.Volume] = s
	if err := a.push(); err != nil {
		if ok {
			a.mu.served[o.Volume] = old
		} else {
			delete(a.mu.served, o.Volume)
		}
		return err
	}
	return nil
}

// target is what a disk needs of the place of its volume.
func target(e *engine.Engine, v *engine.Volume) vdisk.Target {
	return vdisk.Target{
		Volume: v, Volatile: e.Volatile(), Flush: e.Flush, Scheduler: e.Scheduler(),
	}
}

func limits(x command.Export) qos.Limits {
	return qos.Limits{
		IOPS: x.IOPSMax, Bytes: x.BPSMax, Burst: time.Duration(x.BurstS) * time.Second,
	}
}

func share(x command.Export) qos.Share {
	return qos.Share{IOPS: x.IOPSMin, Bytes: x.BPSMin, Weight: x.Weight}
}

func sameDisk(a, b command.Export) bool {
	return a.LogicalBlock == b.LogicalBlock && a.ReadOnly == b.ReadOnly && a.Name == b.Name
}

func (a *Agent) unexport(id domain.VolumeID) error {
	s, ok := a.mu.served[id]
	if !ok {
		return nil
	}
	delete(a.mu.served, id)
	s.Disk.SetLimits(qos.Limits{}) // the front waits for what a limit holds back
	if err := a.push(); err != nil {
		a.mu.served[id] = s
		s.Disk.SetLimits(limits(s.Export))
		return err
	}
	return nil
}

// push hands the front the whole list, in a fixed order.
func (a *Agent) push() error {
	return a.cfg.Front.Serve(a.list())
}

// list gives what is served by name; mu is held.
func (a *Agent) list() []Served {
	return slices.SortedFunc(maps.Values(a.mu.served), func(x, y Served) int {
		return cmp.Compare(x.Export.Name, y.Export.Name)
	})
}

// Served lists what hosts reach now.
func (a *Agent) Served() []Served {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.list()
}

// Find gives what hosts reach of one volume.
func (a *Agent) Find(id domain.VolumeID) (Served, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s, ok := a.mu.served[id]
	return s, ok
}

// Stop makes everything unreachable. The volumes stay.
func (a *Agent) Stop() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.mu.served {
		s.Disk.SetLimits(qos.Limits{})
	}
	a.mu.served = map[domain.VolumeID]Served{}
	return a.cfg.Front.Serve(nil)
}
