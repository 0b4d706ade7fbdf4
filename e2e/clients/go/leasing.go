package main

import (
	"context"
	"fmt"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/client/v3/leasing"
	"go.etcd.io/etcd/client/v3/namespace"
)

// leasingChecks are about a proxy that leases: clientv3's own leasing client, past
// the proxy, shares its prefix LEASING in its namespace.
var leasingChecks = []check{
	{"leasing.NewKV gives its keys up to clients of the proxy", theirsGivesWay},
	{"the proxy gives its keys up to leasing.NewKV", oursGivesWay},
	{"transactions of both see each other's writes", bothTransact},
	{"deletes of ranges reach what the other owns", bothDeleteRanges},
	{"a leasing client through the proxy works on the same prefix", leasingThroughTheProxy},
	{"counters that both raise lose no step", bothCount},
}

// leasingClient is clientv3's, in the proxy's namespace, in the order in which
// etcd's own proxy stacks them.
func leasingClient(client *clientv3.Client, prefix string) (clientv3.KV, func()) {
	if prefix != "" {
		client.KV = namespace.NewKV(client.KV, prefix)
		client.Watcher = namespace.NewWatcher(client.Watcher, prefix)
		client.Lease = namespace.NewLease(client.Lease, prefix)
	}
	kv, stop, err := leasing.NewKV(client, setting("LEASING"), concurrency.WithTTL(30))
	must(err)
	return kv, stop
}

// theirs makes a leasing client past the proxy.
func theirs(p parts) (clientv3.KV, func()) {
	client := dial(setting("ETCD"), "", "")
	kv, stop := leasingClient(client, p.namespace)
	return kv, func() {
		client.Close()
		stop()
	}
}

func read(ctx context.Context, kv clientv3.KV, key string) string {
	answer := value(kv.Get(ctx, key))
	if len(answer.Kvs) == 0 {
		return "none"
	}
	return string(answer.Kvs[0].Value)
}

// owner tells the lease on which the leasing key of a key hangs, 0 if there is none.
func (p parts) owner(ctx context.Context, key string) int64 {
	answer := value(p.etcd.Get(ctx, p.namespace+setting("LEASING")+key))
	if len(answer.Kvs) == 0 {
		return 0
	}
	return answer.Kvs[0].Lease
}

func theirsGivesWay(ctx context.Context, p parts) {
	kv, stop := theirs(p)
	defer stop()
	equal("a key of nobody", read(ctx, kv, "go/a"), "none")
	lease := p.owner(ctx, "go/a")
	holds(lease != 0, "reading did not acquire the key")
	value(p.proxy.Put(ctx, "go/a", "1"))
	holds(p.owner(ctx, "go/a") != lease, "it was not given up")
	equal("what the proxy wrote", read(ctx, kv, "go/a"), "1")
	equal("for the owner too", read(ctx, p.proxy, "go/a"), "1")
	value(p.proxy.Delete(ctx, "go/a"))
	equal("what the proxy deleted", read(ctx, kv, "go/a"), "none")
}

func oursGivesWay(ctx context.Context, p parts) {
	kv, stop := theirs(p)
	defer stop()
	value(p.proxy.Put(ctx, "go/b", "1"))
	equal("what was written", read(ctx, p.proxy, "go/b"), "1")
	lease := p.owner(ctx, "go/b")
	holds(lease != 0, "reading did not acquire the key")
	value(kv.Put(ctx, "go/b", "2"))
	holds(p.owner(ctx, "go/b") != lease, "it was not given up")
	equal("what leasing.NewKV wrote", read(ctx, p.proxy, "go/b"), "2")
	value(kv.Delete(ctx, "go/b"))
	equal("what leasing.NewKV deleted", read(ctx, p.proxy, "go/b"), "none")
}

func bothTransact(ctx context.Context, p parts) {
	kv, stop := theirs(p)
	defer stop()
	transact := func(kv clientv3.KV, text string) {
		isNew := clientv3.Compare(clientv3.CreateRevision("go/never"), "=", 0)
		answer := value(kv.Txn(ctx).If(isNew).
			Then(clientv3.OpPut("go/c", text), clientv3.OpPut("go/d", text), clientv3.OpGet("go/c")).
			Else(clientv3.OpPut("go/c", "wrong")).Commit())
		holds(answer.Succeeded && len(answer.Responses) == 3, "%v", answer)
		equal("its own read", string(answer.Responses[2].GetResponseRange().Kvs[0].Value), text)
	}
	for round := range 3 {
		// Each owns one of the keys that the other writes.
		read(ctx, kv, "go/c")
		read(ctx, p.proxy, "go/d")
		for _, writer := range []clientv3.KV{kv, p.proxy} {
			text := fmt.Sprintf("%d by %T", round, writer)
			transact(writer, text)
			for _, reader := range []clientv3.KV{kv, p.proxy} {
				equal("go/c", read(ctx, reader, "go/c"), text)
				equal("go/d", read(ctx, reader, "go/d"), text)
			}
		}
	}
}

func bothDeleteRanges(ctx context.Context, p parts) {
	kv, stop := theirs(p)
	defer stop()
	for _, both := range [][2]clientv3.KV{{kv, p.proxy}, {p.proxy, kv}} {
		owner, deleter := both[0], both[1]
		for _, key := range []string{"go/e/1", "go/e/2", "go/f"} {
			value(owner.Put(ctx, key, "1"))
			equal(key, read(ctx, owner, key), "1")
		}
		deleted := value(deleter.Delete(ctx, "go/e/", clientv3.WithPrefix())).Deleted
		equal("keys deleted", deleted, int64(2))
		equal("go/e/1", read(ctx, owner, "go/e/1"), "none")
		equal("go/e/2", read(ctx, owner, "go/e/2"), "none")
		equal("go/f", read(ctx, owner, "go/f"), "1")
		value(owner.Delete(ctx, "go/f"))
	}
	// leasing.NewKV does not find the leasing keys of an open range, the proxy does.
	value(kv.Put(ctx, "go/z", "1"))
	equal("go/z", read(ctx, kv, "go/z"), "1")
	value(p.proxy.Delete(ctx, "go/y", clientv3.WithFromKey()))
	equal("go/z", read(ctx, kv, "go/z"), "none")
}

func leasingThroughTheProxy(ctx context.Context, p parts) {
	client := dial(setting("PROXY"), "", "")
	kv, stop := leasingClient(client, "")
	defer func() {
		client.Close()
		stop()
	}()
	value(p.proxy.Put(ctx, "go/through", "1"))
	equal("what was written", read(ctx, kv, "go/through"), "1")
	value(p.proxy.Put(ctx, "go/through", "2"))
	equal("what was written", read(ctx, kv, "go/through"), "2")
	value(kv.Put(ctx, "go/through", "3"))
	equal("what was written", read(ctx, p.proxy, "go/through"), "3")
	value(kv.Delete(ctx, "go/through"))
	equal("what was deleted", read(ctx, p.proxy, "go/through"), "none")
}

// bothCount raises counters by compare and swap on what each side reads: a stale
// read costs a try, a stale comparison would lose a step.
func bothCount(ctx context.Context, p parts) {
	kv, stop := theirs(p)
	defer stop()
	const counters, steps = 3, 10
	var workers sync.WaitGroup
	errors := make(chan error, 4)
	for _, side := range []clientv3.KV{kv, p.proxy, kv, p.proxy} {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for step := range counters * steps {
				key := fmt.Sprintf("go/counter/%d", step%counters)
				if err := raise(ctx, side, key); err != nil {
					errors <- err
					return
				}
			}
		}()
	}
	workers.Wait()
	close(errors)
	for err := range errors {
		must(err)
	}
	for counter := range counters {
		key := fmt.Sprintf("go/counter/%d", counter)
		equal(key, p.direct(ctx, key), fmt.Sprint(4*steps))
		equal(key, read(ctx, p.proxy, key), fmt.Sprint(4*steps))
	}
}

func raise(ctx context.Context, kv clientv3.KV, key string) error {
	for {
		answer, err := kv.Get(ctx, key)
		if err != nil {
			return err
		}
		count, revision := 0, int64(0)
		if len(answer.Kvs) > 0 {
			fmt.Sscan(string(answer.Kvs[0].Value), &count)
			revision = answer.Kvs[0].ModRevision
		}
		swapped, err := kv.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision(key), "=", revision)).
			Then(clientv3.OpPut(key, fmt.Sprint(count+1))).
			Commit()
		if err != nil {
			return err
		}
		if swapped.Succeeded {
			return nil
		}
	}
}
