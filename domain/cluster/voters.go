package cluster

import (
	"slices"
	"time"

	"weft/domain"
)

// VotersMax is the most nodes that vote: more make every append slower and lose no less.
const VotersMax = 5

// Candidate is a node as the choice of voters sees it.
type Candidate struct {
	Node    domain.NodeID
	URL     string
	Down    bool
	DownFor time.Duration // since when nothing was heard of it, while Down
	Leaving bool          // drained or removed
	Place   Location      // the failure domains it stands in
	Damaged uint64        // the member whose database the node found damaged; 0: none
}

// Seat is a member of the consensus.
type Seat struct {
	Member   uint64
	Node     domain.NodeID // whose it is, as it said itself; zero until it has started
	URL      string
	Learner  bool
	CaughtUp bool          // a learner that may vote now
	Waiting  time.Duration // how long a learner has been one
}

// Change is the one next step towards the wanted voters. At most one of its fields is set; none
// means that all is as it should be, or that the next step has to wait.
type Change struct {
	Add     []Candidate // as learners, both at once
	Promote []Seat      // back to back
	Remove  *Seat
	Why     string
}

// WhyDamaged is why a member is replaced whose node found its database damaged.
const WhyDamaged = "its database is damaged"

// LearnerWait is how long a learner may take until another node is tried.
const LearnerWait = 10 * time.Minute

// fewDomains is the least number of failure domains over which more voters than that pay.
const fewDomains = 3

// VoterCount is how many of n nodes vote: an odd number, one of fewer than three, because with two
// voters the loss of either would stop the log.
func VoterCount(n int) int {
	switch {
	case n < 3:
		return 1
	case n < VotersMax:
		return 3
	}
	return VotersMax
}

// PlanVoters gives the next change of the voters. It is pure: the same input, the same change.
// leader is the URL of the member that leads, which is removed last. grace is how long a voter may
// be silent before another takes its seat. Voters stand as far apart as the nodes' failure domains
// allow; one that stands worse than another node would gives its seat to it.
func PlanVoters(nodes []Candidate, seats []Seat, leader string, grace time.Duration) Change {
	p := voterPlan{nodes: nodes, seats: seats, leader: leader, grace: grace}
	for _, s := range seats {
		if s.Learner {
			p.learners = append(p.learners, s)
		} else {
			p.voters = append(p.voters, s)
		}
	}
	var stay []Location
	for _, n := range nodes {
		if !n.Leaving && !p.dead(n) {
			stay = append(stay, n.Place)
		}
	}
	p.target = VoterCount(len(stay))
	if domainsOf(stay) < fewDomains {
		p.target = min(p.target, fewDomains) // the loss of one of two takes as much with it as of three
	}
	for _, next := range []func() (Change, bool){
		p.dismiss, p.promote, p.replace, p.grow, p.shrink, p.swap,
	} {
		if c, ok := next(); ok {
			return c
		}
	}
	return Change{}
}

type voterPlan struct {
	nodes            []Candidate
	seats            []Seat
	voters, learners []Seat
	leader           string
	grace            time.Duration
	target           int
}

func (p *voterPlan) dead(n Candidate) bool { return n.Down && n.DownFor >= p.grace }

// node gives the node of a seat. Its address alone does not tell: a node that lost its files comes
// again as another one where the first was, and that one is still in the list. A seat that has not
// said whose it is belongs to the one of them that is up.
func (p *voterPlan) node(s Seat) (Candidate, bool) {
	found := Candidate{Leaving: true}
	known := false
	for _, n := range p.nodes {
		if n.URL != s.URL || !s.Node.IsZero() && n.Node != s.Node {
			continue
		}
		if !known || (found.Down || found.Leaving) && !n.Down && !n.Leaving {
			found, known = n, true
		}
	}
	return found, known
}

// dismiss takes out learners that cannot become voters, or that nobody needs any more.
func (p *voterPlan) dismiss() (Change, bool) {
	for i := range p.learners {
		s := &p.learners[i]
		n, known := p.node(*s)
		switch {
		case !known || n.Leaving:
			return Change{Remove: s, Why: "its node leaves"}, true
		case p.dead(n):
			return Change{Remove: s, Why: "its node is down"}, true
		case !s.CaughtUp && s.Waiting >= LearnerWait:
			return Change{Remove: s, Why: "it does not catch up"}, true
		case len(p.sound()) >= p.target && !p.spreads(n):
			return Change{Remove: s, Why: "there are enough voters"}, true
		}
	}
	return Change{}, false
}

// sound lists the voters that shall go on voting.
func (p *voterPlan) sound() []Seat {
	var list []Seat
	for _, s := range p.voters {
		if n, _ := p.node(s); !n.Leaving && !p.dead(n) {
			list = append(list, s)
		}
	}
	return list
}

// promote gives as many learners the vote as make the number of sound voters odd, all at once.
func (p *voterPlan) promote() (Change, bool) {
	var ready []Seat
	for _, s := range p.learners {
		if n, _ := p.node(s); s.CaughtUp && !n.Down {
			ready = append(ready, s)
		}
	}
	sound := len(p.sound())
	need := 1 + sound%2                      // to the next odd number
	if sound == p.target && len(ready) > 0 { // dismiss has left those that stand better
		return Change{Promote: ready[:1], Why: "it stands in another failure domain"}, true
	}
	if sound >= p.target || len(ready) < need {
		return Change{}, false
	}
	return Change{Promote: ready[:need], Why: "they have caught up"}, true
}

// safe tells whether most of the voters are up once a seat is empty.
func (p *voterPlan) safe(gone Seat) bool {
	up, all := 0, 0
	for _, s := range p.voters {
		if s.Member == gone.Member {
			continue
		}
		all++
		if n, _ := p.node(s); !n.Down && n.Damaged != s.Member {
			up++
		}
	}
	return up > all/2
}

// ill tells whether a voter is to be replaced because its database is damaged: one at a time, while
// there are as many voters as there shall be, and nobody learns to vote.
func (p *voterPlan) ill(n Candidate, s Seat) bool {
	return n.Damaged == s.Member && len(p.voters) >= p.target && len(p.learners) == 0 &&
		s.URL != p.leader
}

// replace removes voters whose nodes are dead or leave, or whose databases are damaged. A live one
// that leaves goes only once others make up the wanted number, the leader last; a dead or damaged
// one goes at once, because etcd adds nobody while it counts.
func (p *voterPlan) replace() (Change, bool) {
	enough := len(p.sound()) >= p.target
	var leading *Seat
	for i := range p.voters {
		s := &p.voters[i]
		n, _ := p.node(*s)
		switch {
		case !p.safe(*s):
		case p.dead(n):
			return Change{Remove: s, Why: "its node is down"}, true
		case n.Leaving && n.Down:
			return Change{Remove: s, Why: "its node leaves and is down"}, true
		case p.ill(n, *s):
			return Change{Remove: s, Why: WhyDamaged}, true
		case n.Leaving && enough && s.URL != p.leader:
			return Change{Remove: s, Why: "its node leaves"}, true
		case n.Leaving && enough:
			leading = s
		}
	}
	if leading != nil {
		return Change{Remove: leading, Why: "its node leaves"}, true
	}
	return Change{}, false
}

// grow adds learners: as many as the next odd number of voters needs.
func (p *voterPlan) grow() (Change, bool) {
	sound := len(p.sound())
	need := 1 + sound%2 - len(p.learners)
	if sound >= p.target || need <= 0 {
		return Change{}, false
	}
	places := append(p.places(p.sound()), p.places(p.learners)...)
	free := p.free()
	var add []Candidate
	for len(add) < need {
		if len(free) == 0 {
			return Change{}, false
		}
		best := 0
		for i := range free {
			if with(places, free[i]).less(with(places, free[best])) {
				best = i
			}
		}
		add, places = append(add, free[best]), append(places, free[best].Place)
		free = slices.Delete(free, best, best+1)
	}
	return Change{Add: add, Why: "more nodes make the log safer"}, true
}

// shrink takes votes away where fewer nodes are left.
func (p *voterPlan) shrink() (Change, bool) {
	if len(p.voters) <= p.target {
		return Change{}, false
	}
	gone := -1
	var best spread
	for i := len(p.voters) - 1; i >= 0; i-- {
		s := p.voters[i]
		if n, _ := p.node(s); s.URL == p.leader || n.Down || !p.safe(s) {
			continue
		}
		if left := spreadOf(p.places(p.without(i))); gone < 0 || left.less(best) {
			gone, best = i, left
		}
	}
	if gone < 0 {
		return Change{}, false
	}
	return Change{Remove: &p.voters[gone], Why: "there are more voters than wanted"}, true
}

// swap begins to give the seat of a voter to a node that stands better: as a learner, which is
// promoted when it has caught up; then there is one voter too many, and the worst placed goes.
func (p *voterPlan) swap() (Change, bool) {
	if len(p.learners) > 0 {
		return Change{}, false
	}
	best, at := spreadOf(p.places(p.voters)), -1
	free := p.free()
	for i, n := range free {
		if s, ok := p.exchange(n); ok && s.less(best) {
			best, at = s, i
		}
	}
	if at < 0 {
		return Change{}, false
	}
	return Change{Add: free[at : at+1], Why: "it stands in another failure domain"}, true
}

// spreads tells whether a node stands better than some voter that could go for it.
func (p *voterPlan) spreads(n Candidate) bool {
	s, ok := p.exchange(n)
	return ok && s.less(spreadOf(p.places(p.voters)))
}

// exchange gives the best spread of the voters with n in place of one of them. It is done at rest
// only: all voters are up and stay, and there are as many as wanted.
func (p *voterPlan) exchange(n Candidate) (best spread, ok bool) {
	if len(p.voters) != p.target || p.target < 3 {
		return best, false
	}
	for _, v := range p.voters {
		if c, _ := p.node(v); c.Down || c.Leaving {
			return best, false
		}
	}
	for i, v := range p.voters {
		if v.URL == p.leader {
			continue
		}
		if s := with(p.places(p.without(i)), n); !ok || s.less(best) {
			best, ok = s, true
		}
	}
	return best, ok
}

// free lists the nodes that may become voters.
func (p *voterPlan) free() []Candidate {
	var list []Candidate
	for _, n := range p.nodes {
		seated := slices.ContainsFunc(p.seats, func(s Seat) bool { return s.URL == n.URL })
		if !seated && !n.Down && !n.Leaving && n.URL != "" {
			list = append(list, n)
		}
	}
	return list
}

func (p *voterPlan) without(i int) []Seat { return slices.Delete(slices.Clone(p.voters), i, i+1) }

func with(places []Location, n Candidate) spread {
	return spreadOf(append(slices.Clip(places), n.Place))
}

func (p *voterPlan) places(seats []Seat) []Location {
	list := make([]Location, 0, len(seats)+1)
	for _, s := range seats {
		n, _ := p.node(s)
		list = append(list, n.Place)
	}
	return list
}
