package esdb

import (
	"context"
	"encoding/base64"
	"path"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"weft/domain"
)

// The trailer by which the clients of EventStoreDB tell errors apart.
const (
	exceptionKey  = "exception"
	accessDenied  = "access-denied"
	notLeader     = "not-leader"
	noSuchGroup   = "persistent-subscription-does-not-exist"
	groupExists   = "persistent-subscription-exists"
	groupFull     = "maximum-subscribers-reached"
	groupDropped  = "persistent-subscription-dropped"
	leaderHostKey = "leader-endpoint-host"
	leaderPortKey = "leader-endpoint-port"
)

type principalKey struct{}

// principal gives whom the interceptors found behind a call.
func principal(ctx context.Context) Principal {
	p, _ := ctx.Value(principalKey{}).(Principal)
	return p
}

// credentialsOf reads the authorization of a call. One that is malformed counts as none.
func credentialsOf(ctx context.Context) (user, secret string) {
	md, _ := metadata.FromIncomingContext(ctx)
	values := md.Get("authorization")
	if len(values) == 0 {
		return "", ""
	}
	scheme, rest, _ := strings.Cut(values[0], " ")
	rest = strings.TrimSpace(rest)
	switch strings.ToLower(scheme) {
	case "bearer":
		return "", rest
	case "basic":
		plain, err := base64.StdEncoding.DecodeString(rest)
		if err != nil {
			return "", ""
		}
		user, secret, _ = strings.Cut(string(plain), ":")
	}
	return user, secret
}

// admit authenticates a call.
func (s *Server) admit(ctx context.Context, method string) (context.Context, error) {
	if method == "/event_store.client.server_features.ServerFeatures/GetSupportedMethods" ||
		method == "/event_store.client.gossip.Gossip/Read" {
		return ctx, nil // clients ask these without credentials, and they tell nothing of the log
	}
	user, secret := credentialsOf(ctx)
	p, err := s.config.Authenticate(ctx, user, secret)
	if err != nil {
		s.log.Warn("esdb call refused", "method", method, "user", user, "err", err)
		reason := "no token"
		if secret != "" {
			reason = err.Error()
		}
		s.refused(ctx, method, "", reason)
		return nil, status.Error(codes.Unauthenticated, "the token is missing, wrong or expired")
	}
	return context.WithValue(ctx, principalKey{}, p), nil
}

func (s *Server) guardCall(
	ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler,
) (any, error) {
	known, err := s.admit(ctx, info.FullMethod)
	if err != nil {
		_ = grpc.SetTrailer(ctx, metadata.Pairs(exceptionKey, accessDenied))
		return nil, err
	}
	return next(known, req)
}

func (s *Server) guardStream(
	srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler,
) error {
	ctx, err := s.admit(stream.Context(), info.FullMethod)
	if err != nil {
		stream.SetTrailer(metadata.Pairs(exceptionKey, accessDenied))
		return err
	}
	return next(srv, &guarded{ServerStream: stream, ctx: ctx})
}

// guarded is a stream whose context knows the principal.
type guarded struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // it is the stream's own
}

// Context implements grpc.ServerStream.
func (g *guarded) Context() context.Context { return g.ctx }

var codesOf = map[domain.Kind]codes.Code{
	domain.Corrupt: codes.DataLoss, domain.Stale: codes.FailedPrecondition,
	domain.Unavailable: codes.Unavailable, domain.Aborted: codes.Canceled,
	domain.Invalid: codes.InvalidArgument,
}

// fail turns an error of the store into a status of the protocol.
func fail(err error) error {
	code, known := codesOf[domain.KindOf(err)]
	if !known {
		code = codes.Internal
	}
	return status.Error(code, err.Error())
}

// refused tells of a call that was refused.
func (s *Server) refused(ctx context.Context, method, actor, reason string) {
	if s.config.Refused == nil {
		return
	}
	r := Refusal{Call: path.Base(method), Actor: actor, Reason: reason}
	if p, ok := peer.FromContext(ctx); ok {
		r.Source = p.Addr.String()
	}
	s.config.Refused(r)
}

// deny refuses a change of the log by the trailer that clients turn into "access denied".
func (s *Server) deny(ctx context.Context, method string, trailer func(metadata.MD)) error {
	s.refused(ctx, method, principal(ctx).Actor, "the log is written by its cluster alone")
	trailer(metadata.Pairs(exceptionKey, accessDenied))
	return status.Error(codes.PermissionDenied, refusal)
}
