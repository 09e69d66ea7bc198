package mem_test

import (
	"testing"

	"weft/backends"
	"weft/backends/devicetest"
	"weft/backends/mem"
)

// TestDevice runs the suite of all devices, with both logical blocks, with and without history,
// written by one buffer and by several.
func TestDevice(t *testing.T) {
	for name, cfg := range map[string]mem.Config{
		"4Kn":     {Size: 4 << 20},
		"512":     {Size: 4 << 20, LogicalBlock: 512, Durability: backends.PowerSafe},
		"history": {Size: 4 << 20, Durability: backends.NeedsFlush, RecordHistory: true},
	} {
		t.Run(name, func(t *testing.T) {
			devicetest.Run(t, func(t *testing.T) backends.Device {
				d, err := mem.New(cfg)
				if err != nil {
					t.Fatal(err)
				}
				return d
			})
		})
		t.Run(name+" vectored", func(t *testing.T) {
			devicetest.Run(t, func(t *testing.T) backends.Device {
				d, err := mem.New(cfg)
				if err != nil {
					t.Fatal(err)
				}
				return devicetest.Vectored(d)
			})
		})
	}
}
