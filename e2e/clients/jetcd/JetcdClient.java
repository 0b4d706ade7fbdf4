// The Java client, jetcd, through the proxy. One line on stdout per check that held; on the first that does not, a
// sentence on stderr and exit code 1.
//
// The environment says where things are: PROXY and ETCD are addresses (host:port, ETCD several with commas), CA, CERT
// and KEY are PEM files, and NAMESPACE is the prefix that the proxy puts before every key.

import io.etcd.jetcd.ByteSequence;
import io.etcd.jetcd.Client;
import io.etcd.jetcd.Election;
import io.etcd.jetcd.KeyValue;
import io.etcd.jetcd.Response;
import io.etcd.jetcd.Txn;
import io.etcd.jetcd.Watch;
import io.etcd.jetcd.common.exception.CompactedException;
import io.etcd.jetcd.election.CampaignResponse;
import io.etcd.jetcd.election.LeaderResponse;
import io.etcd.jetcd.election.NoLeaderException;
import io.etcd.jetcd.lease.LeaseKeepAliveResponse;
import io.etcd.jetcd.op.Cmp;
import io.etcd.jetcd.op.CmpTarget;
import io.etcd.jetcd.op.Op;
import io.etcd.jetcd.options.DeleteOption;
import io.etcd.jetcd.options.GetOption;
import io.etcd.jetcd.options.LeaseOption;
import io.etcd.jetcd.options.PutOption;
import io.etcd.jetcd.options.WatchOption;
import io.etcd.jetcd.support.CloseableClient;
import io.etcd.jetcd.watch.WatchEvent;
import io.etcd.jetcd.watch.WatchResponse;
import io.grpc.stub.StreamObserver;
import io.netty.handler.ssl.ApplicationProtocolConfig;
import java.io.File;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

public final class JetcdClient {
    /** Bounds one wait. It only has to be longer than a loaded two-core machine needs. */
    private static final long PATIENCE_SECONDS = 40;

    /** The shortest time that a cluster with etcd's default election timeout grants. */
    private static final long TTL_SECONDS = 2;

    private static final String NAMESPACE = setting("NAMESPACE");

    private final Client proxy = client(setting("PROXY"));
    private final Client etcd = client(setting("ETCD"));

    public static void main(String[] arguments) {
        JetcdClient checks = new JetcdClient();
        run("keys are put, read and deleted below the namespace", checks::keys);
        run("transactions compare and act below the namespace", checks::transactions);
        run("a watch tells every change of its range and no other", checks::watches);
        run("a progress request is answered", checks::progress);
        run("what was compacted is refused to watches, with the revision that is left", checks::compaction);
        run("a lease shows its keys, outlives its time while it is kept, and takes its keys with it", checks::leases);
        run("a lock of the server keeps the next one waiting until it is freed", checks::locks);
        run("an election of the server has one leader, and observers see each", checks::elections);
        run("errors are those of etcd", checks::errors);
        System.exit(0);
    }

    // === the checks ===

    private void keys() throws Exception {
        long revision = get(proxy.getKVClient().put(bytes("kv/a"), bytes("1"))).getHeader().getRevision();
        get(proxy.getKVClient().put(bytes("kv/b"), bytes("2")));
        get(etcd.getKVClient().put(bytes("kv/c"), bytes("outside")));
        equal("the value in etcd", direct("kv/a"), "1");
        GetOption prefix = GetOption.builder().isPrefix(true).withSortField(GetOption.SortTarget.KEY)
            .withSortOrder(GetOption.SortOrder.DESCEND).build();
        equal("the keys", texts(get(proxy.getKVClient().get(bytes("kv/"), prefix)).getKvs()), List.of("kv/b=2", "kv/a=1"));
        GetOption all = GetOption.builder().withRange(bytes("\0")).withCountOnly(true).build();
        equal("the count of all", get(proxy.getKVClient().get(bytes("\0"), all)).getCount(), 2L);

        var again = get(proxy.getKVClient().put(bytes("kv/a"), bytes("3"), PutOption.builder().withPrevKV().build()));
        equal("the previous", text(again.getPrevKv()), "kv/a=1");
        GetOption old = GetOption.builder().withRevision(revision).build();
        equal("the old value", texts(get(proxy.getKVClient().get(bytes("kv/a"), old)).getKvs()), List.of("kv/a=1"));
        DeleteOption delete = DeleteOption.builder().isPrefix(true).withPrevKV(true).build();
        equal("the deleted", texts(get(proxy.getKVClient().delete(bytes("kv/"), delete)).getPrevKvs()), List.of("kv/a=3", "kv/b=2"));
        equal("the stranger", get(etcd.getKVClient().get(bytes("kv/c"))).getCount(), 1L);
    }

    private void transactions() throws Exception {
        Cmp absent = new Cmp(bytes("txn/a"), Cmp.Op.EQUAL, CmpTarget.createRevision(0));
        Txn first = proxy.getKVClient().txn().If(absent)
            .Then(Op.put(bytes("txn/a"), bytes("1"), PutOption.DEFAULT), Op.get(bytes("txn/a"), GetOption.DEFAULT));
        var won = get(first.commit());
        holds(won.isSucceeded(), "the key is new and the comparison failed");
        equal("the key that was read", text(won.getGetResponses().get(0).getKvs().get(0)), "txn/a=1");
        equal("the value in etcd", direct("txn/a"), "1");
        Txn second = proxy.getKVClient().txn().If(absent).Then(Op.put(bytes("txn/a"), bytes("2"), PutOption.DEFAULT))
            .Else(Op.delete(bytes("txn/a"), DeleteOption.builder().withPrevKV(true).build()));
        var lost = get(second.commit());
        holds(!lost.isSucceeded(), "the key is there and the comparison failed to see it");
        equal("the deleted", text(lost.getDeleteResponses().get(0).getPrevKvs().get(0)), "txn/a=1");
    }

    private void watches() throws Exception {
        Watched watched = watch("w/", WatchOption.builder().isPrefix(true).withPrevKV(true).withCreateNotify(true).build());
        holds(watched.next().isCreatedNotify(), "the first message does not say that the watch is created");
        get(etcd.getKVClient().put(bytes("w/a"), bytes("outside")));
        get(etcd.getKVClient().put(bytes(NAMESPACE + "w/a"), bytes("1")));
        get(proxy.getKVClient().put(bytes("w/a"), bytes("2")));
        long last = get(proxy.getKVClient().delete(bytes("w/a"))).getHeader().getRevision();
        equal("the events", watched.events(3), List.of("PUT w/a=1", "PUT w/a=2 was 1", "DELETE w/a was 2"));
        watched.close();

        Watched replayed = watch("w/a", WatchOption.builder().withRevision(last - 1).withNoDelete(true).build());
        equal("the replayed", replayed.events(1), List.of("PUT w/a=2"));
        replayed.close();
    }

    private void progress() throws Exception {
        Watched watched = watch("progress", WatchOption.builder().withCreateNotify(true).build());
        holds(watched.next().isCreatedNotify(), "the first message does not say that the watch is created");
        watched.client.requestProgress();
        WatchResponse answer = watched.next();
        holds(answer.isProgressNotify(), "the answer is no progress: " + answer);
        holds(answer.getHeader().getRevision() > 0, "the progress has no revision");
        watched.close();
    }

    private void compaction() throws Exception {
        long first = get(proxy.getKVClient().put(bytes("compact"), bytes("1"))).getHeader().getRevision();
        long last = get(proxy.getKVClient().put(bytes("compact"), bytes("2"))).getHeader().getRevision();
        get(proxy.getKVClient().compact(last));
        Throwable error = watch("compact", WatchOption.builder().withRevision(first).build()).failure();
        holds(error instanceof CompactedException, "the error is no compaction: " + error);
        equal("the revision that is left", ((CompactedException) error).getCompactedRevision(), last);
    }

    private void leases() throws Exception {
        long lease = get(proxy.getLeaseClient().grant(TTL_SECONDS)).getID();
        PutOption leased = PutOption.builder().withLeaseId(lease).build();
        get(proxy.getKVClient().put(bytes("leased"), bytes("1"), leased));
        var left = get(proxy.getLeaseClient().timeToLive(lease, LeaseOption.builder().withAttachedKeys().build()));
        equal("the keys", left.getKeys(), List.of(bytes("leased")));
        equal("the time", left.getGrantedTTL(), TTL_SECONDS);
        Watched watched = watch("leased", WatchOption.builder().withCreateNotify(true).build());
        holds(watched.next().isCreatedNotify(), "the first message does not say that the watch is created");

        BlockingQueue<Object> answers = new LinkedBlockingQueue<>();
        CloseableClient keeper = proxy.getLeaseClient().keepAlive(lease, new StreamObserver<LeaseKeepAliveResponse>() {
            @Override public void onNext(LeaseKeepAliveResponse answer) { answers.add(answer.getTTL()); }
            @Override public void onError(Throwable error) { answers.add(error); }
            @Override public void onCompleted() { answers.add("completed"); }
        });
        // jetcd asks every third of the time, so this is more than twice the time.
        for (int answer = 0; answer < 7; answer++) {
            equal("the kept time", take(answers, "the keep-alive"), TTL_SECONDS);
        }
        equal("the value in etcd", direct("leased"), "1");
        keeper.close();
        equal("the event", watched.events(1), List.of("DELETE leased"));
        watched.close();

        long revoked = get(proxy.getLeaseClient().grant(60)).getID();
        equal("the time", get(proxy.getLeaseClient().keepAliveOnce(revoked)).getTTL(), 60L);
        get(proxy.getLeaseClient().revoke(revoked));
        equal("the time that is left", get(proxy.getLeaseClient().timeToLive(revoked, LeaseOption.DEFAULT)).getTTL(), -1L);
    }

    private void locks() throws Exception {
        long mine = get(proxy.getLeaseClient().grant(60)).getID();
        long theirs = get(proxy.getLeaseClient().grant(60)).getID();
        ByteSequence held = get(proxy.getLockClient().lock(bytes("locked"), mine)).getKey();
        holds(held.toString().startsWith("locked/"), "the lock's key is " + held);
        equal("the lease in etcd", get(etcd.getKVClient().get(bytes(NAMESPACE + held))).getKvs().get(0).getLease(), mine);
        var waiting = proxy.getLockClient().lock(bytes("locked"), theirs);
        // The rival waits once its key is there beside ours.
        GetOption count = GetOption.builder().isPrefix(true).withCountOnly(true).build();
        while (get(etcd.getKVClient().get(bytes(NAMESPACE + "locked/"), count)).getCount() < 2) {
            Thread.onSpinWait();
        }
        holds(!waiting.isDone(), "two hold the lock");
        get(proxy.getLockClient().unlock(held));
        ByteSequence next = get(waiting).getKey();
        holds(!next.equals(held), "both have the same key");
        // The end of a lease frees its lock too.
        get(proxy.getLeaseClient().revoke(theirs));
        equal("the holders in etcd", get(etcd.getKVClient().get(bytes(NAMESPACE + "locked/"), count)).getCount(), 0L);
    }

    private void elections() throws Exception {
        long lease = get(proxy.getLeaseClient().grant(60)).getID();
        Throwable nobody = failure(proxy.getElectionClient().leader(bytes("elected")));
        holds(nobody instanceof NoLeaderException, "the error is " + nobody);
        BlockingQueue<Object> leaders = new LinkedBlockingQueue<>();
        proxy.getElectionClient().observe(bytes("elected"), new Election.Listener() {
            @Override public void onNext(LeaderResponse answer) { leaders.add(text(answer.getKv())); }
            @Override public void onError(Throwable error) { leaders.add(error); }
            @Override public void onCompleted() { leaders.add("completed"); }
        });
        CampaignResponse won = get(proxy.getElectionClient().campaign(bytes("elected"), lease, bytes("me")));
        String key = won.getLeader().getKey().toString();
        equal("the name", won.getLeader().getName().toString(), "elected");
        holds(key.startsWith("elected/"), "the leader's key is " + key);
        equal("the leader in etcd", direct(key), "me");
        equal("the observed", take(leaders, "the observer"), key + "=me");
        get(proxy.getElectionClient().proclaim(won.getLeader(), bytes("still me")));
        equal("the observed", take(leaders, "the observer"), key + "=still me");
        equal("the leader", text(get(proxy.getElectionClient().leader(bytes("elected"))).getKv()), key + "=still me");
        get(proxy.getElectionClient().resign(won.getLeader()));
        equal("the keys in etcd", get(etcd.getKVClient().get(bytes(NAMESPACE + key))).getCount(), 0L);
    }

    private void errors() throws Exception {
        refused(proxy.getKVClient().put(bytes(""), bytes("v")), "etcdserver: key is not provided");
        GetOption future = GetOption.builder().withRevision(1L << 40).build();
        refused(proxy.getKVClient().get(bytes("kv/a"), future), "etcdserver: mvcc: required revision is a future revision");
        PutOption leased = PutOption.builder().withLeaseId(4711).build();
        refused(proxy.getKVClient().put(bytes("kv/a"), bytes("v"), leased), "etcdserver: requested lease not found");
        refused(proxy.getLeaseClient().revoke(4711), "etcdserver: requested lease not found");
    }

    // === what the checks are made of ===

    private interface Check {
        void run() throws Exception;
    }

    private static void run(String proves, Check check) {
        try {
            check.run();
        } catch (Throwable failure) {
            System.err.println("FAILED " + proves + ": " + failure);
            failure.printStackTrace();
            System.exit(1);
        }
        System.out.println("ok " + proves);
    }

    private static String setting(String name) {
        String value = System.getenv(name);
        if (value == null || value.isEmpty()) {
            System.err.println("the environment variable " + name + " is missing");
            System.exit(2);
        }
        return value;
    }

    private static Client client(String addresses) {
        try {
            List<URI> endpoints = Arrays.stream(addresses.split(",")).map(address -> URI.create("https://" + address)).toList();
            var http2 = new ApplicationProtocolConfig(ApplicationProtocolConfig.Protocol.ALPN,
                ApplicationProtocolConfig.SelectorFailureBehavior.NO_ADVERTISE,
                ApplicationProtocolConfig.SelectedListenerFailureBehavior.ACCEPT, "h2");
            return Client.builder().endpoints(endpoints).authority("localhost")
                .sslContext(tls -> tls.applicationProtocolConfig(http2).trustManager(new File(setting("CA")))
                    .keyManager(new File(setting("CERT")), new File(setting("KEY"))))
                .build();
        } catch (Exception error) {
            throw new IllegalStateException("no client can be made", error);
        }
    }

    /** A watch whose answers wait in a queue. */
    private final class Watched implements Watch.Listener {
        private final BlockingQueue<Object> answers = new LinkedBlockingQueue<>();
        private final Watch client = proxy.getWatchClient();
        private Watch.Watcher watcher;

        @Override public void onNext(WatchResponse answer) { answers.add(answer); }

        @Override public void onError(Throwable error) { answers.add(error); }

        @Override public void onCompleted() { answers.add("completed"); }

        WatchResponse next() throws Exception {
            Object answer = take(answers, "the watch");
            holds(answer instanceof WatchResponse, "the watch ended: " + answer);
            return (WatchResponse) answer;
        }

        Throwable failure() throws Exception {
            Object answer = take(answers, "the watch");
            holds(answer instanceof Throwable, "the watch did not fail: " + answer);
            return (Throwable) answer;
        }

        List<String> events(int count) throws Exception {
            List<String> texts = new ArrayList<>();
            while (texts.size() < count) {
                for (WatchEvent event : next().getEvents()) {
                    boolean put = event.getEventType() == WatchEvent.EventType.PUT;
                    String text = event.getEventType() + " " + (put ? text(event.getKeyValue()) : event.getKeyValue().getKey());
                    KeyValue before = event.getPrevKV();
                    texts.add(before.getModRevision() == 0 ? text : text + " was " + before.getValue());
                }
            }
            return texts;
        }

        void close() { watcher.close(); }
    }

    private Watched watch(String key, WatchOption option) {
        Watched watched = new Watched();
        watched.watcher = watched.client.watch(bytes(key), option, watched);
        return watched;
    }

    private String direct(String key) throws Exception {
        List<KeyValue> found = get(etcd.getKVClient().get(bytes(NAMESPACE + key))).getKvs();
        holds(found.size() == 1, "etcd has no key " + NAMESPACE + key);
        return found.get(0).getValue().toString();
    }

    private static <T> T get(CompletableFuture<T> future) throws Exception {
        return future.get(PATIENCE_SECONDS, TimeUnit.SECONDS);
    }

    private static Throwable failure(CompletableFuture<?> future) throws Exception {
        try {
            throw new AssertionError("an answer where an error should be: " + get(future));
        } catch (ExecutionException error) {
            return error.getCause();
        }
    }

    private static void refused(CompletableFuture<? extends Response> future, String text) throws Exception {
        Throwable error = failure(future);
        holds(error.getMessage().endsWith(text), "the error is \"" + error.getMessage() + "\" and should be \"" + text + "\"");
    }

    private static Object take(BlockingQueue<Object> queue, String what) throws Exception {
        Object item = queue.poll(PATIENCE_SECONDS, TimeUnit.SECONDS);
        holds(item != null, what + " brought nothing");
        return item;
    }

    private static ByteSequence bytes(String text) { return ByteSequence.from(text, StandardCharsets.UTF_8); }

    private static String text(KeyValue kv) { return kv.getKey() + "=" + kv.getValue(); }

    private static List<String> texts(List<KeyValue> kvs) { return kvs.stream().map(JetcdClient::text).toList(); }

    private static void equal(String what, Object got, Object want) {
        holds(Objects.equals(got, want), what + " is " + got + " and should be " + want);
    }

    private static void holds(boolean condition, String failure) {
        if (!condition) {
            throw new AssertionError(failure);
        }
    }
}
