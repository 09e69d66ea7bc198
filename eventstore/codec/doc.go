// Package codec turns domain events into the bytes the log stores, and stored bytes of any age into
// today's events. It is the only room of the log that knows msgpack.
//
// Rules, checked for every type when it is registered:
//
//	C1  every field is exported and tagged `msgpack:"name,omitempty"`; no name occurs twice
//	C2  no map, no interface, no function, no channel, no complex number at any depth: the same event
//	    gives the same bytes on every node
//	C3  a struct that encodes itself holds nothing besides what encodes: an event that embeds an
//	    identifier would else be stored as that identifier alone
//	C4  fields are only added, at the end; everything else is a new schema with an upcaster from each
//	    older one
//	C5  bytes once written decode for ever: testdata holds them, and files there are never edited
//	C6  personal text (domain.Personal) stands in an event itself, is sealed before it is written,
//	    and an event that holds some says of which user; what a command's hash covers of it is a
//	    keyed digest
//
// Times come back in UTC whatever the node's zone. A Registry is filled by one goroutine;
// afterwards it never changes and any number may use it.
package codec
