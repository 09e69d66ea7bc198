// Command weft is event-sourced, software-defined block storage in one binary: the node, and the
// command line that drives it. This package alone knows all parts; it joins the event log, the
// views, the reconciler, the devices and the portals into a node, and hands the command line what
// only the node can do.
//
//	main.go      the process: signals and the exit code
//	serve.go     weft serve: a node from its flags to its end
//	demo.go      weft demo: the same, with a volume in it
//	node.go      what a node is made of; wire.go puts it together
//	datadir.go   the node's folder
//	enter.go     a folder's first start: a new cluster, or one more node of another
//	peers.go     the door for other nodes, and orders on their way to them
//	lead.go      the lease, the role, and what one node does for all
//	devices.go   the devices and their engines
//	front.go     the NBD and iSCSI portals
//	reservations.go  what cluster software fences by, over restarts
//	api.go       what the API stands on
//	recover.go   weft recover: a log that lost most of its voters
//	damage.go    what is said and done about a damaged event log
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"weft/adapters/cli"
)

func main() { os.Exit(run()) }

// patience is how long a stop may take before another signal ends it the hard way.
const patience = 5 * time.Second

// run is the process without its end, so that deferred calls happen.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// Signals come in twos: from a terminal and from whatever started this. So the second is not
	// taken for impatience at once; after a while it ends a stop that hangs.
	context.AfterFunc(ctx, func() { time.AfterFunc(patience, stop) })
	return cli.Main(ctx, cli.Programs{
		Serve: serve, Demo: demo, NewToken: newAdminToken, SignIn: signIn, VerifyLog: verifyLog,
		Version: version(),
		InspectPrograms: cli.InspectPrograms{
			CheckDevice: checkDevice, InspectJournal: inspectJournal,
			InspectSegment: inspectSegment, InspectExtents: inspectExtents,
		},
		RecoverPrograms: cli.RecoverPrograms{Recover: recoverLog},
		BackupPrograms: cli.BackupPrograms{
			Backup: backup, VerifyBackup: verifyBackup, Restore: restore,
		},
		Env: os.Getenv,
	}, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
}
