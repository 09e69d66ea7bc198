package scsi

import "slices"

// The usage data of CDBs, byte 1 on: which bits are looked at.
var (
	usage6   = []byte{0x1f, 0xff, 0xff, 0xff, 0x04}
	usage10  = []byte{0xf8, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0x04}
	usage12  = []byte{0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0x04}
	usage16  = ranged16(0xf8)
	verify10 = []byte{0xf6, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0x04}
	verify12 = []byte{0xf6, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0x04}
	same10   = []byte{0xe8, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0x04}
	plain6   = []byte{0, 0, 0, 0, 0x04}
	action16 = []byte{
		0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0x04,
	}
	action12 = []byte{0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0x04}
)

func ranged16(first byte) []byte {
	return []byte{
		first, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0x04,
	}
}

// mediaRows lists the commands that reach the medium.
func mediaRows() []command {
	read := func(op, size byte, usage []byte) command {
		return command{
			op: op, sa: none, size: size, class: in, moves: dataIn, media: true,
			protect: size > 6, start: startRead, usage: usage,
		}
	}
	write := func(op, size byte, usage []byte) command {
		return command{
			op: op, sa: none, size: size, class: out, moves: dataOut, media: true,
			protect: size > 6, start: startWrite, usage: usage,
		}
	}
	slow := func(op, size byte, k class, m moves, usage []byte, do func(*task) outcome) command {
		return command{
			op: op, sa: none, size: size, class: k, moves: m, media: true,
			protect: true, slow: true, do: do, usage: usage,
		}
	}
	flush := func(op, size byte, usage []byte) command {
		return command{
			op: op, sa: none, size: size, class: in, media: true, start: startFlush,
			usage: usage,
		}
	}
	inline := func(op, size byte, usage []byte, do func(*task) outcome) command {
		return command{op: op, sa: none, size: size, class: in, do: do, usage: usage}
	}
	caw := slices.Clone(ranged16(0xf8))
	caw[9], caw[10], caw[11] = 0, 0, 0
	unmap := slow(0x42, 10, out, list, []byte{0, 0, 0, 0, 0, 0x1f, 0xff, 0xff, 0x04}, doUnmap)
	unmap.protect = false
	compare := slow(0x89, 16, out, pairs, caw, nil)
	compare.slow, compare.start = false, startCompare
	atomic := write(0x9c, 16, usage16)
	atomic.start = startAtomic
	return []command{
		read(0x08, 6, usage6), read(0x28, 10, usage10), read(0xa8, 12, usage12),
		read(0x88, 16, usage16),
		write(0x0a, 6, usage6), write(0x2a, 10, usage10), write(0xaa, 12, usage12),
		write(0x8a, 16, usage16), atomic,
		slow(0x2f, 10, in, checkData, verify10, doVerify),
		slow(0xaf, 12, in, checkData, verify12, doVerify),
		slow(0x8f, 16, in, checkData, ranged16(0xf6), doVerify),
		slow(0x2e, 10, out, dataOut, verify10, doWriteVerify),
		slow(0xae, 12, out, dataOut, verify12, doWriteVerify),
		slow(0x8e, 16, out, dataOut, ranged16(0xf6), doWriteVerify),
		slow(0x41, 10, out, pattern, same10, doWriteSame),
		slow(0x93, 16, out, pattern, ranged16(0xe9), doWriteSame),
		unmap, compare,
		slow(0x8b, 16, out, dataOut, usage16, doOrWrite),
		flush(0x35, 10, []byte{0, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0x04}),
		flush(0x91, 16, ranged16(0)),
		inline(0x34, 10, []byte{0x02, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0x04}, doPrefetch),
		inline(0x90, 16, ranged16(0x02), doPrefetch),
		{
			op: 0x9e, sa: 0x12, size: 16, class: in, moves: answer, slow: true, media: true,
			do: doBlockStatus, usage: action16,
		},
		{
			op: 0x83, sa: 0x00, size: 16, class: out, moves: list, slow: true, media: true,
			do: doCopy, usage: action16,
		},
	}
}

// controlRows lists the commands about the logical unit itself.
func controlRows() []command {
	page10 := []byte{0xff, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0x04}
	action := func(op byte, sa int16, size byte, do func(*task) outcome) command {
		usage := action16
		if size == 12 {
			usage = action12
		}
		return command{
			op: op, sa: sa, size: size, class: free, moves: answer, unreserved: false,
			do: do, usage: usage,
		}
	}
	page := func(op, size byte, k class, m moves, do func(*task) outcome) command {
		usage := page10
		if size == 6 {
			usage = []byte{0xff, 0xff, 0xff, 0xff, 0x04}
		}
		return command{op: op, sa: none, size: size, class: k, moves: m, do: do, usage: usage}
	}
	always := func(op, size byte, usage []byte, do func(*task) outcome) command {
		return command{
			op: op, sa: none, size: size, class: free, moves: answer, quiet: true,
			unreserved: true, do: do, usage: usage,
		}
	}
	rows := []command{
		{op: 0x00, sa: none, size: 6, class: tur, do: doReady, usage: plain6},
		always(0x03, 6, []byte{0x01, 0, 0, 0xff, 0x04}, doRequestSense),
		always(0xa0, 12, []byte{0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04}, doReportUnits),
		always(0x12, 6, []byte{0x01, 0xff, 0xff, 0xff, 0x04}, doInquiry),
		page(0x1a, 6, in, answer, doModeSense), page(0x5a, 10, in, answer, doModeSense),
		page(0x15, 6, out, list, doModeSelect), page(0x55, 10, out, list, doModeSelect),
		page(0x4d, 10, free, answer, doLogSense),
		{
			op: 0x25, sa: none, size: 10, class: free, do: doCapacity10,
			usage: []byte{0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0x01, 0x04},
		},
		action(0x9e, 0x10, 16, doCapacity16),
		{
			op: 0x1b, sa: none, size: 6, class: in, do: doStartStop,
			usage: []byte{0x01, 0, 0x0f, 0xf7, 0x04},
		},
		page(0x37, 10, in, answer, doDefects10),
		{
			op: 0xb7, sa: none, size: 12, class: in, moves: answer, do: doDefects12,
			usage: []byte{0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0x04},
		},
		action(0xa3, 0x0a, 12, doPortGroups), action(0xa3, 0x0c, 12, doOperationCodes),
		action(0xa3, 0x0d, 12, doTaskFunctions),
		action(0x84, 0x00, 16, doCopyStatus), action(0x84, 0x03, 16, doCopyParameters),
		action(0x84, 0x04, 16, doCopyFailure),
	}
	rows = append(rows, familyRows()...)
	slices.SortStableFunc(rows, func(a, b command) int { return int(a.op) - int(b.op) })
	return rows
}

// familyRows lists the control commands that come in families: reservations of both kinds, and
// SANITIZE.
func familyRows() []command {
	var rows []command
	for op, release := range map[byte]bool{0x16: false, 0x17: true, 0x56: false, 0x57: true} {
		size, usage := byte(6), plain6
		do := doReserve
		if op >= 0x56 {
			size, usage = 10, []byte{0, 0, 0, 0, 0, 0, 0, 0, 0x04}
		}
		if release {
			do = doRelease
		}
		rows = append(rows, command{
			op: op, sa: none, size: size, class: old,
			unreserved: release, do: do, usage: usage,
		})
	}
	for sa := int16(0); sa <= 3; sa++ {
		rows = append(rows, command{
			op: 0x5e, sa: sa, size: 10, class: free, moves: answer,
			do: doReserveIn, usage: []byte{0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 0x04},
		})
	}
	for sa := int16(0); sa <= 7; sa++ {
		rows = append(rows, command{
			op: 0x5f, sa: sa, size: 10, class: prOut, moves: list,
			slow: true, do: doReserveOut,
			usage: []byte{0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x04},
		})
	}
	for _, sa := range []int16{1, 2, 3, 0x1f} {
		rows = append(rows, command{
			op: 0x48, sa: sa, size: 10, class: out, moves: list,
			start: startSanitize, usage: []byte{0xff, 0, 0, 0, 0, 0, 0xff, 0xff, 0x04},
		})
	}
	return rows
}
