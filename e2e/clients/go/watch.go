package main

import (
	"context"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// watchers is how many watches one check opens on one stream.
const watchers = 50

var watchChecks = []check{
	{"a watch tells when it is created, and then every change of its range and no other", func(ctx context.Context, p parts) {
		watch := p.proxy.Watch(ctx, "w/", clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithCreatedNotify())
		created := next(ctx, "the watch", watch)
		holds(created.Created && len(created.Events) == 0, "the first message is %+v", created)
		must(only(p.etcd.Put(ctx, "w/a", "outside")))
		must(only(p.etcd.Put(ctx, p.namespace+"w", "beside")))
		must(only(p.etcd.Put(ctx, p.namespace+"w/a", "1")))
		must(only(p.proxy.Put(ctx, "w/a", "2")))
		must(only(p.proxy.Delete(ctx, "w/", clientv3.WithPrefix())))
		equal("the events", events(ctx, watch, 3), []string{"PUT w/a=1", "PUT w/a=2 was 1", "DELETE w/a was 2"})
	}},
	{"a watch from an old revision replays it, filtered as asked", func(ctx context.Context, p parts) {
		first := value(p.proxy.Put(ctx, "replay/a", "1")).Header.Revision
		must(only(p.proxy.Delete(ctx, "replay/a")))
		must(only(p.proxy.Put(ctx, "replay/a", "2")))
		all := p.proxy.Watch(ctx, "replay/a", clientv3.WithRev(first))
		equal("all events", events(ctx, all, 3), []string{"PUT replay/a=1", "DELETE replay/a", "PUT replay/a=2"})
		noPuts := p.proxy.Watch(ctx, "replay/a", clientv3.WithRev(first), clientv3.WithFilterPut())
		equal("the deletions", events(ctx, noPuts, 1), []string{"DELETE replay/a"})
		noDeletes := p.proxy.Watch(ctx, "replay/a", clientv3.WithRev(first), clientv3.WithFilterDelete())
		equal("the puts", events(ctx, noDeletes, 2), []string{"PUT replay/a=1", "PUT replay/a=2"})
	}},
	{"many watches on one stream each get each event", func(ctx context.Context, p parts) {
		var channels []clientv3.WatchChan
		for index := range watchers {
			// Half of them on one key, half on the prefix around it.
			key, options := "many/k", []clientv3.OpOption{clientv3.WithCreatedNotify()}
			if index%2 == 0 {
				key, options = "many/", append(options, clientv3.WithPrefix())
			}
			channels = append(channels, p.proxy.Watch(ctx, key, options...))
		}
		for _, channel := range channels {
			next(ctx, "a watch", channel)
		}
		for index := range 10 {
			must(only(p.proxy.Put(ctx, "many/k", fmt.Sprint(index))))
		}
		for index, channel := range channels {
			got := events(ctx, channel, 10)
			for place, event := range got {
				equal(fmt.Sprintf("event %d of watch %d", place, index), event, fmt.Sprintf("PUT many/k=%d", place))
			}
		}
	}},
	{"a progress request is answered with a revision up to which all was delivered", func(ctx context.Context, p parts) {
		watch := p.proxy.Watch(ctx, "progress/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
		next(ctx, "the watch", watch)
		put := value(p.proxy.Put(ctx, "progress/a", "1")).Header.Revision
		equal("the event", events(ctx, watch, 1), []string{"PUT progress/a=1"})
		// A member that lags may answer with an older revision, so it is asked until it is level.
		for reached := int64(0); reached < put; {
			must(p.proxy.RequestProgress(ctx))
			answer := next(ctx, "the watch", watch)
			holds(answer.IsProgressNotify(), "the message is no progress: %+v", answer)
			reached = answer.Header.Revision
		}
	}},
	{"an answer larger than a message comes in fragments", func(ctx context.Context, p parts) {
		value1M := strings.Repeat("v", 1<<20)
		first := value(p.proxy.Put(ctx, "large/0", value1M)).Header.Revision
		for index := range 4 {
			must(only(p.proxy.Put(ctx, fmt.Sprintf("large/%d", index+1), value1M)))
		}
		watch := p.proxy.Watch(ctx, "large/", clientv3.WithPrefix(), clientv3.WithRev(first), clientv3.WithFragment())
		for index, event := range events(ctx, watch, 5) {
			equal("the event", event, fmt.Sprintf("PUT large/%d=%s", index, value1M))
		}
		must(only(p.proxy.Delete(ctx, "large/", clientv3.WithPrefix())))
	}},
	{"a cancelled watch ends, and its neighbour on the stream goes on", func(ctx context.Context, p parts) {
		passing, stop := context.WithCancel(ctx)
		going := p.proxy.Watch(ctx, "cancel", clientv3.WithCreatedNotify())
		// The client keeps one stream for all contexts that carry the same values.
		gone := p.proxy.Watch(passing, "cancel", clientv3.WithCreatedNotify())
		next(ctx, "the first watch", going)
		next(ctx, "the second watch", gone)
		stop()
		ended(ctx, "the cancelled watch", gone)
		must(only(p.proxy.Put(ctx, "cancel", "1")))
		equal("the event", events(ctx, going, 1), []string{"PUT cancel=1"})
	}},
	{"a watch that asks for a leader works while there is one", func(ctx context.Context, p parts) {
		watch := p.proxy.Watch(clientv3.WithRequireLeader(ctx), "led", clientv3.WithCreatedNotify())
		next(ctx, "the watch", watch)
		must(only(p.proxy.Put(ctx, "led", "1")))
		equal("the event", events(ctx, watch, 1), []string{"PUT led=1"})
	}},
	{"what was compacted is refused to reads and watches, with the revision that is left", func(ctx context.Context, p parts) {
		first := value(p.proxy.Put(ctx, "compact/a", "1")).Header.Revision
		last := value(p.proxy.Put(ctx, "compact/a", "2")).Header.Revision
		must(only(p.proxy.Compact(ctx, last)))
		refused(only(p.proxy.Get(ctx, "compact/a", clientv3.WithRev(first))), rpctypes.ErrCompacted)
		refused(only(p.proxy.Compact(ctx, last)), rpctypes.ErrCompacted)
		watch := p.proxy.Watch(ctx, "compact/a", clientv3.WithRev(first))
		answer := next(ctx, "the watch", watch)
		refused(answer.Err(), rpctypes.ErrCompacted)
		equal("the revision that is left", answer.CompactRevision, last)
		ended(ctx, "the watch", watch)
		kept := p.proxy.Watch(ctx, "compact/a", clientv3.WithRev(last))
		equal("the event that is left", events(ctx, kept, 1), []string{"PUT compact/a=2"})
	}},
}

// events takes `count` events from a watch, and fails if one message holds more
// or the revisions go back.
func events(ctx context.Context, watch clientv3.WatchChan, count int) []string {
	texts := []string{}
	revision := int64(0)
	for len(texts) < count {
		answer := next(ctx, "the watch", watch)
		must(answer.Err())
		for _, event := range answer.Events {
			holds(event.Kv.ModRevision >= revision, "revision %d comes after %d", event.Kv.ModRevision, revision)
			holds(event.Kv.ModRevision <= answer.Header.Revision, "an event is newer than its header")
			revision = event.Kv.ModRevision
			texts = append(texts, text(event))
		}
	}
	equal("the number of events", len(texts), count)
	return texts
}

// watchError is the error of the next message.
func watchError(ctx context.Context, watch clientv3.WatchChan) error {
	answer := next(ctx, "the watch", watch)
	return answer.Err()
}

func text(event *clientv3.Event) string {
	text := event.Type.String() + " " + string(event.Kv.Key)
	if event.Type == mvccpb.Event_PUT {
		text += "=" + string(event.Kv.Value)
	}
	if event.PrevKv != nil {
		equal("the key before", string(event.PrevKv.Key), string(event.Kv.Key))
		text += " was " + string(event.PrevKv.Value)
	}
	return text
}
