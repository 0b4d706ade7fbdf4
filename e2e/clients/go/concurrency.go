package main

import (
	"context"
	"fmt"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

// writers is how many goroutines compete, and rounds how often each of them.
const (
	writers = 4
	rounds  = 5
)

var concurrencyChecks = []check{
	{"a session's mutex excludes its rivals, and wakes the next", func(ctx context.Context, p parts) {
		first, second := session(ctx, p), session(ctx, p)
		mine, theirs := concurrency.NewMutex(first, "mutex"), concurrency.NewMutex(second, "mutex")
		must(mine.Lock(ctx))
		holder := value(p.etcd.Get(ctx, p.namespace+"mutex/", clientv3.WithPrefix()))
		equal("the holders in etcd", len(holder.Kvs), 1)
		equal("the key in etcd", string(holder.Kvs[0].Key), p.namespace+mine.Key())
		equal("the lease in etcd", holder.Kvs[0].Lease, int64(first.Lease()))
		refused(theirs.TryLock(ctx), concurrency.ErrLocked)
		owner := value(p.proxy.Txn(ctx).If(mine.IsOwner()).Then(clientv3.OpPut("mutex-owned", "1")).Commit())
		holds(owner.Succeeded, "the holder is not the owner")

		locked := make(chan error, 1)
		go func() { locked <- theirs.Lock(ctx) }()
		// The rival waits once its key is there beside ours.
		for len(value(p.etcd.Get(ctx, p.namespace+"mutex/", clientv3.WithPrefix())).Kvs) < 2 {
		}
		select {
		case <-locked:
			fail("two hold the mutex")
		default:
		}
		// The holder's end frees the mutex: its lease goes, and its key with it.
		must(first.Close())
		must(next(ctx, "the rival's lock", locked))
		must(theirs.Unlock(ctx))
		must(second.Close())
		equal("the holders in etcd", value(p.etcd.Get(ctx, p.namespace+"mutex/", clientv3.WithPrefix())).Count, int64(0))
	}},
	{"a mutex counts without loss under competition", func(ctx context.Context, p parts) {
		must(only(p.proxy.Put(ctx, "counted", "0")))
		failures := make(chan any, writers)
		var group sync.WaitGroup
		for range writers {
			group.Add(1)
			go func() {
				defer group.Done()
				defer func() { failures <- recover() }()
				session := session(ctx, p)
				mutex := concurrency.NewMutex(session, "counting")
				for range rounds {
					must(mutex.Lock(ctx))
					read := string(value(p.proxy.Get(ctx, "counted")).Kvs[0].Value)
					must(only(p.proxy.Put(ctx, "counted", increment(read))))
					must(mutex.Unlock(ctx))
				}
				must(session.Close())
			}()
		}
		group.Wait()
		none(failures)
		equal("the count", p.direct(ctx, "counted"), fmt.Sprint(writers*rounds))
	}},
	{"an election has one leader, and observers see each", func(ctx context.Context, p parts) {
		first, second := session(ctx, p), session(ctx, p)
		one, two := concurrency.NewElection(first, "election"), concurrency.NewElection(second, "election")
		refused(only(one.Leader(ctx)), concurrency.ErrElectionNoLeader)
		observed := two.Observe(ctx)
		must(one.Campaign(ctx, "one"))
		equal("the leader", keysOf(next(ctx, "the observer", observed)), []string{one.Key() + "=one"})
		equal("the leader in etcd", p.direct(ctx, one.Key()), "one")
		must(one.Proclaim(ctx, "one again"))
		equal("the leader", keysOf(next(ctx, "the observer", observed)), []string{one.Key() + "=one again"})
		won := make(chan error, 1)
		go func() { won <- two.Campaign(ctx, "two") }()
		must(one.Resign(ctx))
		must(next(ctx, "the campaign", won))
		equal("the leader", keysOf(next(ctx, "the observer", observed)), []string{two.Key() + "=two"})
		equal("the leader", keysOf(value(two.Leader(ctx))), []string{two.Key() + "=two"})
		must(two.Resign(ctx))
		must(first.Close())
		must(second.Close())
	}},
	{"software transactions of every isolation keep the sum", func(ctx context.Context, p parts) {
		for _, isolation := range []concurrency.Isolation{
			concurrency.SerializableSnapshot, concurrency.Serializable, concurrency.RepeatableReads,
		} {
			must(only(p.proxy.Put(ctx, "stm/from", "100")))
			must(only(p.proxy.Put(ctx, "stm/to", "0")))
			failures := make(chan any, writers)
			var group sync.WaitGroup
			for range writers {
				group.Add(1)
				go func() {
					defer group.Done()
					defer func() { failures <- recover() }()
					for range rounds {
						must(only(concurrency.NewSTM(p.proxy, func(stm concurrency.STM) error {
							var from, to int
							must(only(fmt.Sscan(stm.Get("stm/from"), &from)))
							must(only(fmt.Sscan(stm.Get("stm/to"), &to)))
							stm.Put("stm/from", fmt.Sprint(from-1))
							stm.Put("stm/to", fmt.Sprint(to+1))
							return nil
						}, concurrency.WithIsolation(isolation), concurrency.WithAbortContext(ctx),
							concurrency.WithPrefetch("stm/from", "stm/to"))))
					}
				}()
			}
			group.Wait()
			none(failures)
			equal("what is left", p.direct(ctx, "stm/from"), fmt.Sprint(100-writers*rounds))
			equal("what arrived", p.direct(ctx, "stm/to"), fmt.Sprint(writers*rounds))
		}
	}},
	{"a session ends when its lease is gone", func(ctx context.Context, p parts) {
		session := session(ctx, p)
		must(only(p.etcd.Revoke(ctx, session.Lease())))
		ended(ctx, "the session", session.Done())
	}},
}

func session(ctx context.Context, p parts) *concurrency.Session {
	return value(concurrency.NewSession(p.proxy, concurrency.WithTTL(ttl), concurrency.WithContext(ctx)))
}

func increment(number string) string {
	var parsed int
	must(only(fmt.Sscan(number, &parsed)))
	return fmt.Sprint(parsed + 1)
}

// none passes on the first panic of the goroutines, all of which have ended.
func none(failures chan any) {
	close(failures)
	for failure := range failures {
		if failure != nil {
			panic(failure)
		}
	}
}
