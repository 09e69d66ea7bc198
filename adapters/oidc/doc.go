// Package oidc proves who somebody is by the word of a provider of OpenID Connect: it verifies ID
// tokens on the node's side, and on the user's side signs in with the device grant, which needs no
// browser on the machine.
//
// Sources: OpenID Connect Core 1.0 and Discovery 1.0, RFC 7517 to 7519 (keys and tokens), RFC 8628
// (device grant). Discovery, claims and signatures are go-oidc's and go-jose's; the keys are kept
// here, because everybody who can reach the API can send a token with a key nobody knows, and must
// not make the node ask the provider each time.
//
//	O1  A token counts only if its signature verifies under a key of its issuer, by an asymmetric
//	    algorithm, and issuer, audience and times are right.
//	O2  The provider is asked for keys at most once in refreshMin, however many tokens come.
//	O3  Known keys count no longer than keysMax after the provider was last reached.
//	O4  A name counts only if it is a text; an address of mail only if the provider has verified it.
package oidc
