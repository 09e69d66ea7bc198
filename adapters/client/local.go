package client

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"

	"weft/domain"
)

// LocalFile is the file in a node's data folder that lets a client on the same machine, under the
// same user, in without a word typed. Its mode is 0600.
const LocalFile = "client.json"

// Local is what LocalFile holds. API is empty until the node was up once.
type Local struct {
	API   string `json:"api,omitempty"`
	CA    string `json:"ca,omitempty"` // file of the authority to trust; empty: those of the system
	Token string `json:"token"`
}

// ReadLocal reads LocalFile of a data folder. It returns NotFound when there is none.
func ReadLocal(dataDir string) (Local, error) {
	var l Local
	path := filepath.Join(dataDir, LocalFile)
	b, err := os.ReadFile(path)
	if err != nil {
		kind := domain.NotFound
		if os.IsPermission(err) {
			kind = domain.Denied
		}
		return l, &domain.Error{Kind: kind, Err: err}
	}
	if err := json.Unmarshal(b, &l); err != nil {
		return l, &domain.Error{
			Kind: domain.Corrupt, Ref: path, Err: err,
			Remedy: "make a new one with: weft token --data-dir " + dataDir,
		}
	}
	return l, nil
}

// DefaultDataDir is where a node keeps its data when nobody says: under XDG_STATE_HOME if that is
// set, /var/lib/weft for root, else below the home folder.
func DefaultDataDir(env func(string) string, uid int) string {
	switch {
	case env("XDG_STATE_HOME") != "":
		return filepath.Join(env("XDG_STATE_HOME"), "weft")
	case uid == 0 || env("HOME") == "":
		return "/var/lib/weft"
	}
	return filepath.Join(env("HOME"), ".local", "state", "weft")
}

// CurrentFile names the file beside the default data folder in which a running node leaves the
// path of the folder it uses. It holds no secret.
func CurrentFile(defaultDir string) string { return defaultDir + ".current" }

// CurrentDataDir gives the folder of the node that runs now, as far as CurrentFile tells, else the
// default.
func CurrentDataDir(defaultDir string) string {
	b, err := os.ReadFile(CurrentFile(defaultDir))
	if dir := strings.TrimSpace(string(b)); err == nil && filepath.IsAbs(dir) {
		return dir
	}
	return defaultDir
}
