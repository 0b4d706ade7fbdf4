package main

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// leaderChecks run while the caller takes the majority away: it waits for the
// line "majority, please go" and kills two of three members.
var leaderChecks = []check{
	{"a watch that asks for a leader ends when there is none, and one that does not goes on", func(ctx context.Context, p parts) {
		led := p.proxy.Watch(clientv3.WithRequireLeader(ctx), "led", clientv3.WithCreatedNotify())
		plain := p.proxy.Watch(ctx, "led", clientv3.WithCreatedNotify())
		next(ctx, "the watch that asks for a leader", led)
		next(ctx, "the plain watch", plain)
		fmt.Println("majority, please go")
		refused(watchError(ctx, led), rpctypes.ErrNoLeader)
		ended(ctx, "the watch that asks for a leader", led)
		select {
		case answer, open := <-plain:
			fail("the plain watch got %+v (open: %v)", answer, open)
		default:
		}
		_, err := p.proxy.Get(clientv3.WithRequireLeader(ctx), "led", clientv3.WithSerializable())
		code := status.Code(err)
		var etcdError rpctypes.EtcdError
		if errors.As(err, &etcdError) {
			code = etcdError.Code()
		}
		equal("the code of a read that asks for a leader", code, codes.Unavailable)
	}},
}
