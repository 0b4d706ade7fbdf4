package main

import (
	"context"
	"net"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.etcd.io/etcd/client/v3/naming/resolver"
	"go.etcd.io/etcd/client/v3/ordering"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// What clientv3 layers on top of its own calls.
var layerChecks = []check{
	{"a namespace of the client lies within the namespace of the proxy", func(ctx context.Context, p parts) {
		client := dial(setting("PROXY"), "", "")
		defer client.Close()
		client.KV = namespace.NewKV(client.KV, "inner/")
		client.Watcher = namespace.NewWatcher(client.Watcher, "inner/")
		client.Lease = namespace.NewLease(client.Lease, "inner/")
		watch := client.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
		next(ctx, "the watch", watch)
		lease := value(client.Grant(ctx, 60)).ID
		must(only(client.Put(ctx, "a", "1", clientv3.WithLease(lease))))
		equal("the value in etcd", p.direct(ctx, "inner/a"), "1")
		equal("the value", keysOf(value(client.Get(ctx, "", clientv3.WithFromKey()))), []string{"a=1"})
		equal("the event", events(ctx, watch, 1), []string{"PUT a=1"})
		attached := value(client.TimeToLive(ctx, lease, clientv3.WithAttachedKeys()))
		equal("the keys of the lease", attached.Keys, [][]byte{[]byte("a")})
		must(only(client.Revoke(ctx, lease)))
	}},
	{"reads in order of revision work", func(ctx context.Context, p parts) {
		kv := ordering.NewKV(p.proxy.KV, ordering.NewOrderViolationSwitchEndpointClosure(p.proxy))
		for index := range 20 {
			put := value(kv.Put(ctx, "ordered", string(rune('a'+index))))
			get := value(kv.Get(ctx, "ordered"))
			holds(get.Kvs[0].ModRevision >= put.Header.Revision, "a read came before the write")
		}
	}},
	{"gRPC services are found by name as they come and go", func(ctx context.Context, p parts) {
		first, second := serve(), serve()
		defer first.Stop()
		defer second.Stop()
		manager := value(endpoints.NewManager(p.proxy, "services/health"))
		updates := value(manager.NewWatchChannel(ctx))
		must(manager.AddEndpoint(ctx, "services/health/1", endpoints.Endpoint{Addr: first.address}))
		holds(p.direct(ctx, "services/health/1") != "", "the endpoint in etcd is empty")
		added := next(ctx, "the updates", updates)
		equal("the address", added[0].Endpoint.Addr, first.address)
		equal("the key", added[0].Key, "services/health/1")

		connection := value(grpc.NewClient("etcd:///services/health",
			grpc.WithResolvers(value(resolver.NewBuilder(p.proxy))),
			grpc.WithTransportCredentials(insecure.NewCredentials())))
		defer connection.Close()
		must(only(healthpb.NewHealthClient(connection).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))))

		must(manager.Update(ctx, []*endpoints.UpdateWithOpts{
			endpoints.NewDeleteUpdateOpts("services/health/1"),
			endpoints.NewAddUpdateOpts("services/health/2", endpoints.Endpoint{Addr: second.address}),
		}))
		equal("the updates", len(next(ctx, "the updates", updates)), 2)
		first.Stop()
		// A call that still went to the first is lost with it; one after it goes to the second.
		for only(healthpb.NewHealthClient(connection).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))) != nil {
			must(ctx.Err())
		}
		list := value(manager.List(ctx))
		equal("the list", list["services/health/2"].Addr, second.address)
		equal("the length of the list", len(list), 1)
	}},
	{"the members and their status are told", func(ctx context.Context, p parts) {
		members := value(p.proxy.MemberList(ctx)).Members
		holds(len(members) > 0, "there is no member")
		for _, endpoint := range p.proxy.Endpoints() {
			status := value(p.proxy.Status(ctx, endpoint))
			holds(status.Leader != 0, "the status knows no leader")
			holds(status.Version != "", "the status knows no version")
		}
		must(p.proxy.Sync(ctx))
		must(only(p.proxy.Get(ctx, "after the sync")))
	}},
}

type service struct {
	*grpc.Server
	address string
}

// serve starts a gRPC server that answers health checks.
func serve() service {
	listener := value(net.Listen("tcp", "127.0.0.1:0"))
	server := grpc.NewServer()
	healthpb.RegisterHealthServer(server, health.NewServer())
	go server.Serve(listener)
	return service{server, listener.Addr().String()}
}
