package codec

import (
	"weft/domain"
	"weft/domain/cluster"
	"weft/domain/identity"
	"weft/domain/intent"
	"weft/domain/outlet"
	"weft/domain/policy"
	"weft/domain/snapshot"
	"weft/domain/tenancy"
	"weft/domain/volume"
)

// Catalog gives a registry of every event type of this build, each with its schema and whether its
// readers must know it. A new type is entered here and gets its golden bytes by running the tests
// of this package with -rewrite.
func Catalog() *Registry {
	r := New()
	for _, ev := range []domain.Event{
		&cluster.ClusterInitialized{}, &cluster.RoleOpened{}, &cluster.LeadershipAcquired{},
		&cluster.LogRestored{}, &cluster.TimelineRaised{}, &cluster.SegmentArchived{},
		&cluster.SettingChanged{}, &cluster.LogRecovered{}, &cluster.KeysExported{},
		&cluster.IntentsClosed{}, &cluster.IntentsOpened{}, &cluster.EngineMoveStarted{},
		&cluster.EngineMoveFailed{}, &cluster.EngineMigrated{},
		&cluster.NodeJoined{}, &cluster.NodeRestarted{}, &cluster.SoftwareVersionChanged{},
		&cluster.JoinTokenIssued{}, &cluster.JoinTokenUsed{}, &cluster.JoinTokenRevoked{},
		&cluster.NodeEndpointChanged{}, &cluster.NodeDown{}, &cluster.NodeReturned{},
		&cluster.NodeDrainRequested{}, &cluster.NodeUncordoned{}, &cluster.NodeRemoved{},
		&cluster.NodeLocationChanged{},
		&cluster.LearnerAdded{}, &cluster.VoterPromoted{}, &cluster.VoterRemoved{},
		&cluster.LogDamaged{}, &cluster.LogRepaired{},
		&cluster.DeviceAdmitted{}, &cluster.DeviceFailed{}, &cluster.DeviceReadmitted{},
		&cluster.DeviceRetired{}, &cluster.DeviceAddRequested{}, &cluster.DeviceAdded{},
		&cluster.DeviceAddRefused{}, &cluster.DeviceRemovalRequested{},
		&cluster.DeviceRemovalCancelled{},
		&cluster.DeviceSuspended{}, &cluster.ScrubRequested{}, &cluster.ScrubPaused{},
		&cluster.ScrubFinished{}, &cluster.DamageFound{},
		&tenancy.TenantCreated{}, &tenancy.QuotaSet{}, &tenancy.Reserved{},
		&tenancy.ReserveReleased{}, &tenancy.TenantDeleted{}, &tenancy.NameFreed{},
		&identity.UserDisabled{}, &identity.UserEnabled{}, &identity.UserErased{},
		&identity.UserRoleGranted{}, &identity.UserRoleRevoked{}, &identity.UserDeleted{},
		&identity.TokenRevoked{}, &identity.CommandRefused{},
		&identity.UserUnlinked{}, &identity.IdentityProviderConfigured{},
		&identity.IdentityProviderChanged{}, &identity.IdentityProviderRemoved{},
		&identity.GroupRoleGranted{}, &identity.GroupRoleRevoked{},
		&outlet.OutletCreated{}, &outlet.OutletPaused{}, &outlet.OutletStuck{},
		&outlet.OutletResumed{}, &outlet.OutletDeleted{},
		&intent.TemplateCreated{}, &intent.TemplateVersionPublished{}, &intent.TemplateDeleted{},
		&intent.AppInstanceCreated{}, &intent.VolumeSpecAdded{}, &intent.VolumeSpecResized{},
		&intent.VolumeSpecRemoved{}, &intent.ExportChanged{}, &intent.IntentChanged{},
		&intent.AppInstanceDeleteRequested{}, &intent.AppInstanceDeleted{},
		&volume.VolumeCreated{}, &volume.VolumeResized{}, &volume.VolumeOnlined{},
		&volume.VolumeOfflined{}, &volume.VolumeMoved{}, &volume.VolumeDeleted{},
		&volume.VolumeRolledBack{},
		&volume.VolumeRollbackRefused{}, &volume.ScheduledSnapshotFailed{},
		&volume.ScheduledSnapshotResumed{}, &intent.RestoreRequested{},
		&snapshot.SnapshotRequested{}, &snapshot.SnapshotCut{}, &snapshot.SnapshotMoved{},
		&snapshot.SnapshotFailed{},
		&snapshot.SnapshotDeleteRequested{}, &snapshot.SnapshotDeleted{},
		&policy.PlanProposed{}, &policy.PlanStepFailed{}, &policy.PlanFinished{},
		&policy.PlacementDecided{}, &policy.PlacementImpossible{},
	} {
		r.Register(ev, 1, true)
	}
	for _, ev := range []domain.Event{
		&tenancy.NameTaken{}, &identity.UserCreated{}, &identity.UserLinked{}, &identity.TokenIssued{},
	} {
		r.Register(ev, 2, true)
	}
	older(r)
	return r
}
