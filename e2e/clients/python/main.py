"""The Python client, etcd-sdk-python, through the proxy. One line on stdout per check that held; on the first that does
not, a sentence on stderr and exit code 1.

The environment says where things are: PROXY and ETCD are addresses (host:port, ETCD several with commas), CA, CERT and
KEY are PEM files, and NAMESPACE is the prefix that the proxy puts before every key.
"""

import faulthandler
import os
import sys
import threading
import time
import traceback

import grpc
import pyetcd
from pyetcd import events, exceptions

# Bounds one check. It only has to be longer than a loaded two-core machine needs.
PATIENCE_SECONDS = 40

# The shortest that a cluster with etcd's default election timeout grants.
TTL_SECONDS = 2

NAMESPACE = os.environ["NAMESPACE"]


def client(address):
    host, port = address.split(":")
    return pyetcd.client(
        host=host,
        port=int(port),
        ca_cert=os.environ["CA"],
        cert_cert=os.environ["CERT"],
        cert_key=os.environ["KEY"],
        timeout=PATIENCE_SECONDS,
    )


proxy = client(os.environ["PROXY"])
etcd = client(os.environ["ETCD"].split(",")[0])


# === the checks ===


def keys_are_put_read_and_deleted_below_the_namespace():
    proxy.put("kv/a", "1")
    proxy.put("kv/b", "2")
    etcd.put("kv/c", "outside")
    equal("the value in etcd", direct("kv/a"), b"1")
    found = [(kv.key, value) for value, kv in proxy.get_prefix("kv/", sort_order="descend", sort_target="key")]
    equal("the keys", found, [(b"kv/b", b"2"), (b"kv/a", b"1")])
    equal("all keys", [kv.key for _, kv in proxy.get_all()], [b"kv/a", b"kv/b"])
    previous = proxy.put("kv/a", "3", prev_kv=True).prev_kv
    equal("the previous", (previous.key, previous.value), (b"kv/a", b"1"))
    equal("a new key is put", proxy.put_if_not_exists("kv/d", "4"), True)
    equal("an old key is put", proxy.put_if_not_exists("kv/d", "5"), False)
    equal("a value is replaced", proxy.replace("kv/d", "4", "6"), True)
    equal("the value in etcd", direct("kv/d"), b"6")
    equal("the deleted", proxy.delete_prefix("kv/").deleted, 3)
    equal("the stranger", etcd.get("kv/c")[0], b"outside")


def transactions_compare_and_act_below_the_namespace():
    def create():
        of = proxy.transactions
        return proxy.transaction(
            compare=[of.create("txn/a") == 0, of.version("txn/a") < 1],
            success=[of.put("txn/a", "1"), of.get("txn/a")],
            failure=[of.get("txn/a"), of.delete("txn/a")],
        )

    succeeded, answers = create()
    equal("the first succeeds", succeeded, True)
    equal("the key that was read", [(kv.key, value) for value, kv in answers[1]], [(b"txn/a", b"1")])
    equal("the value in etcd", direct("txn/a"), b"1")
    succeeded, answers = create()
    equal("the second succeeds", succeeded, False)
    equal("the key that was read", [(kv.key, value) for value, kv in answers[0]], [(b"txn/a", b"1")])
    equal("the key in etcd", etcd.get(NAMESPACE + "txn/a")[0], None)


def a_watch_tells_every_change_of_its_range_and_no_other():
    watched, cancel = proxy.watch_prefix("w/", prev_kv=True)
    etcd.put("w/a", "outside")
    etcd.put(NAMESPACE + "w/a", "1")
    revision = proxy.put("w/a", "2").header.revision
    proxy.delete("w/a")
    equal("the events", take(watched, 3), ["put w/a=1", "put w/a=2 was 1", "delete w/a was 2"])
    cancel()
    equal("the rest", take(watched, 1), [])

    replayed, cancel = proxy.watch("w/a", start_revision=revision)
    equal("the replayed", take(replayed, 2), ["put w/a=2", "delete w/a"])
    cancel()


def many_watches_on_one_stream_each_get_each_event():
    watches = [proxy.watch("many") for _ in range(30)]
    for value in ("1", "2", "3"):
        proxy.put("many", value)
    for watched, cancel in watches:
        equal("the events", take(watched, 3), ["put many=1", "put many=2", "put many=3"])
        cancel()


def what_was_compacted_is_refused_to_watches_with_the_revision_that_is_left():
    first = proxy.put("compact", "1").header.revision
    last = proxy.put("compact", "2").header.revision
    proxy.compact(last)
    watched, _ = proxy.watch("compact", start_revision=first)
    try:
        fail(f"a compacted watch brought {next(watched)}")
    except exceptions.RevisionCompactedError as error:
        equal("the revision that is left", error.compacted_revision, last)


def a_lease_shows_its_keys_outlives_its_time_while_it_is_kept_and_takes_its_keys_with_it():
    lease = proxy.lease(TTL_SECONDS)
    proxy.put("leased", "1", lease=lease)
    equal("the keys", list(lease.keys), [b"leased"])
    equal("the granted time", lease.granted_ttl, TTL_SECONDS)
    watched, cancel = proxy.watch("leased")
    started = time.monotonic()
    while time.monotonic() < started + 2 * TTL_SECONDS:
        answers = lease.refresh()
        equal("the kept times", [answer.TTL for answer in answers], [TTL_SECONDS])
        time.sleep(TTL_SECONDS / 3)
    equal("the value in etcd", direct("leased"), b"1")
    equal("the event", take(watched, 1), ["delete leased"])
    cancel()
    equal("the time that is left", lease.remaining_ttl, -1)
    # One that is gone has no time.
    equal("the kept times", [answer.TTL for answer in lease.refresh()], [0])


def a_lease_that_is_revoked_takes_its_keys_with_it():
    lease = proxy.lease(60)
    proxy.put("revoked", "1", lease=lease)
    lease.revoke()
    equal("the key in etcd", etcd.get(NAMESPACE + "revoked")[0], None)


def a_lock_keeps_the_next_one_waiting_until_it_is_freed():
    mine, theirs = proxy.lock("locked", ttl=60), proxy.lock("locked", ttl=60)
    equal("the lock is acquired", mine.acquire(), True)
    equal("the holder in etcd", direct("/locks/locked"), mine.uuid)
    equal("a rival that does not wait acquires", theirs.acquire(timeout=0), False)
    acquired = []
    waiting = threading.Thread(target=lambda: acquired.append(theirs.acquire(timeout=PATIENCE_SECONDS)), daemon=True)
    waiting.start()
    equal("the lock is released", mine.release(), True)
    waiting.join(PATIENCE_SECONDS)
    equal("the rival acquires", acquired, [True])
    equal("the holder in etcd", direct("/locks/locked"), theirs.uuid)
    theirs.release()


def the_cluster_is_told():
    holds(len(list(proxy.members)) > 0, "there is no member")
    status = proxy.status()
    holds(status.version.startswith("3."), f"the version is {status.version}")


def errors_are_those_of_etcd():
    for text, call in {
        "etcdserver: key is not provided": lambda: proxy.put("", "v"),
        "etcdserver: requested lease not found": lambda: proxy.put("kv/a", "v", lease=4711),
    }.items():
        try:
            fail(f"an answer where an error should be: {call()}")
        except grpc.RpcError as error:
            equal("the error", error.details(), text)


CHECKS = [
    keys_are_put_read_and_deleted_below_the_namespace,
    transactions_compare_and_act_below_the_namespace,
    a_watch_tells_every_change_of_its_range_and_no_other,
    many_watches_on_one_stream_each_get_each_event,
    what_was_compacted_is_refused_to_watches_with_the_revision_that_is_left,
    a_lease_shows_its_keys_outlives_its_time_while_it_is_kept_and_takes_its_keys_with_it,
    a_lease_that_is_revoked_takes_its_keys_with_it,
    a_lock_keeps_the_next_one_waiting_until_it_is_freed,
    the_cluster_is_told,
    errors_are_those_of_etcd,
]


# === what the checks are made of ===


def direct(key):
    value, _ = etcd.get(NAMESPACE + key)
    holds(value is not None, f"etcd has no key {NAMESPACE}{key}")
    return value


def take(watched, count):
    """The next events; fewer when the watch ends before."""
    texts = []
    for event in watched:
        text = f"delete {event.key.decode()}"
        if isinstance(event, events.PutEvent):
            text = f"put {event.key.decode()}={event.value.decode()}"
        if event.prev_value:
            text += f" was {event.prev_value.decode()}"
        texts.append(text)
        if len(texts) == count:
            break
    return texts


def equal(what, got, want):
    holds(got == want, f"{what}: {got!r}, and should be {want!r}")


def holds(condition, failure):
    if not condition:
        fail(failure)


def fail(failure):
    raise AssertionError(failure)


for check in CHECKS:
    proves = check.__name__.replace("_", " ")
    # A check that hangs ends the program with the place where it hangs.
    faulthandler.dump_traceback_later(2 * PATIENCE_SECONDS, exit=True)
    try:
        check()
    except Exception as error:
        traceback.print_exc()
        print(f"FAILED {proves}: {error}", file=sys.stderr)
        sys.exit(1)
    print(f"ok {proves}", flush=True)
faulthandler.cancel_dump_traceback_later()
proxy.close()
etcd.close()
