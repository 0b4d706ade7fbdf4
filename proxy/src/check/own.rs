//! What a start needs on this machine: ports to listen on, files that can be read, certificates that clients will take.

use std::{io, net::IpAddr, path::Path, time::SystemTime};

use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{
    WARN_BEFORE,
    report::{Outcome, Report},
};
use crate::{
    config,
    flags::Flags,
    server,
    tls::{
        self, ClientTls, FileStatus, Peer, Role, ServerTls,
        certificate::{self, Certificate},
        explain,
    },
};

/// What fits between the two ends of a handshake in memory; certificates with their issuers have some kilobytes.
const PIPE: usize = 64 << 10;

/// Binds each address for a moment.
pub async fn listeners(report: &mut Report, flags: &Flags) {
    let mut addresses = vec![flags.listen_addr.clone()];
    if let Ok(urls) = flags.metrics_urls() {
        addresses.extend(urls.into_iter().map(|url| url.address));
    }
    for address in addresses {
        let outcome = match server::bind(&address).await {
            Ok(_) => Outcome::Fine("can be listened on".to_owned()),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                Outcome::Warn("is in use: by this very proxy, or by what would keep it from starting".to_owned())
            }
            Err(error) => Outcome::Failed(format!("cannot be listened on: {}", crate::go::io_error(&error))),
        };
        report.add("listen", address, outcome);
    }
}

/// TLS towards clients: the files, a handshake with ourselves, the names and the dates.
pub async fn clients_tls(report: &mut Report, flags: &Flags) {
    const CHECK: &str = "tls to clients";
    if !flags.serves_tls() {
        return report.add(
            CHECK,
            &flags.listen_addr,
            Outcome::Fine("none: clients are served in plaintext".to_owned()),
        );
    }
    if flags.cert_file.is_none() && flags.auto_tls {
        let folder = flags.data_dir.display();
        return report.add(
            CHECK,
            &flags.listen_addr,
            Outcome::Fine(format!("the start makes a certificate in {folder}")),
        );
    }
    let tls = match config::server_tls(flags) {
        Ok(Some(tls)) => tls,
        Ok(None) => return,
        Err(error) => return report.add(CHECK, &flags.listen_addr, Outcome::Failed(error.to_string())),
    };
    files(report, "to clients", tls.status());
    // Whether the clients' CA can be used was found by loading it; this client has no certificate of it.
    let for_anyone = Flags { trusted_ca_file: None, client_crl_file: None, ..flags.clone() };
    let outcome = match config::server_tls(&for_anyone) {
        Ok(Some(open)) => handshake(report, flags, &open).await,
        Ok(None) => return,
        Err(error) => Outcome::Failed(error.to_string()),
    };
    report.add(CHECK, &flags.listen_addr, outcome);
}

/// A handshake over a pipe: certificate, key, versions and cipher suites have to come together in it.
async fn handshake(report: &mut Report, flags: &Flags, server: &ServerTls) -> Outcome {
    let anyone = tls::client::Config { insecure_skip_verify: true, ..Default::default() };
    let (client, name) =
        match ClientTls::load(&anyone).and_then(|tls| Ok((tls.config(), tls.server_name("localhost")?))) {
            Ok(made) => made,
            Err(error) => return Outcome::Failed(error.to_string()),
        };
    let (near, far) = tokio::io::duplex(PIPE);
    let (connected, accepted) =
        tokio::join!(TlsConnector::from(client).connect(name, near), TlsAcceptor::from(server.config()).accept(far),);
    let connected = match (connected, accepted) {
        (Ok(connected), Ok(_)) => connected,
        (_, Err(error)) | (Err(error), _) => return Outcome::Failed(explain(Peer::Client, &error)),
    };
    if let Some(leaf) = connected.get_ref().1.peer_certificates().and_then(<[_]>::first) {
        let hosts = Certificate::read(leaf).map(|certificate| certificate.hosts.join(", ")).unwrap_or_default();
        let advertised = flags.advertised();
        for (flag, address) in [("advertise-client-url", &advertised), ("listen-addr", &flags.listen_addr)] {
            let host = host(address);
            if !is_everywhere(host) && !certificate::is_for(leaf, host) {
                let words = format!("the certificate is for {hosts} and not for {host} of --{flag}");
                report.add("server name", host, Outcome::Warn(words));
            }
        }
    }
    let clients = if flags.trusted_ca_file.is_some() { "each with a certificate" } else { "without certificates" };
    Outcome::Fine(format!("a handshake succeeds; clients come {clients}"))
}

/// The host of `host:port` or of a URL.
fn host(address: &str) -> &str {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    let rest = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    match rest.strip_prefix('[') {
        Some(bracketed) => bracketed.split(']').next().unwrap_or_default(),
        None => rest.rsplit_once(':').map_or(rest, |(host, _)| host),
    }
}

/// Of such an address nobody makes a certificate.
fn is_everywhere(host: &str) -> bool {
    host.is_empty() || host.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified())
}

/// The files with which this proxy speaks to etcd; the handshakes are each endpoint's.
pub fn etcd_tls(report: &mut Report, flags: &Flags) {
    match config::client_tls(flags) {
        Ok(Some(tls)) => files(report, "to etcd", tls.status()),
        Ok(None) => (),
        Err(error) => report.add("tls to etcd", "", Outcome::Failed(error.to_string())),
    }
}

fn files(report: &mut Report, side: &str, files: Vec<FileStatus>) {
    for file in files.into_iter().filter(|file| file.role != Role::Key) {
        let Some(not_after) = file.not_after else { continue };
        let what = format!("{} {side}, {}", file.role, file.subject);
        // Only new revocations are missed when a list is out of date.
        let is_fatal = file.role != Role::RevocationList;
        report.add("certificate", shown(&file.path), lifetime(&what, not_after, SystemTime::now(), is_fatal));
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// How long something is still good, in words.
pub fn lifetime(what: &str, not_after: SystemTime, now: SystemTime, is_fatal: bool) -> Outcome {
    match not_after.duration_since(now) {
        Ok(left) => {
            let words = format!("{what}, runs out in {}", days(left.as_secs()));
            if left < WARN_BEFORE { Outcome::Warn(words) } else { Outcome::Fine(words) }
        }
        Err(past) => {
            let words = format!("{what}, ran out {} ago", days(past.duration().as_secs()));
            if is_fatal { Outcome::Failed(words) } else { Outcome::Warn(words) }
        }
    }
}

fn days(seconds: u64) -> String {
    match seconds / 3600 {
        0 => format!("{} minutes", seconds / 60),
        hours @ 1..48 => format!("{hours} hours"),
        hours => format!("{} days", hours / 24),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn hosts_are_found_in_addresses_and_urls() {
        for (address, expected) in [
            ("a:1", "a"),
            ("https://a.b:1/x", "a.b"),
            ("[::1]:1", "::1"),
            (":1", ""),
            ("0.0.0.0:1", "0.0.0.0"),
            ("", ""),
        ] {
            assert_eq!(host(address), expected, "{address}");
        }
        assert!(is_everywhere("") && is_everywhere("::") && !is_everywhere("127.0.0.1") && !is_everywhere("a"));
    }

    #[test]
    fn what_runs_out_soon_is_warned_of_and_what_ran_out_fails() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let day = Duration::from_secs(24 * 3600);
        assert_eq!(lifetime("it", now + day * 30, now, true), Outcome::Fine("it, runs out in 30 days".into()));
        assert_eq!(lifetime("it", now + day * 3, now, true), Outcome::Warn("it, runs out in 3 days".into()));
        assert_eq!(lifetime("it", now - day, now, true), Outcome::Failed("it, ran out 24 hours ago".into()));
        assert_eq!(lifetime("it", now - day, now, false), Outcome::Warn("it, ran out 24 hours ago".into()));
    }
}
