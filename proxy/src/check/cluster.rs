//! What a start needs of etcd: endpoints that are found, and answer as members of one cluster.

use std::{collections::BTreeSet, sync::Arc};

use futures_util::future::join_all;

use super::{
    endpoint::{self, Answered, Question},
    report::{Outcome, Report},
};
use crate::{
    app,
    flags::Flags,
    metrics::Metrics,
    rules::{namespace::Namespace, tenant::identity::Tenants},
    upstream::{discovery::dns, endpoint::Endpoint, users::Users},
};

/// Looks at every endpoint at the same time, and at what they say together.
pub async fn look(report: &mut Report, flags: &Flags, config: app::Config) {
    let mut endpoints = config.endpoints.clone();
    if let Some(srv) = &config.discovery.srv {
        match dns::look_up(srv, &[]).await {
            Ok(found) => {
                let urls = found.endpoints();
                report.add("discovery", &srv.domain, Outcome::Fine(format!("finds {}", urls.join(", "))));
                endpoints = urls.iter().filter_map(|url| Endpoint::parse(url).ok()).collect();
            }
            Err(error) => report.add("discovery", &srv.domain, Outcome::Failed(error)),
        }
    }
    let metrics = Arc::new(Metrics::new());
    let question = Question {
        channel: Arc::new(config.channel.clone()),
        limits: config.limits,
        users: Users::new(config.users, &metrics),
        metrics,
        prefixes: prefixes(&config.tenants),
        registers: !flags.resolver_prefix.is_empty(),
    };
    let looked = join_all(endpoints.iter().map(|endpoint| endpoint::look(&question, endpoint))).await;
    let mut answers = Vec::new();
    for (rows, answered) in looked {
        report.extend(rows);
        answers.extend(answered);
    }
    report.add("cluster", "", together(endpoints.len(), &answers));
}

/// The prefix of the proxy itself, and those of its tenants that are others, each with whose it is.
fn prefixes(tenants: &Tenants) -> Vec<(String, Namespace)> {
    let mut prefixes = vec![(String::new(), tenants.own().namespace.clone())];
    for tenant in tenants.all() {
        if prefixes.iter().all(|(_, known)| known.prefix() != tenant.namespace.prefix()) {
            prefixes.push((tenant.name.clone(), tenant.namespace.clone()));
        }
    }
    prefixes
}

fn together(asked: usize, answers: &[Answered]) -> Outcome {
    let clusters: BTreeSet<u64> = answers.iter().filter_map(|answer| answer.cluster).collect();
    let versions: BTreeSet<&str> = answers.iter().filter_map(|answer| answer.version.as_deref()).collect();
    let versions = versions.into_iter().collect::<Vec<_>>().join(", ");
    match clusters.len() {
        0 if !answers.is_empty() => {
            Outcome::Fine(format!("{} of {asked} endpoints answer; only users are told more", answers.len()))
        }
        0 => Outcome::Failed(format!("none of {asked} endpoints answers")),
        1 if answers.iter().all(|answer| answer.leader == Some(0)) => Outcome::Failed(
            "no member knows a leader: most of the members are down or cannot reach each other".to_owned(),
        ),
        1 => Outcome::Fine(format!("{} of {asked} endpoints answer, etcd {versions}", answers.len())),
        count => {
            let ids: Vec<String> = clusters.iter().map(|id| format!("{id:x}")).collect();
            Outcome::Failed(format!("the endpoints belong to {count} clusters: {}", ids.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_of_two_clusters_are_no_cluster() {
        let answer =
            |cluster, leader| Answered { cluster: Some(cluster), leader: Some(leader), version: Some("3.7.3".into()) };
        assert_eq!(together(2, &[answer(1, 5)]), Outcome::Fine("1 of 2 endpoints answer, etcd 3.7.3".into()));
        for (answers, words) in [
            (vec![], "none of 2 endpoints answers"),
            (vec![answer(1, 0)], "no member knows a leader"),
            (vec![answer(10, 5), answer(11, 6)], "the endpoints belong to 2 clusters: a, b"),
        ] {
            let Outcome::Failed(found) = together(2, &answers) else { panic!("{answers:?}") };
            assert!(found.starts_with(words), "{found}");
        }
    }
}
