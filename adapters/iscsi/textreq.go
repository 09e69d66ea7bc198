package iscsi

import (
	"fmt"
	"strings"
)

// textRequest serves a Text Request: SendTargets, and operational keys that may be renegotiated.
// Requests and responses may each take several PDUs.
func (c *session) textRequest() error {
	h := c.header
	n := h.dataLen()
	if c.texts++; len(c.text)+n > textMax || c.texts > exchangesMax && len(c.text) > 0 {
		c.text = nil
		return c.refuse(rejectProtocol)
	}
	from := len(c.text)
	c.text = append(c.text, make([]byte, n)...)
	intact, err := c.readData(c.text[from:])
	if err != nil {
		return err
	}
	if !intact {
		c.text = nil
		c.reject(rejectDigest, &h)
		return nil
	}
	if h[1]&flagContinue != 0 {
		c.answerText(&h, nil, true)
		return nil
	}
	if h.get(20) != noTag && len(c.targets) > 0 { // the initiator fetches the rest
		c.text = c.text[:0]
		c.answerText(&h, c.targets, false)
		return nil
	}
	keys, err := parseText(c.text)
	c.text, c.texts = c.text[:0], 0
	if err != nil {
		c.reject(rejectProtocol, &h)
		return nil
	}
	var answers []pair
	for _, k := range keys {
		if k.key == "SendTargets" {
			answers = append(answers, c.sendTargets(k.value)...)
			continue
		}
		answers = append(answers, pair{k.key, notUnderstood})
	}
	c.answerText(&h, formatText(answers), false)
	return nil
}

// answerText sends as much of a text as one PDU holds and keeps the rest.
func (c *session) answerText(h *header, text []byte, more bool) {
	n := min(len(text), c.params.segment)
	p := &packet{status: true, data: text[:n]}
	c.targets = text[n:]
	p.header[0] = opTextReply
	copy(p.header[8:16], h.lun())
	p.header.put(16, h.tag())
	switch {
	case more:
		p.header.put(20, 1)
	case len(c.targets) > 0:
		p.header[1] = flagContinue
		p.header.put(20, 1)
	default:
		p.header[1] = flagFinal
		p.header.put(20, noTag)
	}
	c.send(p)
}

// sendTargets answers SendTargets: all that the initiator may see, one by name, or this session's.
func (c *session) sendTargets(which string) []pair {
	names := c.server.visible(c.key.initiator)
	switch {
	case which == "All" && c.discovery:
	case which == "" && !c.discovery, which == "All":
		names = only(names, c.target)
	default:
		names = only(names, strings.ToLower(which))
	}
	var answers []pair
	for _, n := range names {
		answers = append(answers, pair{"TargetName", n})
		for _, a := range c.portals() {
			answers = append(answers,
				pair{"TargetAddress", fmt.Sprintf("%s,%d", a, c.server.config.Group)})
		}
	}
	return answers
}

func only(names []string, wanted string) []string {
	for _, n := range names {
		if n == wanted {
			return []string{n}
		}
	}
	return nil
}

// portals lists the addresses that initiators can reach this node by.
func (c *session) portals() []string {
	if a := c.server.config.Advertise; len(a) > 0 {
		return a
	}
	return []string{c.conn.LocalAddr().String()}
}
