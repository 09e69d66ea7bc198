package nbd

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"time"

	"weft/domain"
)

// handshake speaks with the client until it has an export. enter says that transmission follows.
// Replies leave at once, one by one: this is not the hot path.
func (c *conn) handshake() (enter bool, err error) {
	var hello [18]byte
	be.PutUint64(hello[:], magicServer)
	be.PutUint64(hello[8:], magicOption)
	be.PutUint16(hello[16:], flagFixedNewstyle|flagNoZeroes)
	if _, err := c.nc.Write(hello[:]); err != nil {
		return false, err
	}
	flags, err := c.take(4)
	if err != nil {
		return false, err
	}
	c.clientFlags = be.Uint32(flags)
	if c.clientFlags&^(flagFixedNewstyle|flagNoZeroes) != 0 {
		return false, fmt.Errorf("client flags %#x: %w", c.clientFlags, errProtocol)
	}
	for range optionsMax {
		option, data, err := c.readOption()
		if err != nil {
			return false, err
		}
		if data == nil {
			continue // too big, and said so
		}
		if enter, more, err := c.option(option, data); !more || err != nil {
			return enter, err
		}
	}
	return false, fmt.Errorf("%d options: %w", optionsMax, errTooBig)
}

// readOption gives the next option with its data, which is valid until the next read. Data is nil,
// and the client told, when it was over the limit.
func (c *conn) readOption() (uint32, []byte, error) {
	head, err := c.take(optionLen)
	if err != nil {
		return 0, nil, err
	}
	option, n, err := parseOption(head)
	if err != nil {
		return 0, nil, err
	}
	if !c.greeted {
		c.greeted = true
		c.deadline(c.born.Add(c.server.cfg.HandshakeTimeout))
	}
	if n <= optionMax {
		data, err := c.take(int(n))
		return option, data, err
	}
	if option == optExportName || n > optionSkipMax { // the first has no error reply
		return 0, nil, fmt.Errorf("option %d of %d bytes: %w", option, n, errTooBig)
	}
	if err := c.skip(int(n)); err != nil {
		return 0, nil, err
	}
	return option, nil, c.reply(option, repErrTooBig, []byte("option too long"))
}

// option answers one option. more says that the handshake goes on.
func (c *conn) option(option uint32, data []byte) (enter, more bool, err error) {
	if c.server.cfg.RequireTLS && !c.secure && option != optStartTLS && option != optAbort {
		if option == optExportName {
			return false, false, domain.Errorf(domain.Denied, "export name without TLS")
		}
		return false, true, c.reply(option, repErrTLSReqd, []byte("TLS comes first"))
	}
	switch option {
	case optExportName:
		err := c.exportName(string(data))
		return err == nil, false, err
	case optAbort:
		_ = c.reply(option, repAck, nil) // a client may be gone already
		return false, false, nil
	case optList:
		return false, true, c.list(data)
	case optInfo, optGo:
		enter, err := c.info(option, data)
		return enter, !enter, err
	case optStartTLS:
		return false, true, c.startTLS(data)
	case optStructuredReply:
		if len(data) != 0 {
			return false, true, c.reply(option, repErrInvalid, []byte("data where none is due"))
		}
		c.structured = true
		return false, true, c.reply(option, repAck, nil)
	case optListMeta, optSetMeta:
		return false, true, c.meta(option, data)
	}
	return false, true, c.reply(option, repErrUnsup, nil)
}

// reply sends one reply to an option:
//
//	| magic 8 | option 4 | type 4 | length 4 | data |
func (c *conn) reply(option, kind uint32, data []byte) error {
	b := make([]byte, 20, 20+len(data))
	be.PutUint64(b, magicOptReply)
	be.PutUint32(b[8:], option)
	be.PutUint32(b[12:], kind)
	be.PutUint32(b[16:], uint32(len(data)))
	_, err := c.nc.Write(append(b, data...))
	return err
}

// refuse answers an option about an export the client cannot have.
func (c *conn) refuse(option uint32, kind domain.Kind) error {
	if kind == domain.Denied {
		return c.reply(option, repErrPolicy, []byte("not allowed from here"))
	}
	return c.reply(option, repErrUnknown, []byte("no such export"))
}

// startTLS turns the connection into one of TLS. What was agreed on before is forgotten: somebody
// in between could have said it. For the same reason nothing may have been sent ahead.
func (c *conn) startTLS(data []byte) error {
	switch {
	case c.server.cfg.TLS == nil:
		return c.reply(optStartTLS, repErrUnsup, nil)
	case c.secure || len(data) != 0:
		return c.reply(optStartTLS, repErrInvalid, nil)
	case c.rdAt != c.rdEnd:
		return fmt.Errorf("bytes sent ahead of TLS: %w", errProtocol)
	}
	if err := c.reply(optStartTLS, repAck, nil); err != nil {
		return err
	}
	nc := tls.Server(c.nc, c.server.cfg.TLS)
	if err := nc.Handshake(); err != nil { // under the deadlines of the whole handshake
		return err
	}
	c.mu.Lock() // shut may be looking
	c.nc = nc
	c.mu.Unlock()
	c.in.open(nc)
	c.out.open(nc)
	c.secure, c.structured, c.meta0, c.metaName = true, false, false, ""
	return nil
}

func (c *conn) exportName(name string) error {
	e, kind, ok := c.server.attach(c, name)
	if !ok {
		return domain.Errorf(kind, "export %q", name) // the option has no error reply
	}
	c.enter(e)
	c.meta0 = c.meta0 && c.metaName == name
	b := make([]byte, 10, 10+124)
	be.PutUint64(b, uint64(c.info0.Size))
	be.PutUint16(b[8:], c.flags())
	if c.clientFlags&flagNoZeroes == 0 {
		b = b[:cap(b)]
	}
	_, err := c.nc.Write(b)
	return err
}

func (c *conn) list(data []byte) error {
	if len(data) != 0 {
		return c.reply(optList, repErrInvalid, []byte("data where none is due"))
	}
	for _, e := range c.server.visible(c.nc.RemoteAddr()) {
		b := append(be.AppendUint32(nil, uint32(len(e.Name))), e.Name...)
		if err := c.reply(optList, repServer, append(b, e.Description...)); err != nil {
			return err
		}
	}
	return c.reply(optList, repAck, nil)
}

func (c *conn) info(option uint32, data []byte) (enter bool, err error) {
	name, items, ok := parseInfo(data)
	if !ok {
		return false, c.reply(option, repErrInvalid, []byte("malformed"))
	}
	e, kind, ok := c.server.find(name, c.nc.RemoteAddr())
	if ok && option == optGo {
		e, kind, ok = c.server.attach(c, name)
	}
	if !ok {
		return false, c.refuse(option, kind)
	}
	c.enter(e)
	b := be.AppendUint16(nil, infoExport)
	b = be.AppendUint64(b, uint64(c.info0.Size))
	if err := c.reply(option, repInfo, be.AppendUint16(b, c.flags())); err != nil {
		return false, err
	}
	// Block sizes are told unasked: a client that ignores them gets EINVAL for what does not fit.
	b = be.AppendUint16(nil, infoBlockSize)
	b = be.AppendUint32(b, uint32(c.info0.LogicalBlock))
	b = be.AppendUint32(b, preferredBlock)
	if err := c.reply(option, repInfo, be.AppendUint32(b, requestMax)); err != nil {
		return false, err
	}
	for _, item := range items {
		var text string
		switch {
		case item == infoName:
			text = e.Name
		case item == infoDescription && e.Description != "":
			text = e.Description
		default:
			continue
		}
		b := append(be.AppendUint16(nil, item), text...)
		if err := c.reply(option, repInfo, b); err != nil {
			return false, err
		}
	}
	if option == optGo && c.metaName != name {
		c.meta0 = false // contexts were set for another export
	}
	return option == optGo, c.reply(option, repAck, nil)
}

// meta answers both options about contexts. We have one, base:allocation.
func (c *conn) meta(option uint32, data []byte) error {
	if !c.structured && option == optSetMeta {
		return c.reply(option, repErrInvalid, []byte("structured replies come first"))
	}
	name, queries, ok := parseMeta(data)
	if !ok {
		return c.reply(option, repErrInvalid, []byte("malformed"))
	}
	if _, kind, ok := c.server.find(name, c.nc.RemoteAddr()); !ok {
		return c.refuse(option, kind)
	}
	found := option == optListMeta && len(queries) == 0
	for _, q := range queries {
		found = found || q == metaAlloc || q == metaBase && option == optListMeta
	}
	if option == optSetMeta {
		c.meta0, c.metaName = found, name
	}
	if found {
		b := be.AppendUint32(nil, metaID)
		if err := c.reply(option, repMeta, append(b, metaAlloc...)); err != nil {
			return err
		}
	}
	return c.reply(option, repAck, nil)
}

// enter notes what the connection needs of its export.
func (c *conn) enter(e Export) {
	c.disk, c.name, c.info0 = e.Disk, e.Name, e.Disk.Info()
	c.kicker, _ = e.Disk.(kicker)
	c.readOnly = e.ReadOnly || c.info0.ReadOnly
	if c.info0.LogicalBlock <= 0 {
		c.info0.LogicalBlock = 512
	}
}

// flags are the transmission flags of the export.
func (c *conn) flags() uint16 {
	// Several connections see one order of writes: the disk is linearizable.
	f := uint16(txHasFlags | txFlush | txFUA | txMultiConn | txCache)
	if c.structured {
		f |= txDF
	}
	if c.info0.Rotational {
		f |= txRotational
	}
	if c.readOnly {
		return f | txReadOnly
	}
	return f | txTrim | txWriteZeroes | txFastZero
}

// take gives the next n bytes, valid until the next read. n is at most readBuffer.
func (c *conn) take(n int) ([]byte, error) {
	if err := c.fill(n); err != nil {
		return nil, err
	}
	b := c.rd[c.rdAt : c.rdAt+n]
	c.rdAt += n
	return b, nil
}

// skip reads n bytes and drops them.
func (c *conn) skip(n int) error {
	for n > 0 {
		part := min(n, readBuffer)
		if _, err := c.take(part); err != nil {
			return err
		}
		n -= part
	}
	return nil
}

// fill reads until at least n bytes are buffered. Before it waits, the replies are sent (N3).
func (c *conn) fill(n int) error {
	for c.rdEnd-c.rdAt < n {
		if c.rdAt == c.rdEnd {
			c.rdAt, c.rdEnd = 0, 0
		} else if len(c.rd)-c.rdAt < n {
			c.rdEnd = copy(c.rd, c.rd[c.rdAt:c.rdEnd])
			c.rdAt = 0
		}
		k, err := c.read(c.rd[c.rdEnd:], nil)
		c.rdEnd += k
		if errors.Is(err, io.EOF) && c.rdEnd > c.rdAt {
			err = io.ErrUnexpectedEOF
		}
		if err != nil && c.rdEnd-c.rdAt < n {
			return err
		}
	}
	return nil
}

// fillFull reads all of p past the buffer, and into the buffer what follows at once: behind a large
// payload no more than the next request, whose own payload shall go to its place without a copy.
func (c *conn) fillFull(p []byte) error {
	k := copy(p, c.rd[c.rdAt:c.rdEnd])
	c.rdAt += k
	for k < len(p) {
		c.rdAt, c.rdEnd = 0, 0
		ahead := c.rd
		if len(p) >= largeMin {
			ahead = ahead[:requestLen]
		}
		n, err := c.read(p[k:], ahead)
		c.rdEnd = max(0, n-(len(p)-k))
		k += n - c.rdEnd
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil && k < len(p) {
			return err
		}
	}
	return nil
}

// deadline bounds reads and writes; the zero time takes the bound away.
func (c *conn) deadline(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.closing {
		return // shut has set its own
	}
	_ = c.nc.SetDeadline(t) // fails on a closed socket only, as the next read will say
}
