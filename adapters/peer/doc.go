// Package peer is how nodes of one cluster reach each other: one listener with mutual TLS 1.3 that
// carries orders to agents, the log's own traffic, and the one call of a machine that wants to
// join.
//
// Every node holds a certificate of the cluster's own authority, for a day, renewed after eight
// hours without a restart. It bears the name <cluster>.weft, which every node proves to every
// other, and the URI weft://<cluster>/node/<node>, which says which one it is.
//
//	T1 Nobody without a certificate of this cluster's authority reaches anything but Join; an expired
//	   or foreign certificate ends the handshake.
//	T2 A node that the cluster has removed is refused although its certificate is still good.
//	T3 A machine that joins trusts exactly the authority whose fingerprint its token holds.
//	T4 An order goes to the node it is for: the caller checks the name the other side proves.
package peer
