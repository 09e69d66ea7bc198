package domain

// Personal is text about a person, such as a name. It reaches the log sealed under a key of that
// person's, which can be destroyed: then nobody reads it any more, and the log stays as it is. Text
// holds it in clear, on its way to the log and in events from before there were keys; Box holds it
// as the log does. The zero value is no text.
type Personal struct {
	Text string `msgpack:"text,omitempty"`
	Box  []byte `msgpack:"box,omitempty"`
}

// AboutUser is an event with personal fields. All of them are about one user, whose key seals them.
type AboutUser interface {
	Event
	AboutUser() UserID
}

// SealLabel says where a personal field stands: the stream and the type of its event as stored, and
// its name in the log. What is sealed for one place opens in no other.
func SealLabel(s StreamID, typ, field string) string {
	return string(s) + "\x00" + typ + "\x00" + field
}
