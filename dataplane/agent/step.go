package agent

import (
	"weft/domain"
	"weft/domain/command"
)

// memoryMax is how many obeyed orders are remembered.
const memoryMax = 4096

// State is what the agent knows of orders. Token is durable; Obeyed is not: orders are idempotent
// by what they ask for as well.
type State struct {
	Token  uint64
	Obeyed []domain.CommandID // oldest first
}

// Verdict is what to do with an order.
type Verdict uint8

// The verdicts.
const (
	Obey   Verdict = iota + 1
	Repeat         // obeyed before: answer success
	Refuse
)

// Judge tells what to do with an order. raised says that the token must be made durable first.
func (s State) Judge(o command.Order) (v Verdict, raised bool, err error) {
	if o.Token < s.Token {
		return Refuse, false, domain.Errorf(domain.Stale,
			"order %s carries token %d: token %d was obeyed", o.ID, o.Token, s.Token)
	}
	for _, id := range s.Obeyed {
		if id == o.ID {
			return Repeat, false, nil
		}
	}
	return Obey, o.Token > s.Token, nil
}

// After gives the state once an order was obeyed.
func (s State) After(o command.Order) State {
	s.Token = max(s.Token, o.Token)
	list := append(s.Obeyed[:len(s.Obeyed):len(s.Obeyed)], o.ID)
	if len(list) > memoryMax {
		list = list[len(list)-memoryMax:]
	}
	s.Obeyed = list
	return s
}
