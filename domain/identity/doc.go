// Package identity holds who may do what: users, the closed list of roles, and the tokens by which
// users sign in.
//
// A role is a fixed set of verbs. A user holds roles by grants, each for the whole cluster or for
// one tenant; a grant for a tenant holds in the tenants below it. A token never adds anything: what
// its bearer may do is what its owner may do at that moment, within the token's scope. So taking a
// grant away, disabling the owner or revoking the token is felt at once, whatever was issued
// before.
//
// Invariants:
//
//	U1  Nobody may do what no grant of theirs allows: the zero Rights allow nothing.
//	U2  A scope only narrows: for every scope, verb and place, scoped rights imply the rights.
//	U3  No secret stands in an event. Of a token there is the SHA-256 of 32 random bytes, which
//	    cannot be guessed back.
//	U4  A disabled or deleted user has no rights, and a token none once revoked or expired; whether
//	    it has expired is judged by the clock at use, not by an event.
//	U8  An identity provider vouches for those users alone that are linked to it, and one user is
//	    linked to one provider at most.
//	U8b A provider's group gives what a grant of the cluster says, to linked users alone, for as long
//	    as the provider's word or the sign-in on it lasts. A group that no grant names gives nothing.
//	U5  A user's id is never used again, its name may be.
//	U13 What the log holds of a person in words, that is the name, the subject at a provider and the
//	    notes on tokens, is sealed under the user's key; actors are named by id. Equal names are
//	    found by a keyed digest.
//	U14 An erased user has no rights and no name, and does not come back; the name may be another's.
//
// The package reads no clock and draws no chance: both come in through commands and arguments.
package identity
