package faulty

import (
	"testing"
	"time"

	"weft/backends"
	"weft/backends/devicetest"
	"weft/backends/mem"
)

// TestDisk proves what the model of a disk counts: bytes at the rate where an access goes on, a
// seek and half a turn where it does not, a turn for FUA and for a flush that has something to do,
// and that it is a device like any other.
func TestDisk(t *testing.T) {
	made := func(t *testing.T) *Disk {
		m, err := mem.New(mem.Config{Size: 4 << 20, Durability: backends.NeedsFlush})
		if err != nil {
			t.Fatal(err)
		}
		return NewDisk(m, Timing{
			Seek: 8 * time.Millisecond, Turn: 6 * time.Millisecond, Rate: 1 << 20,
		})
	}
	t.Run("device", func(t *testing.T) {
		devicetest.Run(t, func(t *testing.T) backends.Device { return made(t) })
	})
	t.Run("vectored", func(t *testing.T) {
		devicetest.Run(t, func(t *testing.T) backends.Device { return devicetest.Vectored(made(t)) })
	})
	const apart = 11 * time.Millisecond // a seek and half a turn
	d, p := made(t), backends.AlignedBuffer(256<<10)
	for _, c := range []struct {
		what string
		do   func() error
		want time.Duration
	}{
		{"elsewhere", func() error { return d.WriteAt(p, 1<<20, false) }, apart + 250*time.Millisecond},
		{"going on", func() error {
			return d.WriteVAt([][]byte{p[:4096], p[4096:]}, 1<<20+256<<10, false)
		}, 250 * time.Millisecond},
		{"back", func() error { return d.ReadAt(p, 1<<20) }, apart + 250*time.Millisecond},
		{"fua", func() error { return d.WriteAt(p, 1<<20+256<<10, true) }, 256 * time.Millisecond},
		{"flush", func() error { return d.Flush(t.Context()) }, 6 * time.Millisecond},
		{"nothing to flush", func() error { return d.Flush(t.Context()) }, 0},
	} {
		before := d.Busy()
		if err := c.do(); err != nil {
			t.Fatal(err)
		}
		if got := d.Busy() - before; got != c.want {
			t.Errorf("%s: %v, not %v", c.what, got, c.want)
		}
	}
	if w := d.Writes(); len(w) != 3 || w[1] != (Access{Off: 1<<20 + 256<<10, Len: 256 << 10}) ||
		len(d.Writes()) != 0 || !d.Geometry().Rotational {
		t.Errorf("writes %v", w)
	}
}
