package peer

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"

	"weft/domain"
)

// tokenPrefix makes a join token known for what it is.
const tokenPrefix = "weft-join-"

// Token is what a machine needs to join: where, whom to trust, and a secret. Whoever has it can
// join until it has expired or is used up.
type Token struct {
	Cluster   domain.ClusterID `json:"c"`
	Endpoints []string         `json:"e"` // URLs of nodes
	Pin       []byte           `json:"p"` // SHA-256 of the authority's certificate
	ID        domain.UUID      `json:"i"`
	Secret    []byte           `json:"s"`
}

// NewToken makes a token. Its Hash is what the log keeps.
func NewToken(cluster domain.ClusterID, endpoints []string, pin [32]byte) Token {
	t := Token{Cluster: cluster, Endpoints: endpoints, Pin: pin[:], Secret: make([]byte, 24)}
	_, _ = rand.Read(t.Secret)
	t.ID = domain.DeriveUUID(cluster.UUID, "join token", string(t.Secret))
	return t
}

// Hash is SHA-256 of the secret.
func (t Token) Hash() []byte {
	h := sha256.Sum256(t.Secret)
	return h[:]
}

// String is the token as a person copies it.
func (t Token) String() string {
	b, _ := json.Marshal(t) // a struct of bytes, texts and UUIDs always encodes
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// ParseToken reads a token. The error is Invalid and repeats nothing of it.
func ParseToken(s string) (Token, error) {
	var t Token
	text, ok := strings.CutPrefix(strings.TrimSpace(s), tokenPrefix)
	b, err := base64.RawURLEncoding.DecodeString(text)
	if ok && err == nil {
		err = json.Unmarshal(b, &t)
	}
	if !ok || err != nil || t.Cluster.IsZero() || len(t.Pin) != sha256.Size || len(t.Secret) < 16 ||
		len(t.Endpoints) == 0 {
		return Token{}, &domain.Error{
			Op: "join", Kind: domain.Invalid, Msg: "this is no whole join token",
			Remedy: "copy all of what weft node token printed; it begins with " + tokenPrefix,
		}
	}
	return t, nil
}
