//! Files that change while connections are open.

use std::future::Future;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::time::{Duration, Instant};

use etcd_proxy::tls::{ClientTls, ReloadOutcome, ServerTls, server};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::pki::{Ca, Connection, Files, Leaf, PATIENCE, shake_hands};

struct Sides {
    server: ServerTls,
    client: ClientTls,
}

impl Sides {
    fn load(files: &Files) -> Sides {
        Sides::load_with(files, &files.server())
    }

    fn load_with(files: &Files, server: &server::Config) -> Sides {
        let server = ServerTls::load(server).expect("the server's files are good");
        Sides { server, client: ClientTls::load(&files.client()).expect("the client's files are good") }
    }

    async fn connect(&self) -> Result<Connection, String> {
        shake_hands(self.server.config(), self.client.config(), "localhost").await
    }

    fn server_error(&self, name: &str) -> Option<String> {
        let status = self.server.status().into_iter().find(|status| status.path.ends_with(name));
        status.expect("the file is one of the server's").last_error
    }
}

/// Asks again until the answer is right. Handshakes look at the files ten times a second, so that this is soon.
async fn eventually<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let start = Instant::now();
    while !is_so().await {
        assert!(start.elapsed() < PATIENCE, "still not so: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn der(pem: &str) -> Vec<u8> {
    CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM of a certificate").to_vec()
}

#[tokio::test]
async fn a_replaced_pair_of_the_server_is_shown_to_the_next_client_while_the_last_one_stays() {
    let ca = Ca::new("ca");
    let files = Files::of(&ca);
    let sides = Sides::load(&files);
    let mut old = sides.connect().await.expect("both are good");
    let renewed = ca.issue(Leaf { serial: 100, ..Leaf::default() });
    files.write_pair("server", &renewed);
    eventually("the new certificate is shown", || async {
        let connection = sides.connect().await.expect("one of both pairs is in use");
        connection.server_certificate() == der(&renewed.cert)
    })
    .await;
    assert!(old.is_alive().await);
}

#[tokio::test]
async fn a_replaced_pair_of_the_client_is_shown_to_the_next_server_while_the_last_one_stays() {
    let ca = Ca::new("ca");
    let files = Files::of(&ca);
    let sides = Sides::load(&files);
    let mut old = sides.connect().await.expect("both are good");
    let renewed = ca.issue(Leaf { serial: 100, ..Leaf::default() });
    files.write_pair("client", &renewed);
    eventually("the new certificate is shown", || async {
        let connection = sides.connect().await.expect("one of both pairs is in use");
        connection.client_certificates()[0].as_ref() == der(&renewed.cert)
    })
    .await;
    assert!(old.is_alive().await);
}

#[tokio::test]
async fn a_replaced_ca_is_the_one_that_counts_on_both_sides() {
    let (first, second) = (Ca::new("first"), Ca::new("second"));
    let files = Files::of(&first);
    let sides = Sides::load(&files);
    let mut old = sides.connect().await.expect("both are good");
    files.write("ca.crt", second.pem());
    eventually("the first CA is not trusted", || async { sides.connect().await.is_err() }).await;
    files.write("ca.crt", first.pem() + &second.pem());
    files.write_pair("client", &second.issue(Leaf::default()));
    eventually("both CAs are trusted", || async { sides.connect().await.is_ok() }).await;
    assert!(old.is_alive().await);
}

#[tokio::test]
async fn a_client_that_is_revoked_later_is_refused_from_then_on() {
    let ca = Ca::new("ca");
    let files = Files::of(&ca);
    let crl = files.write("revoked.crl", ca.revoke(&[]).der());
    let sides = Sides::load_with(&files, &server::Config { client_crl_file: Some(crl), ..files.server() });
    sides.connect().await.expect("nobody is revoked");
    files.write("revoked.crl", ca.revoke(&[8]).der());
    eventually("the client is refused", || async {
        sides.connect().await.is_err_and(|refusal| refusal.contains("Revoked"))
    })
    .await;
}

#[test]
fn a_half_written_key_keeps_the_last_good_pair_and_is_told_once() {
    let ca = Ca::new("ca");
    let files = Files::of(&ca);
    let sides = Sides::load(&files);
    let before = sides.server.config();
    let renewed = ca.issue(Leaf { serial: 100, ..Leaf::default() });

    files.write("server.key", &renewed.key[..renewed.key.len() / 2]);
    let outcome = sides.server.reload().expect("a change was found");
    assert_eq!((outcome.replaced.len(), outcome.failed.len()), (0, 1));
    assert!(outcome.failed[0].1.contains("server.key") && outcome.failed[0].1.contains("half written"), "{outcome:?}");
    assert_eq!(sides.server.reload(), None, "the same content is judged once");
    assert!(sides.server_error("server.key").is_some());
    assert!(sides.server_error("server.crt").is_none());
    assert!(Arc::ptr_eq(&before, &sides.server.config()));

    files.write("server.key", &renewed.key);
    let outcome = sides.server.reload().expect("another content, judged anew");
    assert!(outcome.failed[0].1.contains("tls: private key does not match public key"), "{outcome:?}");
    files.write("server.crt", &renewed.cert);
    let outcome = sides.server.reload().expect("both are there now");
    assert_eq!((outcome.replaced.len(), outcome.failed.len()), (2, 0));
    assert!(sides.server_error("server.key").is_none());
    assert!(!Arc::ptr_eq(&before, &sides.server.config()));
}

#[test]
fn the_return_of_the_content_in_use_clears_the_error() {
    let files = Files::of(&Ca::new("ca"));
    let sides = Sides::load(&files);
    let good = std::fs::read(files.path("server.key")).expect("the key is there");
    std::fs::remove_file(files.path("server.key")).expect("the key is there");
    assert!(sides.server.reload().is_some_and(|outcome| outcome.replaced.is_empty()));
    assert!(sides.server_error("server.key").is_some_and(|error| error.contains("no such file")));
    files.write("server.key", good);
    assert!(sides.server.reload().is_some_and(|outcome| outcome.failed.is_empty()));
    assert_eq!(sides.server_error("server.key"), None);
}

#[test]
fn a_broken_revocation_list_does_not_hold_back_a_renewed_certificate() {
    let ca = Ca::new("ca");
    let files = Files::of(&ca);
    let crl = files.write("revoked.crl", ca.revoke(&[8]).der());
    let sides = Sides::load_with(&files, &server::Config { client_crl_file: Some(crl.clone()), ..files.server() });
    let list = std::fs::read(&crl).expect("the list is there");
    files.write("revoked.crl", &list[..list.len() / 2]);
    files.write_pair("server", &ca.issue(Leaf { serial: 100, ..Leaf::default() }));
    let outcome = sides.server.reload().expect("both changed");
    assert_eq!(outcome.replaced, [files.path("server.crt"), files.path("server.key")]);
    assert_eq!(outcome.failed.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>(), [crl]);
}

#[tokio::test]
async fn the_last_good_revocation_list_counts_while_the_file_is_broken() {
    let ca = Ca::new("ca");
    let files = Files::of(&ca);
    let crl = files.write("revoked.crl", ca.revoke(&[8]).der());
    let sides = Sides::load_with(&files, &server::Config { client_crl_file: Some(crl), ..files.server() });
    files.write("revoked.crl", "");
    sides.server.reload().expect("the list is empty");
    assert!(sides.connect().await.is_err_and(|refusal| refusal.contains("Revoked")));
}

#[test]
fn a_secret_that_kubernetes_swaps_by_symbolic_link_is_taken_as_a_whole() {
    let ca = Ca::new("ca");
    let files = Files::of(&ca);
    let fill = |folder: &str, serial| {
        std::fs::create_dir(files.path(folder)).expect("the folder can be written");
        let issued = ca.issue(Leaf { serial, ..Leaf::default() });
        files.write(&format!("{folder}/tls.crt"), &issued.cert);
        files.write(&format!("{folder}/tls.key"), &issued.key);
        der(&issued.cert)
    };
    fill("..first", 1);
    let second = fill("..second", 2);
    symlink("..first", files.path("..data")).expect("links can be made");
    for name in ["tls.crt", "tls.key"] {
        symlink(format!("..data/{name}"), files.path(name)).expect("links can be made");
    }
    let (cert_file, key_file) = (files.path("tls.crt"), files.path("tls.key"));
    let config = server::Config { cert_file: cert_file.clone(), key_file: key_file.clone(), ..files.server() };
    let server = ServerTls::load(&config).expect("the links lead to files");
    symlink("..second", files.path("..data_tmp")).expect("links can be made");
    std::fs::rename(files.path("..data_tmp"), files.path("..data")).expect("a rename over a link");
    std::fs::remove_dir_all(files.path("..first")).expect("Kubernetes removes the old folder");
    let outcome = server.reload().expect("the link leads elsewhere");
    assert_eq!(outcome, ReloadOutcome { replaced: vec![cert_file, key_file], failed: vec![] });
    assert_eq!(der(&std::fs::read_to_string(files.path("tls.crt")).expect("the link is good")), second);
}

#[tokio::test]
async fn the_task_tells_of_changes_whoever_finds_them_first() {
    let ca = Ca::new("ca");
    let files = Files::of(&ca);
    let sides = Sides::load(&files);
    let (sender, mut outcomes) = tokio::sync::mpsc::unbounded_channel();
    let task = tokio::spawn(sides.server.clone().run_reload(move |outcome| {
        let _ = sender.send(outcome);
    }));
    let mut next = async || tokio::time::timeout(PATIENCE, outcomes.recv()).await.expect("the task looks each second");

    files.write_pair("server", &ca.issue(Leaf { serial: 100, ..Leaf::default() }));
    sides.server.reload().expect("found here first");
    assert_eq!(next().await.expect("the task runs").replaced.len(), 2);
    files.write("ca.crt", "no certificate");
    assert_eq!(next().await.expect("the task runs").failed.len(), 1);
    task.abort();
}

#[test]
fn the_status_tells_subject_and_end_of_what_is_in_use() {
    let ca = Ca::new("the CA");
    let files = Files::of(&ca);
    let crl = files.write("revoked.crl", ca.revoke(&[8]).der());
    let server = ServerTls::load(&server::Config { client_crl_file: Some(crl), ..files.server() });
    let status = server.expect("the files are good").status();
    let told: Vec<_> =
        status.iter().map(|file| (file.role.label(), file.subject.as_str(), file.not_after.is_some())).collect();
    let expected =
        [("cert", "O=etcd", true), ("key", "", false), ("ca", "CN=the CA", true), ("crl", "CN=the CA", true)];
    assert_eq!(told, expected);
    let days = status[0].not_after.and_then(|end| end.duration_since(std::time::SystemTime::now()).ok());
    assert!(days.is_some_and(|left| left <= Duration::from_secs(24 * 3600)));
}
