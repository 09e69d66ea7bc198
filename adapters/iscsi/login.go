package iscsi

import (
	"encoding/binary"
	"io"
	"strconv"
	"strings"
	"time"

	"weft/domain"
)

// The stages of a login.
const (
	stageSecurity    = 0
	stageOperational = 1
	stageFull        = 3
)

// Login status, class in the high byte.
const (
	loginOK          = 0x0000
	loginMoved       = 0x0101
	loginInitiator   = 0x0200
	loginAuth        = 0x0201
	loginForbidden   = 0x0202
	loginNoTarget    = 0x0203
	loginVersion     = 0x0205
	loginConnections = 0x0206
	loginMissing     = 0x0207
	loginNoSession   = 0x020a
	loginState       = 0x020b
	loginResources   = 0x0302
)

// login negotiates a session. Its state belongs to the reader goroutine; nothing waits for data
// here but for the end of a predecessor.
type login struct {
	c         *session
	target    *Target
	stage     byte
	first     bool // no request was complete yet
	exchanges int
	text      []byte
	chap      chap
	method    string // AuthMethod agreed on
	security  bool   // authenticated, or none needed
	declared  bool   // our MaxRecvDataSegmentLength was sent
	seen      map[string]bool
	statSN    uint32
}

// failure is a login that ends with a status.
type failure struct {
	status int
	err    error
}

func fail(status int, format string, args ...any) *failure {
	return &failure{status, domain.Errorf(domain.Denied, format, args...)}
}

// login runs the login phase and answers its last request. Afterwards the session may be served.
func (c *session) login() error {
	l := &login{c: c, first: true, seen: map[string]bool{}}
	begun := time.Now()
	limit := begun.Add(min(firstTime, c.server.config.LoginTime))
	_ = c.conn.SetReadDeadline(limit)
	_ = c.conn.SetWriteDeadline(begun.Add(c.server.config.LoginTime))
	for {
		complete, err := l.read()
		if err != nil {
			return err
		}
		_ = c.conn.SetReadDeadline(begun.Add(c.server.config.LoginTime))
		if !complete {
			if err := l.reply(nil, l.stage, false, loginOK); err != nil {
				return err
			}
			continue
		}
		done, err := l.exchange()
		if err != nil || done {
			_ = c.conn.SetDeadline(time.Time{})
			return err
		}
	}
}

// read takes one login request and gathers its text. complete is false when more of it follows.
func (l *login) read() (complete bool, err error) {
	c := l.c
	if _, err := io.ReadFull(c.in, c.header[:]); err != nil {
		return false, err
	}
	h := &c.header
	n := h.dataLen()
	if h.opcode() != opLogin || h.extra() != 0 || n > segmentMax || len(l.text)+n > textMax {
		_ = l.reply(nil, 0, false, loginInitiator)
		return false, domain.Errorf(domain.Invalid, "malformed login")
	}
	if l.exchanges++; l.exchanges > exchangesMax {
		_ = l.reply(nil, 0, false, loginInitiator)
		return false, domain.Errorf(domain.TooLarge, "more than %d login requests", exchangesMax)
	}
	body := make([]byte, n+padding(n))
	if _, err := io.ReadFull(c.in, body); err != nil {
		return false, err
	}
	if l.first {
		l.statSN = h.get(28)
		copy(c.key.isid[:], h[8:14])
		l.stage = h[1] >> 2 & 3
	}
	l.text = append(l.text, body[:n]...)
	return h[1]&flagContinue == 0, nil
}

// exchange handles one complete request. done tells that the session is in the full feature phase.
func (l *login) exchange() (done bool, err error) {
	answers, next, f := l.step()
	if f != nil {
		var extra []pair
		if f.status == loginMoved {
			extra = answers
		}
		if err := l.reply(extra, l.stage, false, f.status); err != nil {
			return false, err
		}
		return false, f.err
	}
	moving := next != l.stage
	if moving && next == stageFull {
		if f := l.finish(); f != nil {
			_ = l.reply(nil, l.stage, false, f.status)
			return false, f.err
		}
	}
	if err := l.reply(answers, next, moving, loginOK); err != nil {
		return false, err
	}
	if next == stageFull {
		l.begin()
	}
	l.stage = next
	return next == stageFull, nil
}

// step answers the gathered keys and chooses the next stage.
func (l *login) step() (answers []pair, next byte, f *failure) {
	h := &l.c.header
	stage, wanted := h[1]>>2&3, h[1]&3
	transit := h[1]&flagFinal != 0
	if h[3] != 0 {
		return nil, 0, fail(loginVersion, "no version in common")
	}
	if stage != l.stage || stage > stageOperational || transit && (wanted <= stage || wanted == 2) {
		return nil, 0, fail(loginState, "login stage %d out of turn", stage)
	}
	keys, err := parseText(l.text)
	l.text = l.text[:0]
	if err != nil {
		return nil, 0, &failure{loginInitiator, err}
	}
	var opening []pair
	if l.first {
		l.first = false
		if opening, f = l.identify(keys); f != nil {
			return opening, 0, f
		}
	}
	if stage == stageSecurity {
		answers, f = l.authenticate(keys)
	} else if !l.security {
		f = fail(loginAuth, "authentication was skipped")
	} else {
		answers, f = l.operational(keys)
	}
	if f != nil {
		return nil, 0, f
	}
	next = stage
	if transit && (stage == stageOperational || l.security) {
		next = wanted
	}
	return append(opening, answers...), next, nil
}

// identify takes who logs in where from the first request.
func (l *login) identify(keys []pair) ([]pair, *failure) {
	c := l.c
	values := map[string]string{}
	for _, k := range keys {
		values[k.key] = k.value
	}
	c.key.initiator = strings.ToLower(values["InitiatorName"])
	if c.key.initiator == "" || len(c.key.initiator) > nameMax {
		return nil, fail(loginMissing, "no initiator name")
	}
	switch values["SessionType"] {
	case "", "Normal":
	case "Discovery":
		c.discovery = true
		l.chap.accepted = c.server.config.Discovery
		l.security = len(l.chap.accepted) == 0
		return nil, nil
	default:
		return nil, fail(loginInitiator, "unknown session type")
	}
	name := strings.ToLower(values["TargetName"])
	if name == "" {
		return nil, fail(loginMissing, "no target name")
	}
	c.target, c.key.target = name, name
	l.target = c.server.target(name)
	switch {
	case l.target == nil:
		return nil, fail(loginNoTarget, "no such target")
	case !l.target.admits(c.key.initiator):
		return nil, fail(loginForbidden, "initiator is not on the list")
	case l.target.Redirect != "":
		to := []pair{{"TargetAddress", l.target.Redirect}}
		return to, fail(loginMoved, "redirected to %s", l.target.Redirect)
	case binary.BigEndian.Uint16(c.header[14:]) != 0:
		// One connection per session: there is none that this one could join.
		return nil, fail(loginNoSession, "the session has its connection")
	}
	l.chap.accepted, l.chap.own = l.target.CHAP, l.target.Own
	l.security = len(l.chap.accepted) == 0
	opening := []pair{{"TargetPortalGroupTag", strconv.Itoa(int(c.server.config.Group))}}
	if c.server.config.Alias != "" {
		opening = append(opening, pair{"TargetAlias", c.server.config.Alias})
	}
	return opening, nil
}

// authenticate answers the keys of the security stage.
func (l *login) authenticate(keys []pair) ([]pair, *failure) {
	var answers []pair
	chapKeys := map[string]string{}
	for _, k := range keys {
		switch {
		case k.key == "AuthMethod":
			a, f := l.agree(k.value)
			if f != nil {
				return nil, f
			}
			answers = append(answers, pair{k.key, a})
		case strings.HasPrefix(k.key, "CHAP_"):
			chapKeys[k.key] = k.value
		default:
			more, f := l.operational([]pair{k})
			if f != nil {
				return nil, f
			}
			answers = append(answers, more...)
		}
	}
	if len(chapKeys) == 0 {
		return answers, nil
	}
	if l.method != "CHAP" {
		return nil, fail(loginAuth, "CHAP was not agreed on")
	}
	var proof []pair
	var err error
	if a, ok := chapKeys["CHAP_A"]; ok {
		proof, err = l.chap.begin(a)
	} else {
		proof, err = l.chap.verify(chapKeys)
		l.security = err == nil
	}
	if err != nil {
		return nil, &failure{loginAuth, err}
	}
	return append(answers, proof...), nil
}

// agree chooses the authentication method.
func (l *login) agree(offered string) (string, *failure) {
	ours := "None"
	if len(l.chap.accepted) > 0 {
		ours = "CHAP"
	}
	v, ok := choose([]string{ours}, offered)
	if !ok {
		return "", fail(loginAuth, "initiator does not offer %s", ours)
	}
	l.method = v
	return v, nil
}

// operational answers the keys of the operational stage.
func (l *login) operational(keys []pair) ([]pair, *failure) {
	var answers []pair
	for _, k := range keys {
		switch k.key {
		case "InitiatorName", "InitiatorAlias", "TargetName", "SessionType":
			continue
		}
		if l.seen[k.key] {
			return nil, fail(loginInitiator, "%s was negotiated twice", k.key)
		}
		l.seen[k.key] = true
		v, ok := l.c.params.negotiate(k, l.c.server.config.Digests, l.c.discovery)
		if !ok {
			return nil, fail(loginInitiator, "bad value of %s", k.key)
		}
		if v != "" {
			answers = append(answers, pair{k.key, v})
		}
	}
	if !l.declared && l.stage == stageOperational {
		l.declared = true
		mine := pair{"MaxRecvDataSegmentLength", strconv.Itoa(segmentMax)}
		answers = append(answers, mine)
	}
	return answers, nil
}

// finish makes the session the one of its initiator port: its predecessor is cut and has ended
// before the login is answered (T1).
func (l *login) finish() *failure {
	c := l.c
	s := c.server
	c.params.settle()
	if c.discovery {
		return nil
	}
	if t := s.target(c.target); t == nil || !t.admits(c.key.initiator) {
		return fail(loginNoTarget, "the target went away")
	}
	old, ok := s.enrol(c)
	if !ok {
		return fail(loginResources, "too many sessions")
	}
	if old != nil {
		s.count.reinstatements.Add(1)
		c.old = old
		old.kill()
		limit := time.NewTimer(s.config.LoginTime)
		defer limit.Stop()
		select {
		case <-old.done:
			c.old = nil
		case <-s.ended:
			return fail(loginResources, "closing")
		case <-limit.C:
			return fail(loginResources, "commands of the old session do not end")
		}
	}
	return nil
}

// begin enters the full feature phase.
func (l *login) begin() {
	c := l.c
	c.mu.Lock()
	c.out.statSN = l.statSN
	c.mu.expCmdSN = c.header.cmdSN()
	c.mu.maxCmdSN = c.mu.expCmdSN + uint32(c.server.config.Depth) - 1
	c.mu.Unlock()
	if c.discovery {
		return
	}
	c.retargeting.Lock()
	c.offered = map[uint16]LUN{}
	c.retargeting.Unlock()
	c.retarget()
}

// reply sends a login response.
func (l *login) reply(keys []pair, next byte, moving bool, status int) error {
	c := l.c
	var h header
	h[0] = opLoginReply
	h[1] = l.stage << 2
	if moving {
		h[1] |= flagFinal | next
	}
	copy(h[8:14], c.key.isid[:])
	if moving && next == stageFull {
		c.mu.Lock()
		c.tsih = c.server.nextTSIH()
		c.mu.Unlock()
		binary.BigEndian.PutUint16(h[14:], c.tsih)
	}
	copy(h[16:20], c.header[16:20])
	h.put(24, l.statSN)
	l.statSN++
	h.put(28, c.header.cmdSN())
	h.put(32, c.header.cmdSN()+uint32(c.server.config.Depth)-1)
	h[36], h[37] = byte(status>>8), byte(status)
	text := formatText(keys)
	h.setDataLen(len(text))
	text = append(text, "\x00\x00\x00"[:padding(len(text))]...)
	_, err := c.conn.Write(append(h[:], text...))
	return err
}

// nextTSIH gives a session handle other than 0.
func (s *Server) nextTSIH() uint16 {
	for {
		if n := uint16(s.tsih.Add(1)); n != 0 {
			return n
		}
	}
}
