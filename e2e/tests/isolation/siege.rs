//! A proxy under attack: each attack is made, its answer judged, and the victim's state held against what it was.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::time::{Duration, Instant};

use bytes::Bytes;
use etcd_proxy_e2e::proxy::Program;
use etcd_proxy_e2e::{Etcd, Proxy, Version, grpc};
use etcd_proxy_proto::etcdserverpb::{
    AuthUserDeleteRequest, LeaseRevokeRequest, MemberRemoveRequest, PutRequest, auth_client::AuthClient,
    cluster_client::ClusterClient, kv_client::KvClient, lease_client::LeaseClient,
};
use tonic::transport::Channel;

use crate::attacks::Attack;
use crate::raw::{self, Answer};
use crate::victim::{self, Loot, SECRET, VALUE};

/// What came of an attack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Kept,
    /// What the attacker got.
    Leaks(&'static str),
}

/// How long a program that panics may take over its end.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What the attacker has itself: two keys.
pub const OWN_KEYS: i64 = 2;

pub struct Siege {
    _etcd: Etcd,
    direct: Channel,
    attacker: Proxy,
    builder: etcd_proxy_e2e::proxy::Builder,
    /// The victim's own way in.
    way: Channel,
    _victim: Option<Proxy>,
    attacker_prefix: &'static [u8],
    victim_prefix: &'static [u8],
    is_ours: bool,
}

impl Siege {
    pub async fn of_ours(attacker: &'static [u8], victim: &'static [u8]) -> Siege {
        Siege::begin(Program::Ours, attacker, victim).await
    }

    pub async fn of_the_original(attacker: &'static [u8], victim: &'static [u8]) -> Siege {
        Siege::begin(Program::Etcd(Version::default()), attacker, victim).await
    }

    async fn begin(program: Program, attacker: &'static [u8], victim: &'static [u8]) -> Siege {
        let etcd = Etcd::builder().start();
        let direct = grpc::channel(etcd.address()).await;
        let is_ours = program == Program::Ours;
        let proxy = |prefix: &[u8]| {
            let namespace = OsString::from_vec(prefix.to_vec());
            let builder = Proxy::builder().program(program).flag(format!("--endpoints={}", etcd.endpoints()));
            // etcd's proxy reads its flags from the command line only; its prefixes here are text.
            if is_ours {
                builder.env("ETCD_PROXY_NAMESPACE", namespace).flag("--api-profile=tenant")
            } else {
                builder.flag(format!("--namespace={}", String::from_utf8_lossy(prefix)))
            }
        };
        let builder = proxy(attacker);
        let attacker_proxy = builder.clone().start();
        // etcd's proxy does not put the prefix on locks and elections, so there the victim speaks with etcd itself.
        let victim_proxy = is_ours.then(|| proxy(victim).start());
        let way = match &victim_proxy {
            Some(proxy) => grpc::channel(proxy.address()).await,
            None => direct.clone(),
        };
        Siege {
            _etcd: etcd,
            direct,
            attacker: attacker_proxy,
            builder,
            way,
            _victim: victim_proxy,
            attacker_prefix: attacker,
            victim_prefix: victim,
            is_ours,
        }
    }

    /// Makes every attack, each against a victim that has everything.
    pub async fn run(&mut self, attacks: Vec<Attack>) -> Vec<(&'static str, Verdict)> {
        let mut verdicts = Vec::new();
        let mut loot = self.settle().await;
        // Those that name the victim's keys come last: an attacker that wrote keys of that name sees them among its own.
        let (late, early): (Vec<_>, Vec<_>) =
            attacks.into_iter().enumerate().partition(|(_, attack)| names_secret(&(attack.message)(&loot)));
        for (place, attack) in early.into_iter().chain(late) {
            self.provide().await;
            let before = victim::state(&self.direct, &loot, self.attacker_prefix).await;
            let message = Bytes::from((attack.message)(&loot));
            let answer = raw::call(&grpc::channel(self.attacker.address()).await, attack.path, message, None).await;
            let has_ended = self.has_ended(&answer).await;
            let after = victim::state(&self.direct, &loot, self.attacker_prefix).await;
            let verdict = if has_ended {
                self.attacker = self.builder.clone().start();
                Verdict::Leaks("ends the proxy")
            } else if before != after {
                Verdict::Leaks("changes what is not its own")
            } else {
                judge(&attack, &loot, &answer)
            };
            if before != after {
                self.repair(&loot).await;
                loot = self.settle().await;
            }
            verdicts.push((place, (attack.title, verdict)));
        }
        verdicts.sort_by_key(|(place, _)| *place);
        verdicts.into_iter().map(|(_, verdict)| verdict).collect()
    }

    async fn settle(&self) -> Loot {
        victim::settle(&self.direct, &self.way, self.victim_prefix, self.is_ours).await
    }

    /// Gives the attacker its own keys back.
    async fn provide(&self) {
        let mut kv = KvClient::new(grpc::channel(self.attacker.address()).await);
        for key in ["mine-1", "mine-2"] {
            let put = PutRequest { key: key.into(), value: "mine".into(), ..PutRequest::default() };
            kv.put(put).await.expect("the attacker may write its own keys");
        }
    }

    /// Whether the proxy is no more. One that panics answers nobody while it writes why.
    async fn has_ended(&mut self, answer: &Answer) -> bool {
        if answer.is_ok() {
            return false;
        }
        let put = async {
            let channel = grpc::endpoint(self.attacker.address()).connect().await.ok()?;
            let put = PutRequest { key: "mine-1".into(), value: "mine".into(), ..PutRequest::default() };
            KvClient::new(channel).put(put).await.ok()
        };
        let lives = tokio::time::timeout(LAST_WORDS, put).await.is_ok_and(|answer| answer.is_some());
        let deadline = Instant::now() + LAST_WORDS;
        while !lives && self.attacker.process.exit().is_none() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        !lives
    }

    /// Takes back what an attack has done to all.
    async fn repair(&self, loot: &Loot) {
        let mut cluster = ClusterClient::new(self.direct.clone());
        let members = cluster.member_list(etcd_proxy_proto::etcdserverpb::MemberListRequest::default()).await;
        for member in members.expect("etcd has members").into_inner().members {
            if member.id != loot.member {
                cluster.member_remove(MemberRemoveRequest { id: member.id }).await.expect("the new member goes");
            }
        }
        // What is left of the lock and the election would be in the way of the next ones. It may be gone already.
        let _ = LeaseClient::new(self.direct.clone()).lease_revoke(LeaseRevokeRequest { id: loot.lease }).await;
        // There is only one who may have been made.
        let mallory = AuthUserDeleteRequest { name: crate::attacks::MALLORY.to_owned() };
        let _ = AuthClient::new(self.direct.clone()).user_delete(mallory).await;
    }
}

fn judge(attack: &Attack, loot: &Loot, answer: &Answer) -> Verdict {
    let shown = answer.text();
    // What the attacker sent may come back: of that it learns nothing.
    let sent = (attack.message)(loot);
    let shows_key = names_secret(&shown) && !names_secret(&sent);
    if shows_key || holds(&shown, VALUE.as_bytes()) {
        return Verdict::Leaks("shows what is not its own");
    }
    match (attack.leak)(loot, answer) {
        Some(leak) => Verdict::Leaks(leak),
        None => Verdict::Kept,
    }
}

fn names_secret(bytes: &[u8]) -> bool {
    holds(bytes, SECRET.as_bytes())
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
