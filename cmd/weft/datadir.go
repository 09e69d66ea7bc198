package main

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"weft/adapters/client"
	"weft/adapters/iscsi"
	"weft/domain"
)

// dataDir is a node's folder. It holds
//
//	LOCK          locked by the process that uses the folder
//	node.json     who this node is, and how often it was started
//	joining.json  who this node will be, while it joins
//	tls/          the node's certificate and the cluster's authority
//	log/          the event log, where this node has a vote
//	devices/      devices made as files
//	admin.token   SHA-256 of the administrator's token
//	client.json   that token and the API's address, for clients of the same user, mode 0600
//	agent.token   the highest fencing token obeyed
//	secrets/      CHAP secrets by name, mode 0600
//	audit/        attempts that the API refused, a JSON object a line, in files that rotate
//	reservations/ persistent reservations, a file a volume
type dataDir struct {
	path string
	lock *os.File
	id   nodeIdentity
	// fresh is the administrator's token when this start made it.
	fresh string
}

// nodeIdentity is node.json.
type nodeIdentity struct {
	Cluster     domain.ClusterID `json:"cluster"`
	Node        domain.NodeID    `json:"node"`
	Name        string           `json:"name"`
	Incarnation uint64           `json:"incarnation"`
	// Number is the node's short number, 1 for the node that made the cluster; 0 in old folders.
	Number domain.NodeNumber `json:"number,omitempty"`
	// Members are the URLs of other nodes as this one last heard.
	Members []string `json:"members,omitempty"`
	// Alone says that the log was restored here: the voters it tells of are of another history.
	Alone bool `json:"alone,omitempty"`
	// Listen are the addresses this node listens on where nobody says otherwise.
	Listen addresses `json:"listen"`
}

// addresses are what a node listens on.
type addresses struct {
	API   string `json:"api,omitempty"`
	NBD   string `json:"nbd,omitempty"`
	ISCSI string `json:"iscsi,omitempty"`
	Peer  string `json:"peer,omitempty"`
	// Events is that of the log for clients of EventStoreDB.
	Events string `json:"events,omitempty"`
}

// openDataDir locks the folder, making it when it is not there, and reads who the node is. It
// returns Locked when another process uses the folder.
func openDataDir(path string) (*dataDir, func(), error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, nil, domain.Wrap(asDomain(err), "serve", path)
	}
	lock, err := os.OpenFile(filepath.Join(path, "LOCK"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, nil, domain.Wrap(asDomain(err), "serve", path)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, nil, &domain.Error{
			Op: "serve", Kind: domain.Locked, Ref: path, Msg: "another weft process uses this folder",
			Remedy: "stop it, or choose another --data-dir",
		}
	}
	d := &dataDir{path: path, lock: lock}
	if err := d.read(); err != nil {
		_ = lock.Close()
		return nil, nil, domain.Wrap(err, "serve", path)
	}
	return d, func() { _ = lock.Close() }, nil
}

// read reads node.json; a folder without one is new.
func (d *dataDir) read() error {
	b, err := os.ReadFile(d.file("node.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return asDomain(err)
	}
	if err := json.Unmarshal(b, &d.id); err != nil || d.id.Cluster.IsZero() {
		return domain.Errorf(domain.Corrupt, "node.json is damaged: %v", err)
	}
	d.id.Number = max(d.id.Number, 1)
	return nil
}

// isNew tells whether no node ever lived here.
func (d *dataDir) isNew() bool { return d.id.Cluster.IsZero() }

// save writes node.json durably.
func (d *dataDir) save() error {
	b, err := json.MarshalIndent(d.id, "", "  ")
	if err != nil {
		return err
	}
	return writeDurably(d.file("node.json"), b)
}

// begin begins a new incarnation, durably.
func (d *dataDir) begin() error {
	d.id.Incarnation++
	if err := d.save(); err != nil {
		return err
	}
	return d.adminToken()
}

// hostname is what a node is called where nobody says.
func hostname() string {
	host, _ := os.Hostname()
	host, _, _ = strings.Cut(host, ".")
	if host == "" {
		return "node"
	}
	return host
}

// adminToken makes the administrator's token the first time.
func (d *dataDir) adminToken() error {
	if _, err := os.Stat(d.file("admin.token")); err == nil {
		return nil
	}
	var err error
	d.fresh, err = newAdminToken(d.path)
	return err
}

// newAdminToken replaces the administrator's token of a data folder and gives the new one. Of the
// token itself only client.json keeps a copy; it is written first, so that no start that is cut
// short leaves a token which nobody knows.
func newAdminToken(dir string) (string, error) {
	if _, err := os.Stat(filepath.Join(dir, "node.json")); err != nil {
		return "", &domain.Error{
			Op: "token", Kind: domain.NotFound, Ref: dir, Msg: "this folder holds no node",
			Remedy: "name the node's folder with --data-dir",
		}
	}
	raw := make([]byte, 24)
	_, _ = rand.Read(raw)
	l, err := client.ReadLocal(dir)
	if err != nil && !domain.IsKind(err, domain.NotFound) && !domain.IsKind(err, domain.Corrupt) {
		return "", err
	}
	l.Token = "weft-" + hex.EncodeToString(raw)
	if err := writeLocal(dir, l); err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(l.Token))
	path := filepath.Join(dir, "admin.token")
	return l.Token, writeDurably(path, []byte(hex.EncodeToString(sum[:])))
}

func writeLocal(dir string, l client.Local) error {
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	return writeDurably(filepath.Join(dir, client.LocalFile), append(b, '\n'))
}

// ready notes where the API answers and whose certificate it has, and gives the administrator's
// token as far as client.json has it. first tells that the node never came so far before: then the
// token is shown.
func (d *dataDir) ready(api, ca string) (token string, first bool, err error) {
	l, err := client.ReadLocal(d.path)
	if err != nil || !d.Admin(l.Token) {
		return "", false, nil // removed by the administrator, who has the token
	}
	first = l.API == ""
	if l.API != api || l.CA != ca {
		l.API, l.CA = api, ca
		err = writeLocal(d.path, l)
	}
	return l.Token, first, err
}

// Admin tells whether a token is the administrator's. The comparison takes the same time for all.
func (d *dataDir) Admin(token string) bool {
	want, err := os.ReadFile(d.file("admin.token"))
	if err != nil {
		return false
	}
	sum := sha256.Sum256([]byte(token))
	return subtle.ConstantTimeCompare([]byte(hex.EncodeToString(sum[:])), want) == 1
}

func (d *dataDir) file(name string) string { return filepath.Join(d.path, name) }

// Load implements agent.Tokens.
func (d *dataDir) Load() (uint64, error) {
	b, err := os.ReadFile(d.file("agent.token"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, asDomain(err)
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, domain.Errorf(domain.Corrupt, "agent.token is damaged")
	}
	return n, nil
}

// Save implements agent.Tokens.
func (d *dataDir) Save(token uint64) error {
	return writeDurably(d.file("agent.token"), []byte(strconv.FormatUint(token, 10)))
}

// secret is a CHAP secret as it is kept: the pair the initiator proves, and the target's own.
type secret struct {
	User      string `json:"user"`
	Secret    string `json:"secret"`
	OwnUser   string `json:"own_user,omitempty"`
	OwnSecret string `json:"own_secret,omitempty"`
}

// PutSecret keeps a CHAP secret under a name. It never leaves the node's folder and stands in no
// event.
func (d *dataDir) PutSecret(name, user, pass, ownUser, ownPass string) error {
	if name == "" || strings.ContainsAny(name, "/\\.") || len(name) > 63 {
		return domain.Errorf(domain.Invalid, "%q names no secret", name)
	}
	if n := len(pass); n < 12 || n > 64 {
		return domain.Errorf(domain.Invalid, "a CHAP secret has 12 to 64 bytes, not %d", n)
	}
	if err := os.MkdirAll(d.file("secrets"), 0o700); err != nil {
		return asDomain(err)
	}
	b, err := json.Marshal(secret{user, pass, ownUser, ownPass})
	if err != nil {
		return err
	}
	return writeDurably(filepath.Join(d.file("secrets"), name), b)
}

// credentials reads a secret for the iSCSI target.
func (d *dataDir) credentials(name string) (in iscsi.Credential, own *iscsi.Credential, err error) {
	b, err := os.ReadFile(filepath.Join(d.file("secrets"), filepath.Base(name)))
	if err != nil {
		return in, nil, domain.Errorf(domain.NotFound, "no secret named %q on this node", name)
	}
	var s secret
	if err := json.Unmarshal(b, &s); err != nil {
		return in, nil, domain.Errorf(domain.Corrupt, "secret %q is damaged", name)
	}
	if s.OwnSecret != "" {
		own = &iscsi.Credential{User: s.OwnUser, Secret: s.OwnSecret}
	}
	return iscsi.Credential{User: s.User, Secret: s.Secret}, own, nil
}

// writeDurably replaces a file so that after a crash it is the old or the new one, whole.
func writeDurably(path string, b []byte) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return asDomain(err)
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return asDomain(err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return asDomain(err)
	}
	return asDomain(errors.Join(dir.Sync(), dir.Close()))
}

// asDomain gives a system error a kind.
func asDomain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrPermission):
		return &domain.Error{Kind: domain.Denied, Err: err}
	case errors.Is(err, syscall.ENOSPC):
		return &domain.Error{Kind: domain.NoSpace, Err: err}
	case errors.Is(err, fs.ErrNotExist):
		return &domain.Error{Kind: domain.NotFound, Err: err}
	}
	return &domain.Error{Kind: domain.Unavailable, Err: err}
}

func randomUUID() domain.UUID {
	var u domain.UUID
	_, _ = rand.Read(u[:])
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	return u
}

// freeBytes tells how much room the file system under a path has.
func freeBytes(path string) (domain.Bytes, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", path, err)
	}
	return domain.Bytes(st.Bavail) * domain.Bytes(st.Bsize), nil
}
