package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"weft/adapters/rest"
)

// Limits of the file of refused attempts.
const (
	refusalFileMax = 4 << 20 // bytes of one file
	refusalFiles   = 5       // the one that is written, and older ones
)

// refusals keeps every attempt that this node's API refused, a line each, in files that rotate: the
// newest is refused.0.log. Lines survive a crash of the process, not surely one of the machine:
// an attacker must not make the node sync. Only the oldest are ever lost.
type refusals struct {
	dir string
	max int64
	log *slog.Logger

	mu struct {
		sync.Mutex
		file *os.File
		size int64
	}
}

// openRefusals opens the newest file, and closes it in the end.
func openRefusals(d *dataDir, log *slog.Logger) (*refusals, func(), error) {
	r := &refusals{dir: d.file("audit"), max: refusalFileMax, log: log}
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return nil, nil, asDomain(err)
	}
	if err := r.open(); err != nil {
		return nil, nil, asDomain(err)
	}
	return r, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		_ = r.mu.file.Close() // nothing is buffered
	}, nil
}

func (r *refusals) path(n int) string {
	return filepath.Join(r.dir, "refused."+strconv.Itoa(n)+".log")
}

func (r *refusals) open() error {
	f, err := os.OpenFile(r.path(0), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	r.mu.file, r.mu.size = f, st.Size()
	return nil
}

// note keeps an attempt. What cannot be kept is told to the node's log: the caller has its answer.
func (r *refusals) note(a rest.Attempt) {
	line, err := json.Marshal(a)
	if err == nil {
		err = r.write(append(line, '\n'))
	}
	if err != nil {
		r.log.Error("a refused attempt is not in the audit", "err", err, "request", a.Request)
	}
}

func (r *refusals) write(line []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.size+int64(len(line)) > r.max && r.mu.size > 0 {
		if err := r.rotate(); err != nil {
			return err
		}
	}
	n, err := r.mu.file.Write(line)
	r.mu.size += int64(n)
	return err
}

// rotate begins a new file. The caller holds the lock.
func (r *refusals) rotate() error {
	for n := refusalFiles - 1; n > 0; n-- {
		err := os.Rename(r.path(n-1), r.path(n))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	old := r.mu.file
	if err := r.open(); err != nil {
		return err
	}
	return old.Close()
}

// newest gives up to limit attempts, the newest first. A line that was cut off is left out.
func (r *refusals) newest(limit int) ([]rest.Attempt, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []rest.Attempt
	for n := 0; n < refusalFiles && len(out) < limit; n++ {
		b, err := os.ReadFile(r.path(n))
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return nil, asDomain(err)
		}
		lines := bytes.Split(bytes.TrimSuffix(b, []byte("\n")), []byte("\n"))
		for i := len(lines) - 1; i >= 0 && len(out) < limit; i-- {
			var a rest.Attempt
			if json.Unmarshal(lines[i], &a) == nil {
				out = append(out, a)
			}
		}
	}
	return out, nil
}
