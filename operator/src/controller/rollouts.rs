//! Fleet rollouts, one after the other. A new version of the operator, or a change of a backend, gives many objects a new
//! pod template at once; all their proxies going in one moment would bring all clients back to etcd in the next. What a
//! user changes about one object is not held up.
//!
//! The places are kept in memory: after a change of leader the new one may begin as many rollouts again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use kube::runtime::reflector::ObjectRef;
use tokio::sync::mpsc;

use crate::api::EtcdProxy;
use crate::plan::{Object, Plan};

/// Objects that are to be looked at because a place became free. When it is full, they are found by the usual look at
/// every object now and then.
const WAKES: usize = 1024;

pub struct Rollouts {
    /// How many of one group may be under way.
    limit: usize,
    /// Held for a few lookups only.
    groups: Mutex<BTreeMap<String, Group>>,
    wake: mpsc::Sender<ObjectRef<EtcdProxy>>,
}

/// Those that share an etcd, as far as the operator knows: a backend's, or else a namespace's.
#[derive(Default)]
struct Group {
    /// By namespace and name.
    running: BTreeSet<(String, String)>,
    waiting: BTreeSet<(String, String)>,
}

impl Rollouts {
    pub fn new(limit: usize) -> (Rollouts, mpsc::Receiver<ObjectRef<EtcdProxy>>) {
        let (wake, woken) = mpsc::channel(WAKES);
        (Rollouts { limit: limit.max(1), groups: Mutex::default(), wake }, woken)
    }

    /// Whether an object's rollout may begin now. If not, the object is looked at again when its turn comes.
    pub fn may_begin(&self, plan: &Plan) -> bool {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let group = groups.entry(group(plan)).or_default();
        let key = key(&plan.object);
        let first = group.waiting.first().is_none_or(|first| key <= *first);
        if group.running.contains(&key) || (group.running.len() < self.limit && first) {
            group.waiting.remove(&key);
            group.running.insert(key);
            return true;
        }
        let has_room = group.running.len() < self.limit;
        group.waiting.insert(key);
        if has_room {
            self.call(group);
        }
        false
    }

    /// An object's rollout is over, or there is nothing to roll out any more.
    pub fn ended(&self, object: &Object) {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let key = key(object);
        groups.retain(|_, group| {
            let ran = group.running.remove(&key);
            let waited = group.waiting.remove(&key);
            if (ran || waited) && group.running.len() < self.limit {
                self.call(group);
            }
            !group.running.is_empty() || !group.waiting.is_empty()
        });
    }

    /// Has the first of those that wait looked at.
    fn call(&self, group: &Group) {
        if let Some((namespace, name)) = group.waiting.first() {
            let _ = self.wake.try_send(ObjectRef::new(name).within(namespace));
        }
    }
}

fn group(plan: &Plan) -> String {
    match &plan.home.backend {
        Some((backend, _)) => format!("backend/{backend}"),
        None => format!("namespace/{}", plan.home.namespace),
    }
}

fn key(object: &Object) -> (String, String) {
    (object.namespace.clone(), object.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{self, Fetched, Settings};

    fn plan(name: &str) -> Plan {
        let text = format!(
            "{{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, metadata: {{name: {name}, namespace: team, uid: u}}, \
             spec: {{upstream: {{endpoints: ['http://a:1']}}}}}}"
        );
        let proxy = serde_yaml::from_str(&text).expect("it is written right");
        plan::check(&proxy, &Fetched::default(), &Settings::with_image("i")).expect("it is good")
    }

    #[test]
    fn one_rollout_follows_another_in_the_order_of_names() {
        let (rollouts, mut woken) = Rollouts::new(1);
        let (a, b, c) = (plan("a"), plan("b"), plan("c"));
        assert!(rollouts.may_begin(&b));
        assert!(!rollouts.may_begin(&c) && !rollouts.may_begin(&a));
        assert!(rollouts.may_begin(&b), "one that is under way may go on");
        rollouts.ended(&b.object);
        assert_eq!(woken.try_recv().expect("somebody is called").name, "a");
        assert!(!rollouts.may_begin(&c), "the first in order comes first");
        assert!(rollouts.may_begin(&a));
        rollouts.ended(&a.object);
        while woken.try_recv().is_ok_and(|called| called.name != "c") {}
        assert!(rollouts.may_begin(&c));
    }

    #[test]
    fn one_that_goes_while_it_waits_holds_nobody_up() {
        let (rollouts, mut woken) = Rollouts::new(1);
        let (a, b, c) = (plan("a"), plan("b"), plan("c"));
        assert!(rollouts.may_begin(&a) && !rollouts.may_begin(&b) && !rollouts.may_begin(&c));
        rollouts.ended(&b.object);
        rollouts.ended(&a.object);
        assert_eq!(woken.try_recv().expect("somebody is called").name, "c");
    }
}
