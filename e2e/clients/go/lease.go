package main

import (
	"context"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// ttl is the shortest that a cluster with etcd's default election timeout grants.
const ttl = 2

var leaseChecks = []check{
	{"a lease shows its keys without the namespace, and takes them with it", func(ctx context.Context, p parts) {
		lease := value(p.proxy.Grant(ctx, 60)).ID
		must(only(p.proxy.Put(ctx, "lease/a", "1", clientv3.WithLease(lease))))
		left := value(p.proxy.TimeToLive(ctx, lease, clientv3.WithAttachedKeys()))
		equal("the keys", left.Keys, [][]byte{[]byte("lease/a")})
		equal("the granted time", left.GrantedTTL, int64(60))
		holds(left.TTL > 0 && left.TTL <= 60, "the time that is left is %d", left.TTL)
		equal("the lease in etcd", value(p.etcd.Get(ctx, p.namespace+"lease/a")).Kvs[0].Lease, int64(lease))
		listed := false
		for _, status := range value(p.proxy.Leases(ctx)).Leases {
			listed = listed || status.ID == lease
		}
		holds(listed, "the lease is not listed")
		must(only(p.proxy.Revoke(ctx, lease)))
		equal("the keys in etcd", value(p.etcd.Get(ctx, p.namespace+"lease/a")).Count, int64(0))
		equal("the time that is left", value(p.proxy.TimeToLive(ctx, lease)).TTL, int64(-1))
	}},
	{"a lease that is kept alive outlives its time, and ends when nobody keeps it", func(ctx context.Context, p parts) {
		lease := value(p.proxy.Grant(ctx, ttl)).ID
		must(only(p.proxy.Put(ctx, "lease/kept", "1", clientv3.WithLease(lease))))
		watch := p.proxy.Watch(ctx, "lease/kept", clientv3.WithCreatedNotify(), clientv3.WithPrevKV())
		next(ctx, "the watch", watch)
		keeping, stop := context.WithCancel(ctx)
		answers := value(p.proxy.KeepAlive(keeping, lease))
		// The client asks every third of the time, so this is more than twice the time.
		for range 7 {
			answer := next(ctx, "the keep-alive", answers)
			equal("the lease", answer.ID, lease)
			equal("the time", answer.TTL, int64(ttl))
		}
		equal("the value in etcd", p.direct(ctx, "lease/kept"), "1")
		stop()
		ended(ctx, "the keep-alive", answers)
		equal("the event", events(ctx, watch, 1), []string{"DELETE lease/kept was 1"})
	}},
	{"the keep-alive of a revoked lease ends", func(ctx context.Context, p parts) {
		lease := value(p.proxy.Grant(ctx, ttl)).ID
		answers := value(p.proxy.KeepAlive(ctx, lease))
		next(ctx, "the keep-alive", answers)
		must(only(p.etcd.Revoke(ctx, lease)))
		ended(ctx, "the keep-alive", answers)
	}},
	{"leases that are not there are refused as etcd does it", func(ctx context.Context, p parts) {
		refused(only(p.proxy.KeepAliveOnce(ctx, 4711)), rpctypes.ErrLeaseNotFound)
		refused(only(p.proxy.Revoke(ctx, 4711)), rpctypes.ErrLeaseNotFound)
		lease := value(p.proxy.Grant(ctx, 60))
		equal("the time", value(p.proxy.KeepAliveOnce(ctx, lease.ID)).TTL, int64(60))
		must(only(p.proxy.Revoke(ctx, lease.ID)))
	}},
}
