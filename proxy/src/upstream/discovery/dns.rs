//! SRV records: where the members of a cluster are, as the domain name system tells it.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use hickory_resolver::{
    TokioResolver,
    config::{NameServerConfig, ResolverConfig},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::{Name, RData, rdata::SRV},
};

/// What `--discovery-srv` and its kin say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The domain that the cluster belongs to.
    pub domain: String,
    /// Tells several clusters in one domain apart; may be empty.
    pub service_name: String,
    /// Takes what is found as it is, plaintext endpoints among it.
    pub insecure: bool,
    /// Asked instead of those in /etc/resolv.conf.
    pub name_server: Option<SocketAddr>,
}

/// What the records name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Those over TLS first, then by priority and weight.
    pub targets: Vec<Target>,
    /// When the records are to be asked for again, as their owner sees it.
    pub valid_until: Instant,
}

impl Found {
    /// The URLs of all targets.
    pub fn endpoints(&self) -> Vec<String> {
        self.targets.iter().map(|target| target.url.clone()).collect()
    }
}

/// What one record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub url: String,
    pub priority: u16,
    pub weight: u16,
}

/// A name server that does not answer is asked twice, and another one after it; more patience helps nobody.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// Looks both kinds of records up, as etcd does: `_etcd-client-ssl` for members that speak TLS, `_etcd-client` for those
/// that do not. One kind is enough, unless `known` has endpoints of the kind that could not be looked up: half an answer
/// takes no members away. That there are none of a kind is an answer.
pub async fn look_up(config: &Config, known: &[String]) -> Result<Found, String> {
    look_up_services(config, known, ["etcd-client-ssl", "etcd-client"]).await
}

/// The same for the members' peer URLs: `_etcd-server-ssl` and `_etcd-server`.
pub async fn look_up_peers(config: &Config) -> Result<Found, String> {
    look_up_services(config, &[], ["etcd-server-ssl", "etcd-server"]).await
}

async fn look_up_services(config: &Config, known: &[String], [ssl, no_ssl]: [&str; 2]) -> Result<Found, String> {
    let resolver = resolver(config.name_server).map_err(|error| format!("no name servers: {error}"))?;
    let of_kind = async |service: String| {
        let name = format!("_{service}._tcp.{}", config.domain);
        let looked_up = tokio::time::timeout(LOOKUP_TIMEOUT, records(&resolver, &name)).await;
        looked_up.unwrap_or_else(|_| Err(format!("lookup {name}: no answer within {LOOKUP_TIMEOUT:?}")))
    };
    let (secure, plain) =
        tokio::join!(of_kind(service(ssl, &config.service_name)), of_kind(service(no_ssl, &config.service_name)),);
    let is_known = |scheme: &str| known.iter().any(|endpoint| endpoint.starts_with(scheme));
    let (secure, plain) = match (secure, plain) {
        (Err(secure), Err(plain)) => return Err(format!("dns lookup errors: {secure} and {plain}")),
        (Err(error), Ok(_)) if is_known("https://") => return Err(format!("dns lookup error: {error}")),
        (Ok(_), Err(error)) if is_known("http://") => return Err(format!("dns lookup error: {error}")),
        (secure, plain) => (secure.unwrap_or_default(), plain.unwrap_or_default()),
    };
    if secure.targets.is_empty() && plain.targets.is_empty() {
        return Err(format!("no SRV records for _{ssl}._tcp or _{no_ssl}._tcp in {}", config.domain));
    }
    let endpoints = [("https", &secure), ("http", &plain)];
    Ok(Found {
        targets: endpoints.iter().flat_map(|(scheme, records)| in_order(scheme, &records.targets)).collect(),
        valid_until: secure.valid_until.into_iter().chain(plain.valid_until).min().unwrap_or_else(Instant::now),
    })
}

/// With the name of the cluster behind it, if it has one.
fn service(kind: &str, service_name: &str) -> String {
    if service_name.is_empty() { kind.to_owned() } else { format!("{kind}-{service_name}") }
}

/// The name servers are read each time, as /etc/resolv.conf may change, and nothing is kept between look-ups.
fn resolver(name_server: Option<SocketAddr>) -> Result<TokioResolver, NetError> {
    let mut builder = match name_server {
        None => TokioResolver::builder_tokio()?,
        Some(address) => {
            let mut server = NameServerConfig::udp_and_tcp(address.ip());
            for connection in &mut server.connections {
                connection.port = address.port();
            }
            let config = ResolverConfig::from_name_servers(vec![server]);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
    };
    builder.options_mut().cache_size = 0;
    builder.build()
}

#[derive(Default)]
struct Records {
    targets: Vec<SRV>,
    valid_until: Option<Instant>,
}

async fn records(resolver: &TokioResolver, name: &str) -> Result<Records, String> {
    let failed = |error: &dyn std::fmt::Display| format!("lookup {name}: {error}");
    let parsed = Name::from_str_relaxed(name).map_err(|error| failed(&error))?;
    match resolver.srv_lookup(parsed).await {
        Ok(lookup) => {
            let targets = lookup.answers().iter().filter_map(|record| match &record.data {
                RData::SRV(srv) => Some(srv.clone()),
                _ => None,
            });
            Ok(Records { targets: targets.collect(), valid_until: Some(lookup.valid_until()) })
        }
        Err(error) if error.is_no_records_found() && !is_server_failure(&error) => {
            Ok(Records { targets: Vec::new(), valid_until: None })
        }
        Err(error) => Err(failed(&error)),
    }
}

/// A server that could not find out answers without records too, but that does not mean that there are none.
fn is_server_failure(error: &NetError) -> bool {
    use hickory_resolver::{net::DnsError, proto::op::ResponseCode};
    match error {
        NetError::Dns(DnsError::NoRecordsFound(nothing)) => {
            !matches!(nothing.response_code, ResponseCode::NoError | ResponseCode::NXDomain)
        }
        _ => true,
    }
}

/// In an order that stays the same while the records do.
fn in_order(scheme: &str, targets: &[SRV]) -> Vec<Target> {
    // The root as a target means that there is no such service (RFC 2782).
    let mut targets: Vec<&SRV> = targets.iter().filter(|srv| !srv.target.is_root()).collect();
    targets.sort_by_key(|srv| (srv.priority, u16::MAX - srv.weight, srv.target.to_ascii(), srv.port));
    // The dot at the end of a full name has no place in URLs and certificates.
    let host = |srv: &SRV| srv.target.to_ascii().trim_end_matches('.').to_owned();
    let url = |srv: &SRV| format!("{scheme}://{}:{}", host(srv), srv.port);
    targets.into_iter().map(|srv| Target { url: url(srv), priority: srv.priority, weight: srv.weight }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One answer with one record: priority 1, weight 2, port 2379 of `a.example.`.
    const ANSWER: &[u8] = b"\x12\x34\x81\x80\0\x01\0\x01\0\0\0\0\x0c_etcd-client\x04_tcp\x07example\0\0\x21\0\x01\
        \xc0\x0c\0\x21\0\x01\0\0\0\x3c\0\x11\0\x01\0\x02\x09\x4b\x01a\x07example\0";

    #[test]
    fn answers_of_name_servers_that_are_damaged_are_read_or_refused() {
        let read = |bytes: &[u8]| {
            let message = hickory_resolver::proto::op::Message::from_vec(bytes).ok()?;
            let srv = |record: &hickory_resolver::proto::rr::Record| match &record.data {
                RData::SRV(srv) => Some(srv.clone()),
                _ => None,
            };
            Some(in_order("https", &message.answers.iter().filter_map(srv).collect::<Vec<_>>()))
        };
        let good = read(ANSWER).expect("it is whole");
        assert_eq!(good[0].url, "https://a.example:2379");
        crate::foreign::damaged(&[ANSWER], read);
    }

    fn srv(priority: u16, weight: u16, port: u16, target: &str) -> SRV {
        SRV::new(priority, weight, port, Name::from_str_relaxed(target).expect("a name"))
    }

    #[test]
    fn services_are_named_as_etcd_names_them() {
        assert_eq!(service("etcd-client-ssl", ""), "etcd-client-ssl");
        assert_eq!(service("etcd-client", "blue"), "etcd-client-blue");
    }

    #[test]
    fn urls_stand_in_an_order_that_does_not_depend_on_the_servers_mood() {
        let mut records = vec![
            srv(10, 0, 2379, "b.example."),
            srv(0, 5, 2379, "c.example."),
            srv(0, 10, 2379, "a.example."),
            srv(0, 0, 0, "."),
        ];
        let expected = ["https://a.example:2379", "https://c.example:2379", "https://b.example:2379"];
        let urls =
            |records: &[SRV]| in_order("https", records).into_iter().map(|target| target.url).collect::<Vec<_>>();
        assert_eq!(urls(&records), expected);
        records.reverse();
        assert_eq!(urls(&records), expected);
    }
}
