package client

import (
	"encoding/json"
	"time"

	"weft/domain"
)

// List is a list of things and the position of the log that it shows.
type List[T any] struct {
	Items    []T    `json:"items"`
	Position string `json:"position"`
}

// Health says whether the node is well.
type Health struct {
	Status   string `json:"status"` // "ok" or "degraded"
	Version  string `json:"version"`
	Cluster  string `json:"cluster"`
	Position string `json:"position"`
	Reason   string `json:"reason,omitempty"`
}

// Intent is what is demanded of volumes; what is absent is not demanded.
type Intent struct {
	Performance  *Performance  `json:"performance,omitempty" yaml:"performance,omitempty"`
	Availability *Availability `json:"availability,omitempty" yaml:"availability,omitempty"`
	Placement    *Placement    `json:"placement,omitempty" yaml:"placement,omitempty"`
	Security     *Security     `json:"security,omitempty" yaml:"security,omitempty"`
	Cost         *Cost         `json:"cost,omitempty" yaml:"cost,omitempty"`
	Lifecycle    *Lifecycle    `json:"lifecycle,omitempty" yaml:"lifecycle,omitempty"`
	Protection   *Protection   `json:"protection,omitempty" yaml:"protection,omitempty"`
}

// Performance is part of an intent.
type Performance struct {
	LatencyP99US int64 `json:"latency_p99_us,omitempty" yaml:"latency_p99_us,omitempty"`
	IOPSMin      int64 `json:"iops_min,omitempty" yaml:"iops_min,omitempty"`
	IOPSMax      int64 `json:"iops_max,omitempty" yaml:"iops_max,omitempty"`
	BWMinBPS     int64 `json:"bw_min_bps,omitempty" yaml:"bw_min_bps,omitempty"`
	BWMaxBPS     int64 `json:"bw_max_bps,omitempty" yaml:"bw_max_bps,omitempty"`
	BurstS       int64 `json:"burst_s,omitempty" yaml:"burst_s,omitempty"`
}

// Availability is part of an intent.
type Availability struct {
	Replicas int64     `json:"replicas,omitempty" yaml:"replicas,omitempty"`
	Survive  []Survive `json:"survive,omitempty" yaml:"survive,omitempty"`
	Ack      string    `json:"ack,omitempty" yaml:"ack,omitempty"`
}

// Survive is part of an intent.
type Survive struct {
	Domain string `json:"domain" yaml:"domain"`
	Count  int64  `json:"count" yaml:"count"`
}

// Placement is part of an intent.
type Placement struct {
	Hot      string `json:"hot,omitempty" yaml:"hot,omitempty"`
	Capacity string `json:"capacity,omitempty" yaml:"capacity,omitempty"`
}

// Security is part of an intent.
type Security struct {
	Authn      string `json:"authn,omitempty" yaml:"authn,omitempty"`
	Encryption string `json:"encryption,omitempty" yaml:"encryption,omitempty"`
}

// Cost is part of an intent.
type Cost struct {
	Compression string `json:"compression,omitempty" yaml:"compression,omitempty"`
}

// Lifecycle is part of an intent.
type Lifecycle struct {
	Priority int64 `json:"priority,omitempty" yaml:"priority,omitempty"`
}

// Protection is part of an intent.
type Protection struct {
	Snapshots []SnapshotRule `json:"snapshots,omitempty" yaml:"snapshots,omitempty"`
}

// SnapshotRule asks for snapshots by the clock.
type SnapshotRule struct {
	Every string `json:"every" yaml:"every"` // such as "15m", "1h", "1d" or "1w"
	Keep  int64  `json:"keep" yaml:"keep"`
}

// TemplateBody asks for a template or a new version of one.
type TemplateBody struct {
	Name        string  `json:"name"`
	Description string  `json:"description,omitempty"`
	Intent      *Intent `json:"intent,omitempty"`
}

// Template is a template with its versions.
type Template struct {
	ID          string            `json:"id"`
	Name        string            `json:"name"`
	Tenant      string            `json:"tenant"`
	Description string            `json:"description,omitempty"`
	Version     int64             `json:"version"`
	Intent      *Intent           `json:"intent"`
	Versions    []TemplateVersion `json:"versions"`
	ETag        string            `json:"etag"`
}

// TemplateVersion is one immutable version.
type TemplateVersion struct {
	Version int64   `json:"version"`
	Intent  *Intent `json:"intent"`
}

// Export says how hosts reach the volumes of an application.
type Export struct {
	NBD        bool     `json:"nbd,omitempty" yaml:"nbd,omitempty"`
	ISCSI      bool     `json:"iscsi,omitempty" yaml:"iscsi,omitempty"`
	AllowAny   bool     `json:"allow_any,omitempty" yaml:"allow_any,omitempty"`
	Initiators []string `json:"initiators,omitempty" yaml:"initiators,omitempty"`
	CHAP       string   `json:"chap,omitempty" yaml:"chap,omitempty"`
}

// VolumeBody asks for a volume.
type VolumeBody struct {
	Name         string       `json:"name"`
	Size         domain.Bytes `json:"size,omitempty"` // a clone's may be left out
	LogicalBlock int64        `json:"logical_block,omitempty"`
	Source       string       `json:"source,omitempty"` // the snapshot it begins as
}

// AppBody asks for an application instance.
type AppBody struct {
	Name     string       `json:"name"`
	Template string       `json:"template,omitempty"`
	Intent   *Intent      `json:"intent,omitempty"`
	Volumes  []VolumeBody `json:"volumes,omitempty"`
	Export   *Export      `json:"export,omitempty"`
}

// App is an application instance.
type App struct {
	ID       string   `json:"id"`
	Name     string   `json:"name"`
	Tenant   string   `json:"tenant"`
	Template string   `json:"template,omitempty"`
	Version  int64    `json:"version,omitempty"` // 0 follows the newest
	Intent   *Intent  `json:"intent,omitempty"`
	Export   Export   `json:"export"`
	Volumes  []Volume `json:"volumes"`
	Deleting bool     `json:"deleting,omitempty"`
	ETag     string   `json:"etag"`
}

// Volume is a volume: what is wished for and what became of it.
type Volume struct {
	ID           string       `json:"id"`
	Name         string       `json:"name"`
	App          string       `json:"app"`
	Tenant       string       `json:"tenant"`
	Size         domain.Bytes `json:"size"`
	Actual       domain.Bytes `json:"actual_size"`
	LogicalBlock int          `json:"logical_block"`
	LUN          int          `json:"lun"`
	State        string       `json:"state"` // "placing", "offline", "online", "deleting"
	Compliance   Compliance   `json:"compliance"`
	Node         string       `json:"node,omitempty"`
	Device       string       `json:"device,omitempty"`
	Durability   string       `json:"durability,omitempty"`
	Used         domain.Bytes `json:"used,omitempty"`
	Own          domain.Bytes `json:"own,omitempty"`
	Shared       domain.Bytes `json:"shared,omitempty"`
	Saved        domain.Bytes `json:"saved,omitempty"`
	Snapshots    int          `json:"snapshots,omitempty"`
	SnapshotOwn  domain.Bytes `json:"snapshot_own,omitempty"`
	Hosts        int          `json:"hosts,omitempty"`
	Source       string       `json:"source,omitempty"`
	Restore      string       `json:"restore,omitempty"` // "pending", "done", "refused"
	Refused      string       `json:"refused,omitempty"`
	Encrypted    bool         `json:"encrypted,omitempty"`
	Shrinking    bool         `json:"shrinking,omitempty"`
	NBD          string       `json:"nbd,omitempty"`
	ISCSI        string       `json:"iscsi,omitempty"`
	Target       string       `json:"target,omitempty"`
	Ops          []Ops        `json:"ops,omitempty"`
	Policy       []PolicyRow  `json:"policy,omitempty"`
	ETag         string       `json:"etag,omitempty"`
}

// Snapshot is what one volume was at one instant.
type Snapshot struct {
	ID         string       `json:"id"`
	Name       string       `json:"name"`
	App        string       `json:"app"`
	Volume     string       `json:"volume"`
	VolumeID   string       `json:"volume_id"`
	Tenant     string       `json:"tenant"`
	Group      string       `json:"group,omitempty"`
	State      string       `json:"state"` // "taking", "ready", "failed", "deleting"
	Reason     string       `json:"reason,omitempty"`
	Every      string       `json:"every,omitempty"` // the rule that took it
	Taken      *time.Time   `json:"taken,omitempty"`
	Generation int64        `json:"generation,omitempty"`
	Size       domain.Bytes `json:"size,omitempty"`
	Used       domain.Bytes `json:"used,omitempty"`
	Own        domain.Bytes `json:"own,omitempty"`
	Shared     domain.Bytes `json:"shared,omitempty"`
	Node       string       `json:"node,omitempty"`
	Device     string       `json:"device,omitempty"`
	ETag       string       `json:"etag,omitempty"`
}

// Sharing splits the room of the data that a volume or snapshot sees: what nobody else sees, so
// that a deletion gives it back, and what others see, too.
type Sharing struct {
	Exclusive domain.Bytes `json:"exclusive"`
	Common    domain.Bytes `json:"common"`
}

// SnapshotList is a list of snapshots; Silent names the nodes that gave no answer.
type SnapshotList struct {
	Items    []Snapshot `json:"items"`
	Position string     `json:"position"`
	Silent   []string   `json:"silent,omitempty"`
}

// SnapshotBody asks for a snapshot.
type SnapshotBody struct {
	Name    string   `json:"name,omitempty"`    // empty: one is made up
	Volumes []string `json:"volumes,omitempty"` // none: all of the application
}

// RestoreBody asks to roll a volume back.
type RestoreBody struct {
	Snapshot string `json:"snapshot"`
	Force    bool   `json:"force,omitempty"`
}

// Range is a part of a volume or snapshot, in bytes.
type Range struct {
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
	Kind   string `json:"kind"` // "data", "zero", "hole"
}

// Ranges is one page of ranges.
type Ranges struct {
	Items []Range      `json:"items"`
	Next  *int64       `json:"next,omitempty"` // nil: this is the last page
	Size  domain.Bytes `json:"size"`
}

// Ops counts one operation of a volume since the node began to serve it.
type Ops struct {
	Op     string `json:"op"`
	Count  int64  `json:"count"`
	Bytes  int64  `json:"bytes"`
	Errors int64  `json:"errors"`
}

// Compliance says how far a volume is what its policy demands.
type Compliance struct {
	State  string `json:"state"` // "compliant", "converging", "violated"
	Reason string `json:"reason,omitempty"`
}

// PolicyRow is one effective field of a policy set with its source.
type PolicyRow struct {
	Field      string   `json:"field"`
	Value      string   `json:"value"`
	From       string   `json:"from"`
	Overridden []string `json:"overridden,omitempty"`
}

// Node is a node of the cluster.
type Node struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	Version     string `json:"version"`
	Incarnation uint64 `json:"incarnation"`
	Leader      bool   `json:"leader"`
	Devices     int    `json:"devices"`
	State       string `json:"state"` // "ready", "down", "lost", "drained", "removed"
	Vote        string `json:"vote,omitempty"`
	Peer        string `json:"peer,omitempty"`
	API         string `json:"api,omitempty"`
	Location    string `json:"location,omitempty"`

	Adding  []string        `json:"adding,omitempty"`
	Refused []RefusedDevice `json:"refused,omitempty"`
}

// RefusedDevice is a device that a node was asked to use and does not.
type RefusedDevice struct {
	Device string `json:"device"`
	Reason string `json:"reason"`
	Remedy string `json:"remedy,omitempty"`
}

// LocationBody says where a node stands.
type LocationBody struct {
	Location string `json:"location"`
}

// TokenBody asks for a join token.
type TokenBody struct {
	TTLSeconds int64 `json:"ttl_seconds,omitempty"`
	Uses       int64 `json:"uses,omitempty"`
}

// JoinToken lets machines join. It is shown once.
type JoinToken struct {
	Token   string `json:"token"`
	Uses    int64  `json:"uses"`
	Expires string `json:"expires"`
}

// Device is a device of a node.
type Device struct {
	ID          string       `json:"id"`
	Node        string       `json:"node"`
	Path        string       `json:"path"`
	Class       string       `json:"class"`
	State       string       `json:"state"`            // "ok", "suspect", "failed"
	Reason      string       `json:"reason,omitempty"` // why it is not ok
	Damaged     int64        `json:"damaged,omitempty"`
	Bytes       domain.Bytes `json:"bytes"`
	Usable      domain.Bytes `json:"usable"`
	Used        domain.Bytes `json:"used"`
	Garbage     domain.Bytes `json:"garbage,omitempty"` // in segments in use, beside what lives
	Segments    int64        `json:"segments"`
	Free        int64        `json:"free_segments"`
	Corruptions int64        `json:"corruptions"`
	Moved       domain.Bytes `json:"moved,omitempty"`     // copied off it while it leaves
	Left        domain.Bytes `json:"left,omitempty"`      // to be copied yet, about
	MovingTo    string       `json:"moving_to,omitempty"` // where to
	Durability  string       `json:"durability"`
	Mode        string       `json:"mode"`
}

// Scrub says how far the scrub of a device has come, and what the last one found.
type Scrub struct {
	Device   string       `json:"device"`
	Path     string       `json:"path"`
	State    string       `json:"state"` // "running", "waiting", "paused", "finished", ...
	Pass     uint64       `json:"pass,omitempty"`
	Checked  domain.Bytes `json:"checked,omitempty"`
	Live     domain.Bytes `json:"live,omitempty"`
	Damaged  int64        `json:"damaged"`
	Started  *time.Time   `json:"started,omitempty"`
	Finished *time.Time   `json:"finished,omitempty"`
	Damages  []Damage     `json:"damages,omitempty"`
}

// Damage is a place of a device that is not what it has to be.
type Damage struct {
	Part     string `json:"part"`
	Volume   string `json:"volume,omitempty"`
	Snapshot string `json:"snapshot,omitempty"`
	Block    int64  `json:"block,omitempty"`
	Version  string `json:"version,omitempty"`
	Offset   int64  `json:"offset"`
	Detail   string `json:"detail"`
	Mended   bool   `json:"mended,omitempty"`
}

// ScrubBody starts ("start") or pauses ("pause") the scrub of a node's devices.
type ScrubBody struct {
	Action string `json:"action"`
	Device string `json:"device,omitempty"` // id or path; empty: all of the node
}

// Plan is a plan of the reconciler.
type Plan struct {
	ID        string     `json:"id"`
	Position  string     `json:"position"`
	Base      string     `json:"base"`
	State     string     `json:"state"` // "running", "finished"
	Completed int64      `json:"completed"`
	Failed    int64      `json:"failed"`
	Steps     []PlanStep `json:"steps"`
}

// PlanStep is one step with its reason.
type PlanStep struct {
	Kind  string `json:"kind"`
	Name  string `json:"name"`
	Why   string `json:"why"`
	Error string `json:"error,omitempty"`
}

// Decision says why a volume is where it is, or nowhere.
type Decision struct {
	Volume     string           `json:"volume"`
	Position   string           `json:"position"`
	Placed     bool             `json:"placed"`
	Node       string           `json:"node,omitempty"`
	Device     string           `json:"device,omitempty"`
	Plan       string           `json:"plan,omitempty"`
	Considered int64            `json:"considered"`
	Rejects    []DecisionReject `json:"rejects,omitempty"`
	Candidates []DecisionScore  `json:"candidates,omitempty"`
	Remedies   []string         `json:"remedies,omitempty"`
	Policy     []PolicyRow      `json:"policy,omitempty"`
	Damages    []Damage         `json:"damages,omitempty"`
}

// DecisionReject counts the devices that one constraint excluded.
type DecisionReject struct {
	Why   string `json:"why"`
	Count int64  `json:"count"`
}

// DecisionScore is a candidate; higher is better, 1000 is empty.
type DecisionScore struct {
	Device  string `json:"device"`
	Score   int64  `json:"score"`
	Suspect bool   `json:"suspect,omitempty"`
	Crowded bool   `json:"crowded,omitempty"` // no room for the volume's minima
}

// Event is a stored event.
type Event struct {
	Position    string          `json:"position"`
	Stream      string          `json:"stream"`
	Revision    int64           `json:"revision"`
	Type        string          `json:"type"`
	ID          string          `json:"id"`
	Created     time.Time       `json:"created"`
	Actor       string          `json:"actor,omitempty"`
	Source      string          `json:"source,omitempty"`
	Command     string          `json:"command"`
	Request     string          `json:"request,omitempty"`
	Correlation string          `json:"correlation,omitempty"`
	Causation   string          `json:"causation,omitempty"`
	Token       string          `json:"token,omitempty"`
	Hash        string          `json:"hash"`
	Data        json.RawMessage `json:"data,omitempty"`
}

// Replay is what a replay of the log came to.
type Replay struct {
	Position string         `json:"position"`
	Views    []ReplayedView `json:"views"`
}

// ReplayedView is what the replay of one view came to.
type ReplayedView struct {
	View    string  `json:"view"`
	Version uint16  `json:"version"`
	Events  uint64  `json:"events"`
	Hash    string  `json:"hash"`
	Seconds float64 `json:"seconds"`
}

// Verdict is the answer of a verification of the log.
type Verdict struct {
	Sound   bool   `json:"sound"`
	Checked string `json:"checked"`
	Bad     string `json:"bad,omitempty"`
	Why     string `json:"why,omitempty"`
	Part    string `json:"part,omitempty"` // "database" or "archive"
	Node    string `json:"node,omitempty"`
	Remedy  string `json:"remedy,omitempty"`
	Alone   bool   `json:"alone,omitempty"` // no other node has a copy
}

// LogDamage is damage of a node's copy of the event log that is not repaired yet.
type LogDamage struct {
	Node     string `json:"node"`
	Name     string `json:"name,omitempty"`
	Part     string `json:"part"` // "database" or "archive"
	Position string `json:"position,omitempty"`
	First    uint64 `json:"first,omitempty"`
	Why      string `json:"why"`
	Remedy   string `json:"remedy"`
}

// Archive says how the old part of the event log is kept.
type Archive struct {
	State    string          `json:"state"` // "ok", "waiting", "late", "full", "stuck"
	Reason   string          `json:"reason,omitempty"`
	Window   uint64          `json:"window"`
	Hot      uint64          `json:"hot"`
	Tail     string          `json:"tail"`
	Sealed   string          `json:"sealed"`
	Archived string          `json:"archived"`
	Segments int             `json:"segments"`
	Bytes    domain.Bytes    `json:"bytes"`
	Holders  []ArchiveHolder `json:"holders"`
	Database ArchiveDatabase `json:"database"`
}

// Engine says which event log takes changes of intent, and how far the copies between the logs are.
type Engine struct {
	Engine   string      `json:"engine"` // "embedded", or an address
	State    string      `json:"state"`  // "embedded", "copying", "closed", "external", "stuck" ...
	Reason   string      `json:"reason,omitempty"`
	To       string      `json:"to,omitempty"`
	Events   uint64      `json:"events,omitempty"`
	Rest     uint64      `json:"rest,omitempty"`
	Pace     uint64      `json:"pace,omitempty"`
	Growth   uint64      `json:"growth,omitempty"`
	Through  string      `json:"through,omitempty"`
	Behind   int         `json:"behind"`
	Migrated string      `json:"migrated,omitempty"`
	Copy     *EngineCopy `json:"copy,omitempty"`
}

// Failing is work that a node does by itself, and that has failed for a while.
type Failing struct {
	What     string     `json:"what"`
	Node     string     `json:"node,omitempty"`
	Since    *time.Time `json:"since,omitempty"`
	Failures int64      `json:"failures"`
	Error    string     `json:"error"`
	Position string     `json:"position"`
}

// FailingList is what fails on the nodes that answered.
type FailingList struct {
	Items  []Failing `json:"items"`
	Silent []string  `json:"silent,omitempty"`
}

// EngineCopy counts what a move to another log would do.
type EngineCopy struct {
	Events  uint64       `json:"events"`
	Present uint64       `json:"present"`
	Missing uint64       `json:"missing"`
	Streams int          `json:"streams"`
	Bytes   domain.Bytes `json:"bytes"`
}

// EngineBody asks for another log to take changes of intent.
type EngineBody struct {
	To     string `json:"to"`
	Secret string `json:"secret,omitempty"`
	DryRun bool   `json:"dry_run,omitempty"`
}

// ArchiveHolder is a node that keeps an archive, and how far it reaches.
type ArchiveHolder struct {
	Node     string `json:"node"`
	Name     string `json:"name,omitempty"`
	Archived string `json:"archived"`
}

// ArchiveDatabase is how large the log's database is.
type ArchiveDatabase struct {
	Size  domain.Bytes `json:"size"`
	Used  domain.Bytes `json:"used"`
	Quota domain.Bytes `json:"quota"`
}

// ArchiveSegment is one sealed file of the archive.
type ArchiveSegment struct {
	First  uint64       `json:"first"`
	Last   string       `json:"last"`
	Events uint32       `json:"events"`
	Bytes  domain.Bytes `json:"bytes"`
	Root   string       `json:"root"`
	Hot    bool         `json:"hot"`
}

// Setting is one setting of the cluster.
type Setting struct {
	Key     string `json:"key"`
	Value   string `json:"value"`
	Default string `json:"default"`
	About   string `json:"about"`
}

// Gone is the answer to a deletion.
type Gone struct {
	Deleted string `json:"deleted"`
	State   string `json:"state"` // "deleted" or, while data is being freed, "deleting"
}

// SecretBody is a CHAP secret.
type SecretBody struct {
	User      string `json:"user"`
	Secret    string `json:"secret"`
	OwnUser   string `json:"own_user,omitempty"`
	OwnSecret string `json:"own_secret,omitempty"`
}

// Kept is the answer to a secret.
type Kept struct {
	Name string `json:"name"`
}
