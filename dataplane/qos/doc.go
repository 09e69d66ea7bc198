// Package qos decides which request of a host may run now: by what its volume may have at most,
// and, while a device is short, by what each volume on it is owed.
//
//	Disk.Submit -> Gate (a volume's maxima) -> Flow of the device's Scheduler -> engine
//	                                             destage, clean, scrub -> Begin ... End
//
// A Gate holds one volume back to its limits. Each limit is a virtual clock (the generic cell rate
// algorithm, ITU-T I.371): it says when the next request is due if all came at exactly the limit.
// A request is admitted while that clock is at most a burst ahead of the true one, and puts it on
// by the time that the request is worth. So a volume that was idle may run a burst's worth at full
// speed, one request that is larger than a burst is late but never stuck, and nothing counts down
// in the background. Gates share nothing: a volume that waits costs its neighbours nothing.
//
// A Scheduler shares one device. While few enough requests are under way all pass, by two atomic
// operations each. Beyond that the requests of volumes that share the device wait, and go in this
// order (rules Q2 to Q7):
//
//	Q2  first who is below its reserved rate, the longest overdue before the others
//	Q3  then by deficit round robin (Shreedhar and Varghese 1995), each volume in proportion to its
//	    weight; a request costs its bytes and a fixed part
//	Q4  of eight parts that are served seven at most go by reservation while others wait, so nobody
//	    starves
//	Q5  whenever the device has room the next one that waits goes: it is never idle meanwhile
//	Q6  time without requests earns a reserved rate no more than creditMax of time, a share nothing
//	Q7  the device's own work, destaging before cleaning before scrubbing, goes while hosts leave
//	    room, else after a rest in proportion to how long its last turn took
//
// How much is enough is a window of requests that follows the time they take: while that is above
// what the medium should take, and above twice what it takes with few under way, it shrinks, else
// it grows as long as somebody waits. A window by throughput or by the shortest time seen cannot
// tell a group commit, which gets better with depth, from a queue, which does not. A volume that
// has its device for itself is not held back: there is nobody to share with, and every hop costs.
//
// What waits holds no goroutine: one goroutine of a timer runs it, since the goroutine on which a
// request completes may be one that others' I/O waits for.
package qos
