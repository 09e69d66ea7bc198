package reconciler

import (
	"strings"
	"testing"

	"weft/domain"
	"weft/domain/intent"
	"weft/domain/tenancy"
)

// TestQuotaAbove proves that a quota holds for a tenant and all below it together: what a
// sub-tenant takes, grows, shrinks and gives back counts at each tenant above; a refusal up there
// leaves nothing behind below, and tells no figures.
func TestQuotaAbove(t *testing.T) {
	h := build(t)
	top, mid, low, side := tid(30), tid(31), tid(32), tid(33)
	for _, c := range []tenancy.Create{
		{Tenant: top, Name: "top"},
		{Tenant: mid, Name: "mid", Parent: top},
		{Tenant: low, Name: "low", Parent: mid},
		{Tenant: side, Name: "side", Parent: top},
	} {
		h.do(c)
	}
	h.do(tenancy.SetQuota{Tenant: top, Bytes: 4 * domain.GiB, Volumes: 2})
	of := func(n byte, in domain.TenantID, size domain.Bytes) intent.CreateApp {
		c := shop(size)
		c.App, c.Tenant, c.Name = domain.AppID{UUID: domain.UUID{40, n}}, in, "app"
		c.Volumes[0].Volume = domain.VolumeID{UUID: domain.UUID{41, n}}
		c.Above = h.want.Above(in)
		return c
	}
	want := func(what string, bytes ...domain.Bytes) {
		t.Helper()
		for i, id := range []domain.TenantID{top, mid, low, side} {
			if got := h.held(id); got != bytes[i] {
				t.Errorf("%s: tenant %d holds %s, want %s", what, i, got, bytes[i])
			}
		}
	}
	refused := func(c domain.Command) {
		t.Helper()
		_, err := h.exec.Do(t.Context(), domain.Request{Command: c})
		if !domain.IsKind(err, domain.NoSpace) || strings.Contains(err.Error(), "are held") {
			t.Errorf("%v", err)
		}
	}
	first := of(1, low, 2*domain.GiB)
	h.do(first)
	want("an app below", 2*domain.GiB, 2*domain.GiB, 2*domain.GiB, 0)
	refused(of(2, side, 3*domain.GiB))
	want("too much beside it", 2*domain.GiB, 2*domain.GiB, 2*domain.GiB, 0)
	resize := intent.ResizeVolume{
		App: first.App, Tenant: low, Above: first.Above, Volume: first.Volumes[0].Volume,
		From: 2 * domain.GiB, Size: 5 * domain.GiB,
	}
	refused(resize)
	resize.Size = 4 * domain.GiB // by as much as it has held since it was made
	h.do(tenancy.SetQuota{Tenant: top, Bytes: 3 * domain.GiB, Volumes: 2})
	refused(resize)
	want("growth refused", 2*domain.GiB, 2*domain.GiB, 2*domain.GiB, 0)
	h.do(tenancy.SetQuota{Tenant: mid, Bytes: 3 * domain.GiB})
	h.do(tenancy.SetQuota{Tenant: top, Bytes: 4 * domain.GiB, Volumes: 2})
	refused(resize)
	want("growth refused in between", 2*domain.GiB, 2*domain.GiB, 2*domain.GiB, 0)
	h.do(tenancy.SetQuota{Tenant: mid})
	h.do(resize)
	want("growth", 4*domain.GiB, 4*domain.GiB, 4*domain.GiB, 0)
	refused(of(3, side, domain.GiB))
	h.settle()
	resize.From, resize.Size, resize.Shrink = resize.Size, domain.GiB, true
	h.do(resize)
	want("shrinking", domain.GiB, domain.GiB, domain.GiB, 0)
	h.do(of(4, side, 3*domain.GiB))
	want("room beside it", 4*domain.GiB, domain.GiB, domain.GiB, 3*domain.GiB)
	refused(of(5, mid, domain.VolumeMin)) // neither bytes nor a third volume
	h.settle()
	h.do(intent.DeleteApp{App: first.App})
	h.settle()
	h.settle()
	want("deleted", 3*domain.GiB, 0, 0, 3*domain.GiB)
}

// TestQuotaAsDeepAsTenantsGo proves that the deepest tenant takes of all above it and gives back.
func TestQuotaAsDeepAsTenantsGo(t *testing.T) {
	h := build(t)
	var parent domain.TenantID
	for n := range byte(tenancy.DepthMax) {
		id := tid(50 + n)
		h.do(tenancy.Create{Tenant: id, Name: "t" + string(rune('a'+n)), Parent: parent})
		parent = id
	}
	c := shop(domain.GiB)
	c.Tenant, c.Above = parent, h.want.Above(parent)
	h.do(c)
	grow := intent.ResizeVolume{
		App: c.App, Tenant: parent, Above: c.Above, Volume: c.Volumes[0].Volume, From: domain.GiB,
		Size: 2 * domain.GiB,
	}
	h.do(grow)
	if top := h.held(tid(50)); top != 2*domain.GiB || len(c.Above) != tenancy.DepthMax-1 {
		t.Errorf("%s held above %d tenants", top, len(c.Above))
	}
	h.settle()
	h.do(intent.DeleteApp{App: c.App})
	h.settle()
	if top := h.held(tid(50)); top != 0 {
		t.Errorf("%s held afterwards", top)
	}
}

func tid(n byte) domain.TenantID { return domain.TenantID{UUID: domain.UUID{n}} }
