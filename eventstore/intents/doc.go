// Package intents lets another event log than the embedded one, an EventStoreDB or KurrentDB,
// decide the changes of intent, while the embedded log stays the only total order and the only
// input of views.
//
//	intent streams   command -> append to the other log, which judges the revision
//	                 -> Inward, on the node that leads, copies it into the embedded log -> views
//	all others       command -> embedded log -> Outward, on the same node, copies it out
//
// Which streams are intents is domain.Intent. The same ids, revisions and contents stand in both
// logs; the positions are each log's own, and those of the embedded one are all that anybody sees.
//
// Invariants, cited where the code keeps them and where a test breaks them:
//
//	N1  an intent that was acknowledged stands in both logs: Append answers once the copy is there.
//	    One that is not copied in time has an unknown outcome, and its repeat finds it.
//	N2  the embedded log takes an intent from the other log or by itself, never both (E8). So a node
//	    that has not heard of a change of engine decides nothing, and giving the other log up loses
//	    nothing that was acknowledged, even when it is gone.
//	N3  a copy is made once, in order, and the events of one command at once, whoever copies and
//	    however often it begins again.
//	N4  what the other log holds and is not ours, or does not follow what is here, is never copied:
//	    copying stops in front of it and says where.
//	N5  while the other log is away, nothing but intents waits for it.
//
// Commands fold the embedded log's copies. One that is decided on copies that lag meets a conflict
// in the other log, waits for what it lacks, and is decided again.
//
// A fencing token cannot be judged together with an append to another log. An intent that carries
// one is judged right before, and stands in the logs without it; its fixed id and its expected
// revision guard what is left.
//
// What it never does: it interprets no payload, it reads nothing of the other log into a view, and
// it starts no goroutine.
package intents
