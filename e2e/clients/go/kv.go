package main

import (
	"context"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
)

// pages is how many keys the checks of lists put: a few pages, and more than
// one chunk of a RangeStream.
const pages = 25

var kvChecks = []check{
	{"a put is in etcd below the namespace, and is read back", func(ctx context.Context, p parts) {
		put := value(p.proxy.Put(ctx, "kv/a", "1"))
		equal("the value in etcd", p.direct(ctx, "kv/a"), "1")
		get := value(p.proxy.Get(ctx, "kv/a"))
		equal("what is read", keysOf(get), []string{"kv/a=1"})
		equal("the key's revision", get.Kvs[0].ModRevision, put.Header.Revision)
		second := value(p.proxy.Put(ctx, "kv/a", "2", clientv3.WithPrevKV()))
		equal("the previous key", string(second.PrevKv.Key), "kv/a")
		equal("the previous value", string(second.PrevKv.Value), "1")
		old := value(p.proxy.Get(ctx, "kv/a", clientv3.WithRev(put.Header.Revision)))
		equal("the value at the old revision", keysOf(old), []string{"kv/a=1"})
		kept := value(p.proxy.Put(ctx, "kv/a", "", clientv3.WithIgnoreValue()))
		holds(kept.Header.Revision > second.Header.Revision, "a put made no revision")
		equal("the value that was kept", p.direct(ctx, "kv/a"), "2")
	}},
	{"answers carry the header of etcd", func(ctx context.Context, p parts) {
		through, past := value(p.proxy.Get(ctx, "kv/a")), value(p.etcd.Get(ctx, p.namespace+"kv/a"))
		equal("the cluster", through.Header.ClusterId, past.Header.ClusterId)
		equal("the term", through.Header.RaftTerm, past.Header.RaftTerm)
		members := map[uint64]bool{}
		for _, member := range value(p.etcd.MemberList(ctx)).Members {
			members[member.ID] = true
		}
		holds(members[through.Header.MemberId], "member %x is none of the cluster", through.Header.MemberId)
	}},
	{"ranges are sorted, limited, counted and paged within the namespace", func(ctx context.Context, p parts) {
		for index := range pages {
			must(only(p.proxy.Put(ctx, fmt.Sprintf("list/%02d", index), fmt.Sprint(pages-index))))
		}
		prefix := clientv3.WithPrefix()
		equal("the count", value(p.proxy.Get(ctx, "list/", prefix, clientv3.WithCountOnly())).Count, int64(pages))
		down := value(p.proxy.Get(ctx, "list/", prefix, clientv3.WithLimit(2),
			clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend)))
		equal("the last two", keysOf(down), []string{"list/24=1", "list/23=2"})
		holds(down.More, "there is more, and the answer does not say so")
		newest := value(p.proxy.Get(ctx, "list/", clientv3.WithLastRev()...))
		equal("the newest", keysOf(newest), []string{"list/24=1"})
		equal("keys only", keysOf(value(p.proxy.Get(ctx, "list/00", clientv3.WithKeysOnly()))), []string{"list/00="})
		serializable := value(p.proxy.Get(ctx, "list/03", clientv3.WithRange("list/05"), clientv3.WithSerializable()))
		equal("a part", keysOf(serializable), []string{"list/03=22", "list/04=21"})

		seen, from := 0, "list/"
		for more := true; more; {
			page := value(p.proxy.Get(ctx, from, clientv3.WithRange("list0"), clientv3.WithLimit(10)))
			seen += len(page.Kvs)
			more = page.More
			from = string(page.Kvs[len(page.Kvs)-1].Key) + "\x00"
		}
		equal("the keys on all pages", seen, pages)
	}},
	{"no range reaches out of the namespace", func(ctx context.Context, p parts) {
		before, after := p.namespace[:len(p.namespace)-1], p.namespace+"\xff"
		outside := []string{"a", before, "zzzz"}
		for _, key := range outside {
			must(only(p.etcd.Put(ctx, key, "outside")))
		}
		must(only(p.etcd.Put(ctx, after, "inside")))
		all := value(p.proxy.Get(ctx, "", clientv3.WithFromKey()))
		for _, kv := range all.Kvs {
			holds(string(kv.Value) != "outside", "key %q was shown", kv.Key)
		}
		equal("the last key", string(all.Kvs[len(all.Kvs)-1].Key), "\xff")
		inside := value(p.etcd.Get(ctx, p.namespace, clientv3.WithPrefix(), clientv3.WithCountOnly()))
		equal("the number of keys", all.Count, inside.Count)
		equal("the deleted", value(p.proxy.Delete(ctx, "m", clientv3.WithFromKey())).Deleted, int64(1))
		for _, key := range outside {
			equal("the keys "+key, value(p.etcd.Get(ctx, key)).Count, int64(1))
		}
	}},
	{"a delete tells what it deleted", func(ctx context.Context, p parts) {
		must(only(p.proxy.Put(ctx, "del/a", "1")))
		must(only(p.proxy.Put(ctx, "del/b", "2")))
		deleted := value(p.proxy.Delete(ctx, "del/", clientv3.WithPrefix(), clientv3.WithPrevKV()))
		equal("the deleted", deleted.Deleted, int64(2))
		equal("the first", string(deleted.PrevKvs[0].Key), "del/a")
		equal("the second", string(deleted.PrevKvs[1].Key), "del/b")
		equal("what etcd has", value(p.etcd.Get(ctx, p.namespace+"del/", clientv3.WithPrefix())).Count, int64(0))
	}},
	{"a RangeStream brings all keys of the namespace in order", func(ctx context.Context, p parts) {
		stream := value(p.proxy.GetStream(ctx, "list/", clientv3.WithPrefix()))
		whole := value(clientv3.GetStreamToGetResponse(stream))
		equal("the stream", keysOf(whole), keysOf(value(p.proxy.Get(ctx, "list/", clientv3.WithPrefix()))))
		equal("the count", whole.Count, int64(pages))
		refusal := value(p.proxy.GetStream(ctx, "list/", clientv3.WithRev(1<<40)))
		refused(only(clientv3.GetStreamToGetResponse(refusal)), rpctypes.ErrFutureRev)
	}},
	{"errors are those of etcd", func(ctx context.Context, p parts) {
		refused(only(p.proxy.Put(ctx, "", "v")), rpctypes.ErrEmptyKey)
		refused(only(p.proxy.Get(ctx, "kv/a", clientv3.WithRev(1<<40))), rpctypes.ErrFutureRev)
		refused(only(p.proxy.Put(ctx, "kv/a", "v", clientv3.WithLease(12345))), rpctypes.ErrLeaseNotFound)
		refused(only(p.proxy.Put(ctx, "kv/none", "", clientv3.WithIgnoreValue())), rpctypes.ErrKeyNotFound)
		refused(only(p.proxy.Put(ctx, "kv/a", string(make([]byte, 1600*1024)))), rpctypes.ErrRequestTooLarge)
	}},
	{"values of a megabyte pass both ways", func(ctx context.Context, p parts) {
		large := string(make([]byte, 1<<20))
		must(only(p.proxy.Put(ctx, "kv/large", large)))
		equal("the length", len(value(p.proxy.Get(ctx, "kv/large")).Kvs[0].Value), len(large))
	}},
	{"the calls that Kubernetes makes work", func(ctx context.Context, p parts) {
		client := kubernetes.Client{Client: p.proxy}
		client.Kubernetes = &client
		first := value(client.Kubernetes.OptimisticPut(ctx, "k8s/pod", []byte("1"), 0, kubernetes.PutOptions{}))
		holds(first.Succeeded, "the create failed")
		stale := value(client.Kubernetes.OptimisticPut(ctx, "k8s/pod", []byte("2"), 1, kubernetes.PutOptions{GetOnFailure: true}))
		holds(!stale.Succeeded, "a stale update succeeded")
		equal("the key in the way", string(stale.KV.Key), "k8s/pod")
		list := value(client.Kubernetes.List(ctx, "k8s/", kubernetes.ListOptions{Limit: 500}))
		equal("the list", string(list.Kvs[0].Key), "k8s/pod")
		equal("the count", value(client.Kubernetes.Count(ctx, "k8s/", kubernetes.CountOptions{})), int64(1))
		deleted := value(client.Kubernetes.OptimisticDelete(ctx, "k8s/pod", first.Revision, kubernetes.DeleteOptions{}))
		holds(deleted.Succeeded, "the delete failed")
	}},
}

var txnChecks = []check{
	{"a transaction compares and acts below the namespace", func(ctx context.Context, p parts) {
		absent := clientv3.Compare(clientv3.CreateRevision("txn/a"), "=", 0)
		first := value(p.proxy.Txn(ctx).If(absent).Then(clientv3.OpPut("txn/a", "1"), clientv3.OpGet("txn/a")).Commit())
		holds(first.Succeeded, "the key is new and the comparison failed")
		equal("the key read in the transaction", string(first.Responses[1].GetResponseRange().Kvs[0].Key), "txn/a")
		equal("the value in etcd", p.direct(ctx, "txn/a"), "1")
		second := value(p.proxy.Txn(ctx).If(absent).Then(clientv3.OpPut("txn/a", "2")).
			Else(clientv3.OpGet("txn/", clientv3.WithPrefix())).Commit())
		holds(!second.Succeeded, "the key is there and the comparison failed to see it")
		equal("the key read in the other branch", string(second.Responses[0].GetResponseRange().Kvs[0].Key), "txn/a")
	}},
	{"every kind of comparison and nested transactions work", func(ctx context.Context, p parts) {
		kv := value(p.proxy.Get(ctx, "txn/a")).Kvs[0]
		inner := clientv3.OpTxn(
			[]clientv3.Cmp{clientv3.Compare(clientv3.Value("txn/").WithPrefix(), "=", "1")},
			[]clientv3.Op{clientv3.OpDelete("txn/a", clientv3.WithPrevKV()), clientv3.OpPut("txn/b", "3")}, nil)
		answer := value(p.proxy.Txn(ctx).If(
			clientv3.Compare(clientv3.Version("txn/a"), "=", kv.Version),
			clientv3.Compare(clientv3.ModRevision("txn/a"), "<", kv.ModRevision+1),
			clientv3.Compare(clientv3.CreateRevision("txn/a"), ">", kv.CreateRevision-1),
			clientv3.Compare(clientv3.Value("txn/a"), "!=", "2"),
			clientv3.Compare(clientv3.LeaseValue("txn/a"), "=", 0),
		).Then(inner).Commit())
		holds(answer.Succeeded, "a comparison failed")
		nested := answer.Responses[0].GetResponseTxn()
		holds(nested.Succeeded, "the comparison of the nested transaction failed")
		equal("the deleted key", string(nested.Responses[0].GetResponseDeleteRange().PrevKvs[0].Key), "txn/a")
		equal("the value in etcd", p.direct(ctx, "txn/b"), "3")
	}},
	{"a transaction that etcd refuses does nothing", func(ctx context.Context, p parts) {
		twice := p.proxy.Txn(ctx).Then(clientv3.OpPut("txn/c", "1"), clientv3.OpPut("txn/c", "2"))
		refused(only(twice.Commit()), rpctypes.ErrDuplicateKey)
		equal("the keys", value(p.etcd.Get(ctx, p.namespace+"txn/c")).Count, int64(0))
	}},
}

// only keeps the error of a call whose answer does not matter.
func only[T any](_ T, err error) error { return err }
