package domain

import "slices"

// Failover tells whether the streams of a category are what the cluster needs to survive and repair
// itself: they are still written when the log's database is nearly full, and stand in the embedded
// log whatever other log holds the intents.
func Failover(category string) bool {
	return slices.Contains([]string{
		"cluster", "membership", "coordination", "node", "device", "domain", "replicaset", "placement",
		"reservation", "plan", "decision", "process", "engine",
	}, category)
}

// Intent tells whether the streams of a category hold wishes, which another log than the embedded
// one may take. What became of them (volume, snapshot) and what was refused (command) is not among
// them: it is written while that other log is away, and under a fencing token that it cannot judge.
func Intent(category string) bool {
	return !Failover(category) &&
		!slices.Contains([]string{"volume", "snapshot", "command"}, category)
}

// Vital tells whether the streams of a category are admitted until the log's database is full: what
// is needed to find out that it is, and to get it smaller.
func Vital(category string) bool {
	return slices.Contains([]string{"cluster", "membership", "node", "placement"}, category)
}
