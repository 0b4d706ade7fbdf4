package main

import (
	"context"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"
)

// tokenLife is the --auth-token-ttl that etcd was started with; etcd looks for
// tokens that ran out once a second.
const (
	tokenLife  = 2 * time.Second
	tokenSweep = time.Second
)

var authChecks = []check{
	{"users may do through the proxy what their roles allow, and nothing else", func(ctx context.Context, p parts) {
		enableAuth(ctx, p)
		alice, bob := dial(setting("PROXY"), "alice", "wonder"), dial(setting("PROXY"), "bob", "builder")
		defer alice.Close()
		defer bob.Close()
		must(only(alice.Put(ctx, "alice/a", "1")))
		must(only(bob.Put(ctx, "bob/b", "2")))
		equal("the value", keysOf(value(alice.Get(ctx, "alice/a"))), []string{"alice/a=1"})
		refused(only(alice.Get(ctx, "bob/b")), rpctypes.ErrPermissionDenied)
		refused(only(bob.Put(ctx, "alice/a", "3")), rpctypes.ErrPermissionDenied)
		refused(only(alice.Txn(ctx).Then(clientv3.OpGet("bob/b")).Commit()), rpctypes.ErrPermissionDenied)
		// A certificate without a name is nobody, and both sides say so in the same words.
		refused(only(p.proxy.Get(ctx, "alice/a")), only(p.etcd.Get(ctx, p.namespace+"alice/a")))
		refused(only(alice.UserAdd(ctx, "mallory", "m")), rpctypes.ErrPermissionDenied)
	}},
	{"a wrong password opens nothing", func(ctx context.Context, p parts) {
		_, err := clientv3.New(clientv3.Config{
			Endpoints: []string{"https://" + setting("PROXY")}, TLS: tlsConfig(),
			Username: "alice", Password: "wrong", DialTimeout: patience,
		})
		refused(err, rpctypes.ErrAuthFailed)
	}},
	{"a watch shows a user what he may read, and refuses the rest", func(ctx context.Context, p parts) {
		alice, bob := dial(setting("PROXY"), "alice", "wonder"), dial(setting("PROXY"), "bob", "builder")
		defer alice.Close()
		defer bob.Close()
		// Both watch the same range: what one may see is not shown to the other.
		allowed := alice.Watch(ctx, "alice/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
		next(ctx, "the watch", allowed)
		denied := bob.Watch(ctx, "alice/", clientv3.WithPrefix())
		anonymous := p.proxy.Watch(ctx, "alice/", clientv3.WithPrefix())
		// The reason of a cancelled watch is a text, and should be etcd's.
		same := dial(setting("ETCD"), "bob", "builder").Watch(ctx, p.namespace+"alice/", clientv3.WithPrefix())
		refused(watchError(ctx, denied), watchError(ctx, same))
		same = p.etcd.Watch(ctx, p.namespace+"alice/", clientv3.WithPrefix())
		refused(watchError(ctx, anonymous), watchError(ctx, same))
		must(only(alice.Put(ctx, "alice/w", "1")))
		equal("the event", events(ctx, allowed, 1), []string{"PUT alice/w=1"})
	}},
	{"a lease shows its keys to those who may read them", func(ctx context.Context, p parts) {
		alice, bob := dial(setting("PROXY"), "alice", "wonder"), dial(setting("PROXY"), "bob", "builder")
		defer alice.Close()
		defer bob.Close()
		lease := value(alice.Grant(ctx, 60)).ID
		must(only(alice.Put(ctx, "alice/l", "1", clientv3.WithLease(lease))))
		equal("the keys", value(alice.TimeToLive(ctx, lease, clientv3.WithAttachedKeys())).Keys, [][]byte{[]byte("alice/l")})
		refused(only(bob.TimeToLive(ctx, lease, clientv3.WithAttachedKeys())), rpctypes.ErrPermissionDenied)
		refused(only(bob.Revoke(ctx, lease)), rpctypes.ErrPermissionDenied)
		equal("the time", value(alice.KeepAliveOnce(ctx, lease)).TTL, int64(60))
	}},
	{"a token that ran out is refused, and the client gets itself a new one", func(ctx context.Context, p parts) {
		alice := dial(setting("PROXY"), "alice", "wonder")
		defer alice.Close()
		must(only(alice.Put(ctx, "alice/t", "1")))
		token := value(p.proxy.Auth.Authenticate(ctx, "alice", "wonder")).Token
		// A client without a user that sends this token as it is.
		bearing := metadata.AppendToOutgoingContext(ctx, rpctypes.TokenFieldNameGRPC, token)
		equal("the value", keysOf(value(p.proxy.Get(bearing, "alice/t"))), []string{"alice/t=1"})
		// Nothing tells a client that a token runs out, and asking with it would make it last longer.
		time.Sleep(tokenLife + 2*tokenSweep)
		refused(only(p.proxy.Get(bearing, "alice/t")), rpctypes.ErrInvalidAuthToken)
		must(only(alice.Put(ctx, "alice/t", "2")))
		equal("the value", keysOf(value(alice.Get(ctx, "alice/t"))), []string{"alice/t=2"})
	}},
	{"what a user watches goes on after his token ran out", func(ctx context.Context, p parts) {
		alice := dial(setting("PROXY"), "alice", "wonder")
		defer alice.Close()
		watch := alice.Watch(ctx, "alice/on", clientv3.WithCreatedNotify())
		next(ctx, "the watch", watch)
		time.Sleep(tokenLife + 2*tokenSweep)
		must(only(alice.Put(ctx, "alice/on", "1")))
		equal("the event", events(ctx, watch, 1), []string{"PUT alice/on=1"})
	}},
	{"a right that is taken away is gone at once", func(ctx context.Context, p parts) {
		root, bob := dial(setting("ETCD"), "root", "root"), dial(setting("PROXY"), "bob", "builder")
		defer root.Close()
		defer bob.Close()
		must(only(bob.Get(ctx, "bob/b")))
		must(only(root.UserRevokeRole(ctx, "bob", "bob")))
		refused(only(bob.Get(ctx, "bob/b")), rpctypes.ErrPermissionDenied)
	}},
}

// enableAuth makes root, and alice and bob with a role for a prefix each. Roles
// are etcd's, so their keys are spelled with the namespace.
func enableAuth(ctx context.Context, p parts) {
	must(only(p.etcd.UserAdd(ctx, "root", "root")))
	must(only(p.etcd.UserGrantRole(ctx, "root", "root")))
	for user, password := range map[string]string{"alice": "wonder", "bob": "builder"} {
		prefix := p.namespace + user + "/"
		must(only(p.etcd.RoleAdd(ctx, user)))
		must(only(p.etcd.RoleGrantPermission(ctx, user, prefix, clientv3.GetPrefixRangeEnd(prefix),
			clientv3.PermissionType(clientv3.PermReadWrite))))
		must(only(p.etcd.UserAdd(ctx, user, password)))
		must(only(p.etcd.UserGrantRole(ctx, user, user)))
	}
	must(only(p.etcd.AuthEnable(ctx)))
}
