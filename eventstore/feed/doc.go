// Package feed offers the event log to reactions and to the outside world as a Watermill
// subscriber: one event at a time, in the order of the log, from a durable cursor. Ack saves the
// cursor, Nack brings the same event again. On it stand an outlet to any broker that Watermill
// knows (Outlet) and a mirror into another event log (Mirror), which takes pages of events while
// all goes well.
//
// Delivery is at least once: an event that was handled just before a crash comes again. Whoever
// must not act twice compares the event's id, which is the id of the message.
//
// An event that fails again and again is never passed over in silence. After Config.FailuresMax
// failures the hook Poisoned gets consumer, event and error, and must accept it; only then the
// consumer stops or skips, as its policy says. The count of failures is durable too, so that a
// process that dies of an event does not forget it.
//
// What is published is never read back as truth. The core views do not use this room: they need an
// atomic cursor and more speed.
package feed
