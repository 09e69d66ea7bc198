package scsi

// doOperationCodes serves REPORT SUPPORTED OPERATION CODES.
func doOperationCodes(t *task) outcome {
	options, timeouts := t.cdb[2]&0x07, t.cdb[2]&0x80 != 0
	op, action := t.cdb[3], get16(t.cdb[4:])
	rows, plain := t.unit.table.acts[op], t.unit.table.plain[op]
	var found *command
	if plain == nil {
		for _, c := range rows {
			if c.sa == int16(action) {
				found = c
			}
		}
	}
	switch options {
	case 0:
		return t.reply(t.allCodes(timeouts), t.command.allocation(t.cdb))
	case 1:
		if len(rows) > 0 {
			return badField
		}
		found = plain
	case 2:
		if plain != nil {
			return badField
		}
	case 3:
		if plain != nil && action == 0 {
			found = plain
		}
	default:
		return badField
	}
	return t.reply(oneCode(found, timeouts), t.command.allocation(t.cdb))
}

// timeoutDescriptor says that no time-out is recommended.
func timeoutDescriptor(b []byte) []byte {
	b = put16(b, 10)
	return append(b, make([]byte, 10)...)
}

// allCodes lists every command.
func (t *task) allCodes(timeouts bool) []byte {
	b := make([]byte, 4)
	row := func(op byte, sa int16, size byte) {
		flags := byte(0)
		action := uint16(0)
		if sa >= 0 {
			flags, action = 0x01, uint16(sa)
		}
		if timeouts {
			flags |= 0x02
		}
		b = append(b, op, 0)
		b = put16(b, action)
		b = append(b, 0, flags)
		b = put16(b, uint16(size))
		if timeouts {
			b = timeoutDescriptor(b)
		}
	}
	for _, c := range t.unit.table.rows {
		row(c.op, c.sa, c.size)
	}
	copy(b, put32(nil, uint32(len(b)-4)))
	return b
}

// oneCode describes one command: how it is supported, and which bits of its CDB are looked at.
func oneCode(c *command, timeouts bool) []byte {
	if c == nil {
		return []byte{0, 0x01, 0, 0} // not supported
	}
	flags := byte(0x03)
	if timeouts {
		flags |= 0x80
	}
	b := []byte{0, flags}
	b = put16(b, uint16(c.size))
	usage := make([]byte, c.size)
	usage[0] = c.op
	copy(usage[1:], c.usage)
	if c.sa >= 0 {
		usage[1] = usage[1]&^0x1f | byte(c.sa)
	}
	b = append(b, usage...)
	if timeouts {
		b = timeoutDescriptor(b)
	}
	return b
}

// doTaskFunctions serves REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS: abort task, abort task set,
// clear task set, logical unit reset, target reset.
func doTaskFunctions(t *task) outcome {
	b := []byte{0x80 | 0x40 | 0x10 | 0x08 | 0x02, 0, 0, 0}
	if t.cdb[2]&0x80 != 0 { // REPD
		b = append(b, make([]byte, 12)...)
		b[3] = 12
	}
	return t.reply(b, t.command.allocation(t.cdb))
}

// doPortGroups serves REPORT TARGET PORT GROUPS, in both formats.
func doPortGroups(t *task) outcome {
	extended := false
	switch t.cdb[1] >> 5 {
	case 0:
	case 1:
		extended = true
	default:
		return badField
	}
	b := make([]byte, 4)
	if extended {
		b = append(b, 0x10, 0, 0, 0) // length-with-header format, no implicit transition time
	}
	for _, g := range *t.unit.groups.Load() {
		// Supported: transitioning, offline, unavailable, standby, non-optimized, optimized.
		b = append(b, byte(g.State), 0x80|0x40|0x08|0x04|0x02|0x01)
		b = put16(b, g.ID)
		b = append(b, 0, 0x02, 0, byte(len(g.Ports))) // altered by implicit behaviour
		for _, p := range g.Ports {
			b = put16(append(b, 0, 0), p)
		}
	}
	copy(b, put32(nil, uint32(len(b)-4)))
	return t.reply(b, t.command.allocation(t.cdb))
}
