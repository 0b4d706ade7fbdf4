//! A kube-apiserver that keeps its objects in a namespace of a shared etcd, behind two proxies under the tenant profile:
//! the most demanding client that etcd has. It starts, answers consistent lists from its own cache, streams lists, and
//! loses nothing while proxies and members die under it.

mod things;
mod watcher;

use std::sync::atomic::{AtomicUsize, Ordering};

use etcd_proxy_e2e::{ApiServer, Etcd, Proxy, ports};
use things::{COUNT, Things};
use watcher::Watcher;

const NAMESPACE: &str = "clusters/one/";

/// Asked one after the other: each makes the server ask etcd how far it is, and wait for its cache to be there.
const LISTS: usize = 30;

/// Threads that create and delete.
const WORKERS: usize = 4;

fn proxy(etcd: &Etcd, address: &str) -> Proxy {
    let builder = Proxy::builder().flags(["--api-profile=tenant", "--api-compact=ignore"]);
    let builder = builder.flag(format!("--namespace={NAMESPACE}")).flag(format!("--listen-addr={address}"));
    builder.flag(format!("--endpoints={}", etcd.endpoints())).start()
}

/// Consistent lists that were served from the cache, and those for which etcd had to be read.
fn consistent_lists(server: &ApiServer) -> (f64, f64) {
    let count = |fallback: &str| {
        let labels = ["resource=\"things\"", fallback];
        server.metric("apiserver_watch_cache_consistent_read_total", &labels)
    };
    (count("fallback=\"false\""), count("fallback=\"true\""))
}

#[test]
fn an_apiserver_lives_in_a_namespace_and_loses_nothing_while_proxies_and_members_die() {
    let mut etcd = Etcd::builder().members(3).start();
    etcd.etcdctl().ok(&["put", "clusters/two/registry/secrets/theirs", "secret"]);
    let addresses = [ports::free_address(), ports::free_address()];
    let mut proxies = addresses.each_ref().map(|address| Some(proxy(&etcd, address)));
    let servers = addresses.each_ref().map(|address| format!("http://{address}")).join(",");
    // Compaction is due every five minutes; nobody wants to wait for it here.
    let server = ApiServer::start(&servers, &["--etcd-compaction-interval=5s"]);
    let things = Things::define(&server);

    // A list that comes as a watch, and goes on as one for the rest of the test.
    let early: Vec<String> = (0..10).map(|index| format!("early-{index}")).collect();
    early.iter().for_each(|name| things.create(name));
    let watcher = Watcher::start(server.address(), things.path());
    assert_eq!(watcher.listed(), early, "what is there comes first, and then the bookmark that says so");

    let before = consistent_lists(&server);
    for _ in 0..LISTS {
        assert_eq!(things.names().len(), early.len());
    }
    let after = consistent_lists(&server);
    assert_eq!((after.0 - before.0) as usize, LISTS, "each list is served from the cache");
    assert_eq!(after.1, 0.0, "none had to be read from etcd");

    // A thousand objects come while the first proxy and etcd's leader are killed.
    let names: Vec<String> = (0..COUNT).map(|index| format!("thing-{index:04}")).collect();
    let leader = etcd.leader();
    for_each_while(
        &names,
        |name| things.create(name),
        |done| match done {
            200 => proxies[0] = None,
            400 => etcd.member(leader).kill(),
            600 => proxies[0] = Some(proxy(&etcd, &addresses[0])),
            800 => etcd.member(leader).restart(),
            _ => (),
        },
    );
    let mut expected: Vec<String> = early.iter().chain(&names).cloned().collect();
    expected.sort();
    same(&things.names(), &expected, "a consistent list holds them all");
    same(&things.keys(&etcd, NAMESPACE), &expected, "and so does etcd");
    watcher.until(|seen| expected.iter().all(|name| seen.added(name) == 1));

    // They go while the other proxy and another member are killed.
    let leader = etcd.leader();
    for_each_while(
        &names,
        |name| things.delete(name),
        |done| match done {
            200 => proxies[1] = None,
            400 => etcd.member(leader).kill(),
            600 => proxies[1] = Some(proxy(&etcd, &addresses[1])),
            800 => etcd.member(leader).restart(),
            _ => (),
        },
    );
    same(&things.names(), &early, "a consistent list holds what stayed");
    same(&things.keys(&etcd, NAMESPACE), &early, "and so does etcd");
    let seen = watcher.until(|seen| names.iter().all(|name| seen.deleted(name) == 1));
    assert!(expected.iter().all(|name| seen.added(name) == 1), "nothing came twice");
    assert_eq!(seen.others(), Vec::<String>::new(), "nothing else came");

    // After all of that, lists come from the cache as before.
    let before = consistent_lists(&server);
    assert_eq!(things.names().len(), early.len());
    let after = consistent_lists(&server);
    assert_eq!((after.0 - before.0, after.1 - before.1), (1.0, 0.0));

    things.undefine(&server);
    assert_eq!(things.keys(&etcd, NAMESPACE), Vec::<String>::new(), "with their definition the last ones go");
    let keys = etcd.etcdctl().ok(&["get", "", "--from-key", "--keys-only"]);
    let outside = |key: &&str| !key.is_empty() && !key.starts_with(NAMESPACE);
    let outside: Vec<&str> = keys.lines().filter(outside).collect();
    assert_eq!(outside, ["clusters/two/registry/secrets/theirs"], "the server wrote into its namespace only");
    // The proxies answered its compactions and did none, since the neighbours' history would have gone as well.
    assert!(keys.contains(&format!("{NAMESPACE}compact_rev_key")), "the server has compacted, as far as it knows");
    etcd.etcdctl().ok(&["get", "clusters/", "--prefix", "--rev=2"]);
}

/// Compares sorted names, and shows no thousand of them.
fn same(found: &[String], wanted: &[String], what: &str) {
    let lost = wanted.iter().find(|name| !found.contains(name));
    let extra = found.iter().find(|name| !wanted.contains(name));
    assert!(
        found == wanted,
        "{what}: {} of {}, first lost {lost:?}, first unasked {extra:?}",
        found.len(),
        wanted.len()
    );
}

/// Does `work` for all names with several threads, and `between` with the count of those done, each count once.
fn for_each_while(names: &[String], work: impl Fn(&str) + Sync, mut between: impl FnMut(usize)) {
    let next = AtomicUsize::new(0);
    let (sender, done) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            let (next, work, sender) = (&next, &work, sender.clone());
            scope.spawn(move || {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(name);
                    sender.send(()).expect("the main thread counts to the end");
                }
            });
        }
        drop(sender);
        for (count, ()) in done.iter().enumerate() {
            between(count + 1);
        }
    });
}
