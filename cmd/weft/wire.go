//go:build wireinject

package main

import (
	"context"
	"log/slog"

	"github.com/google/wire"

	"weft/eventstore"
	"weft/eventstore/quorum"
)

// assemble builds a node from its data folder up to the API. The cleanup takes it down in reverse.
func assemble(ctx context.Context, o Options, d *dataDir, log *slog.Logger) (*Node, func(), error) {
	wire.Build(
		newBackground, openDevices, openPeer, openStore, wire.Bind(new(eventstore.Store), new(*quorum.Store)),
		openVault, newCodec, openIntents, newCommands, newViews, openRunner, join, newPool, openFront, newAgent, newDispatcher,
		startLeading, startTelling, startScrubbing, startEquipping, openRefusals, newVerifier,
		wire.Struct(new(backend), "dir", "store", "codec", "vault", "exec", "runner", "views",
			"agent", "front", "devices", "peer", "to", "refused", "idps", "background"),
		startAPI, serveLog, wire.Struct(new(Node), "*"),
	)
	return nil, nil, nil
}
