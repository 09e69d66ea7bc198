package vdisk

import (
	"sync"

	"weft/domain"
)

// job is a request that waits for a goroutine of the pool.
type job struct {
	disk *Disk
	io   *domain.IO
	read *readOp // one that has arrived and is to be verified, instead of a request
}

// Pool runs the requests of all disks of a node that may block: reads at depth, merges, ranges. Its
// size bounds how many reads are in flight on the devices.
type Pool struct {
	jobs chan job
	wg   sync.WaitGroup
}

// PoolSize is the default number of goroutines: the read depth of a node.
const PoolSize = 64

// NewPool starts n goroutines.
func NewPool(n int) *Pool {
	p := &Pool{jobs: make(chan job, n)}
	p.wg.Add(n)
	for range n {
		go func() {
			defer p.wg.Done()
			for j := range p.jobs {
				if j.read != nil {
					j.read.finish()
					continue
				}
				j.disk.serve(j.io)
			}
		}()
	}
	return p
}

// run hands a request over; when everybody is busy the caller waits.
func (p *Pool) run(d *Disk, io *domain.IO) { p.jobs <- job{disk: d, io: io} }

// try hands a job over if there is room; it does not wait.
func (p *Pool) try(j job) bool {
	select {
	case p.jobs <- j:
		return true
	default:
		return false
	}
}

// Close ends the goroutines once all requests are served. No disk may be in use any more.
func (p *Pool) Close() {
	close(p.jobs)
	p.wg.Wait()
}
