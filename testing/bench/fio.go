package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// sample is what one run of one cell gave. Sizes are bytes, MB are 10^6 bytes.
type sample struct {
	Repeat int     `json:"repeat"`
	Count  int64   `json:"ios"`
	IOPS   float64 `json:"iops"`
	MBps   float64 `json:"mb_per_s"`
	P50    float64 `json:"latency_us_p50"`
	P99    float64 `json:"latency_us_p99"`
	CPU    float64 `json:"cpu_us_per_io"` // of the server
	// Driver is what of CPU the driver takes that runs in the server's process; 0 where none does.
	Driver float64 `json:"driver_us_per_io,omitempty"`
	// Log is what the engine did meanwhile, for our columns.
	Log *logWork `json:"log,omitempty"`
}

// logWork is the engine's own account of a run.
type logWork struct {
	UserBytes  int64 `json:"user_bytes"`
	Chunks     int64 `json:"chunks"`
	LogBytes   int64 `json:"log_bytes"`
	MovedBytes int64 `json:"moved_bytes"`
	MetaBytes  int64 `json:"meta_bytes"`
	// Written is what the device took, by all causes: log, cleaner, checkpoints, headers, footers.
	Written int64 `json:"written_bytes"`
	// Destaged is what of the hosts' bytes went from the journal to the device.
	Destaged    int64 `json:"destaged_bytes,omitempty"`
	Checkpoints int64 `json:"checkpoints"`
	Stalls      int64 `json:"stalls"`
}

// fioArgs gives the command line of a run. target holds the arguments that name the disk; synced
// makes it one job per place in the queue, each of which writes and calls fdatasync, for fio's
// asynchronous engines wait in fdatasync and would never have more than one write under way.
func fioArgs(l load, d time.Duration, synced bool, target ...string) []string {
	args := []string{
		"fio", "--name=bench", "--output-format=json", "--rw=" + l.RW,
		"--bs=" + strconv.Itoa(l.Block), "--time_based", "--norandommap", "--randrepeat=0",
		"--runtime=" + strconv.Itoa(int(d.Milliseconds())) + "ms",
		"--clat_percentiles=0", "--lat_percentiles=1", "--percentile_list=50:99",
	}
	if synced {
		args = append(args, "--ioengine=psync", "--fdatasync=1", "--group_reporting",
			"--numjobs="+strconv.Itoa(l.Depth))
	} else {
		args = append(args, "--iodepth="+strconv.Itoa(l.Depth))
	}
	return append(args, target...)
}

// fioReport is the part of fio's JSON that we read.
type fioReport struct {
	Jobs []fioJob `json:"jobs"`
}

type fioJob struct {
	Error   int     `json:"error"`
	Read    fioSide `json:"read"`
	Write   fioSide `json:"write"`
	Sync    fioSide `json:"sync"`
	UserCPU float64 `json:"usr_cpu"`     // percent of the jobs' run time
	SysCPU  float64 `json:"sys_cpu"`     // the same
	Runtime float64 `json:"job_runtime"` // ms, summed over the jobs of a group
}

type fioSide struct {
	Total int64   `json:"total_ios"`
	IOPS  float64 `json:"iops"`
	Bytes float64 `json:"bw_bytes"` // per second
	Lat   struct {
		Percentile map[string]float64 `json:"percentile"` // ns
	} `json:"lat_ns"`
}

func (s fioSide) us(percent string) float64 { return s.Lat.Percentile[percent] / 1e3 }

// parseFio reads a report, which other lines may surround, of a run with one group. CPU is that of
// fio itself. With fdatasync after each write the latency is that of both: fio gives no percentile
// of the sum, so it is the sum of the percentiles.
func parseFio(out []byte, l load) (sample, error) {
	begin, end := bytes.Index(out, []byte("{\n")), bytes.LastIndexByte(out, '}')
	if begin < 0 || end < begin {
		return sample{}, errors.New("fio: no report in its output")
	}
	var r fioReport
	if err := json.Unmarshal(out[begin:end+1], &r); err != nil {
		return sample{}, fmt.Errorf("fio: report: %w", err)
	}
	if len(r.Jobs) != 1 {
		return sample{}, fmt.Errorf("fio: %d jobs in the report, not 1", len(r.Jobs))
	}
	j := r.Jobs[0]
	side := j.Read
	if l.writes() {
		side = j.Write
	}
	if j.Error != 0 || side.Total == 0 {
		return sample{}, fmt.Errorf("fio: error %d after %d I/Os", j.Error, side.Total)
	}
	const percent, msToUs = 100, 1e3
	cpu := (j.UserCPU + j.SysCPU) / percent * j.Runtime * msToUs
	return sample{
		Count: side.Total, IOPS: side.IOPS, MBps: side.Bytes / 1e6,
		P50: side.us("50.000000") + j.Sync.us("50.000000"),
		P99: side.us("99.000000") + j.Sync.us("99.000000"),
		CPU: cpu / float64(side.Total),
	}, nil
}
