//! The conditions of an object: which there are, when they turn, and what an event says of it. Pure but for the clock
//! that is handed in.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use crate::api::Condition;

pub const ACCEPTED: &str = "Accepted";
pub const RESOLVED: &str = "ResolvedRefs";
pub const PROGRAMMED: &str = "Programmed";
pub const READY: &str = "Ready";
/// A certificate that somebody must renew; there only while it is so.
pub const EXPIRING: &str = "CertificateExpiring";
const RECONCILING: &str = "Reconciling";
const STALLED: &str = "Stalled";

/// A statement, before it has a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub kind: &'static str,
    pub status: Status,
    pub reason: &'static str,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    True,
    False,
    Unknown,
}

impl Status {
    fn text(self) -> &'static str {
        match self {
            Status::True => "True",
            Status::False => "False",
            Status::Unknown => "Unknown",
        }
    }
}

pub fn said(kind: &'static str, status: Status, reason: &'static str, message: impl Into<String>) -> Said {
    Said { kind, status, reason, message: message.into() }
}

/// What the stages said, with the summary and what kstatus reads. Stages that were not reached are unknown.
pub fn summarize(mut said: Vec<Said>, workload: Option<Said>, stalled: bool) -> Vec<Said> {
    for kind in [ACCEPTED, RESOLVED, PROGRAMMED] {
        if !said.iter().any(|one| one.kind == kind) {
            said.push(self::said(kind, Status::Unknown, "Pending", "an earlier condition is not met"));
        }
    }
    let failed = said.iter().find(|one| one.status == Status::False).cloned();
    let ready = match (failed, workload) {
        (Some(failed), _) => Said { kind: READY, ..failed },
        (None, Some(workload)) => workload,
        (None, None) => self::said(READY, Status::Unknown, "Pending", "nothing is known of the pods yet"),
    };
    if stalled {
        said.push(Said { kind: STALLED, status: Status::True, ..ready.clone() });
    } else if ready.status != Status::True || said.iter().any(|one| one.reason == "RolloutQueued") {
        said.push(Said { kind: RECONCILING, status: Status::True, ..ready.clone() });
    }
    said.push(ready);
    said
}

/// Gives each statement its time: a status that has not turned keeps the time at which it did.
pub fn stamp(said: Vec<Said>, before: &[Condition], generation: Option<i64>, now: &Time) -> Vec<Condition> {
    let stamp = |said: Said| {
        let same = before.iter().find(|old| old.kind == said.kind && old.status == said.status.text());
        Condition {
            kind: said.kind.to_owned(),
            status: said.status.text().to_owned(),
            observed_generation: generation,
            last_transition_time: same.map_or(now, |old| &old.last_transition_time).clone(),
            reason: said.reason.to_owned(),
            message: said.message,
        }
    };
    said.into_iter().map(stamp).collect()
}

/// The conditions that deserve an event: those whose status or reason turned, once for each reason, and of the good ones
/// only that everything is ready.
pub fn turned<'a>(before: &[Condition], after: &'a [Condition]) -> Vec<&'a Condition> {
    let mut turned: Vec<&Condition> = Vec::new();
    for condition in after {
        let known = before
            .iter()
            .any(|old| old.kind == condition.kind && old.status == condition.status && old.reason == condition.reason);
        let tells = match condition.kind.as_str() {
            READY => condition.status == "True" || TELLING.contains(&condition.reason.as_str()),
            EXPIRING => true,
            ACCEPTED | RESOLVED | PROGRAMMED => condition.status == "False",
            _ => false,
        };
        if tells && !known {
            turned.push(condition);
        }
    }
    turned
}

/// Reasons for which pods are not ready and somebody must do something.
const TELLING: [&str; 3] = ["ForeignClaim", "UpstreamUnavailable", "QuotaExceeded"];

/// For how long a condition has been false; nothing if it is not. A clock that was put back makes it none.
pub fn false_for(conditions: &[Condition], kind: &str, now: Timestamp) -> Option<Duration> {
    let found = conditions.iter().find(|one| one.kind == kind && one.status == "False")?;
    let seconds = now.as_second().saturating_sub(found.last_transition_time.0.as_second());
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// What a workload's status comes to.
pub fn workload(live: Option<&Value>) -> Said {
    let Some(live) = live else {
        return said(READY, Status::False, "MinimumReplicasUnavailable", "the workload is gone");
    };
    let status = &live["status"];
    let number = |key: &str| status[key].as_i64().unwrap_or(0);
    let counts = Counts::of(live);
    let Counts { desired, updated, available, .. } = counts;
    let mut conditions = status["conditions"].as_array().into_iter().flatten().rev();
    let refused = conditions.find(|one| one["type"] == "ReplicaFailure" && one["status"] == "True");
    if let Some(why) = refused.and_then(|one| one["message"].as_str()) {
        let reason = if why.contains("exceeded quota") {
            "QuotaExceeded"
        } else if why.contains("violates PodSecurity") {
            "PodSecurityViolation"
        } else {
            "MinimumReplicasUnavailable"
        };
        return said(READY, Status::False, reason, format!("pods cannot be created: {why}"));
    }
    if number("observedGeneration") < live["metadata"]["generation"].as_i64().unwrap_or(0) {
        return said(
            READY,
            Status::False,
            "RolloutInProgress",
            "the workload's controller has not seen the change yet",
        );
    }
    if desired == 0 && live["kind"] == "DaemonSet" {
        return said(READY, Status::False, "NoMatchingNodes", "no node matches nodeSelector and tolerations");
    }
    if updated < desired {
        let message = format!("{updated} of {desired} pods run the newest version");
        return said(READY, Status::False, "RolloutInProgress", message);
    }
    if available < desired {
        let message = format!(
            "{available} of {desired} pods are available; kubectl describe and logs of the pods tell why, such as an \
             image that cannot be pulled or an etcd that cannot be reached"
        );
        return said(READY, Status::False, "MinimumReplicasUnavailable", message);
    }
    said(READY, Status::True, "Ready", format!("{available} of {desired} pods are available"))
}

/// The numbers of pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub desired: i64,
    pub ready: i64,
    pub available: i64,
    pub updated: i64,
}

impl Counts {
    pub fn of(live: &Value) -> Counts {
        let status = &live["status"];
        let number = |key: &str| status[key].as_i64().unwrap_or(0);
        if live["kind"] == "DaemonSet" {
            Counts {
                desired: number("desiredNumberScheduled"),
                ready: number("numberReady"),
                available: number("numberAvailable"),
                updated: number("updatedNumberScheduled"),
            }
        } else {
            Counts {
                desired: live["spec"]["replicas"].as_i64().unwrap_or(1),
                ready: number("readyReplicas"),
                available: number("availableReplicas"),
                updated: number("updatedReplicas"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deployment(observed: i64, updated: i64, available: i64) -> Value {
        json!({
            "kind": "Deployment", "metadata": {"generation": 2}, "spec": {"replicas": 2},
            "status": {"observedGeneration": observed, "updatedReplicas": updated, "availableReplicas": available},
        })
    }

    #[test]
    fn a_workload_is_ready_when_all_pods_are_new_and_available() {
        for (live, reason) in [
            (deployment(1, 2, 2), "RolloutInProgress"),
            (deployment(2, 1, 2), "RolloutInProgress"),
            (deployment(2, 2, 1), "MinimumReplicasUnavailable"),
            (deployment(2, 2, 2), "Ready"),
            (json!({"kind": "DaemonSet", "status": {"desiredNumberScheduled": 0}}), "NoMatchingNodes"),
        ] {
            assert_eq!(workload(Some(&live)).reason, reason, "{live}");
        }
    }

    #[test]
    fn a_refusal_is_the_summary_and_later_stages_are_unknown() {
        let refused = said(ACCEPTED, Status::False, "BackendNotFound", "no such backend");
        let all = summarize(vec![refused], None, true);
        let find = |kind: &str| all.iter().find(|one| one.kind == kind).expect("the condition is there");
        assert_eq!((find(READY).status, find(READY).reason), (Status::False, "BackendNotFound"));
        assert_eq!(find(PROGRAMMED).status, Status::Unknown);
        assert_eq!(find(STALLED).status, Status::True);
    }

    #[test]
    fn a_condition_keeps_its_time_until_its_status_turns_and_tells_once() {
        let early = Time(Timestamp::from_second(1).unwrap());
        let late = Time(Timestamp::from_second(2).unwrap());
        let bad = vec![said(ACCEPTED, Status::False, "BackendNotFound", "")];
        let first = stamp(bad.clone(), &[], Some(1), &early);
        assert_eq!(turned(&[], &first).len(), 1);
        let second = stamp(bad, &first, Some(2), &late);
        assert_eq!(second[0].last_transition_time, early);
        assert!(turned(&first, &second).is_empty());
        let after = |seconds: i64| false_for(&second, ACCEPTED, Timestamp::from_second(seconds).unwrap());
        assert_eq!((after(61), after(0)), (Some(Duration::from_secs(60)), Some(Duration::ZERO)));
        assert_eq!(false_for(&second, READY, late.0), None);
        let good = stamp(vec![said(ACCEPTED, Status::True, "Accepted", "")], &second, Some(2), &late);
        assert_eq!(good[0].last_transition_time, late);
    }
}
