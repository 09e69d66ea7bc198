// Package vault keeps the keys that open what the log holds sealed. Every user has one: what events
// say about the user in words, such as the name, is closed under it before it is stored, and opened
// by whoever shows it. Once the key is destroyed nobody reads those parts any more, in whatever
// copy of the log, while every record and the chain stay as they are.
//
// Keys stand beside the log and never in it: no mirror, archive, backup or copy of the log holds
// one; a bundle, closed under a passphrase, is kept beside a backup by whoever wants names back.
// Each is wrapped under a key that is derived from what only the nodes of the cluster have, so the
// database alone opens nothing.
//
//	box      AES-256-GCM under the user's key: | nonce 12 B, random | cipher text | tag 16 B |, over
//	         the text, with the label of its place (domain.SealLabel) as additional data
//	secret   the same under the wrapping key, over a key of 32 bytes, with its own name as additional
//	         data. Names: user/<user id>, digest. erased/<user id> is a mark without content
//
// Invariants:
//
//	K1  a box opens under the label it was sealed with alone, and unchanged alone
//	K2  a key that was destroyed is never made again under the same user, whoever seals meanwhile
//	K3  the digest of a text is the same on every node and tells nothing to whoever lacks its key
//
// A Vault starts no goroutine and is safe for many.
package vault
