//! Files that are not what they should be: each refusal names the file, what was found and what would be right.

use std::path::PathBuf;

use etcd_proxy::tls::{ClientTls, Error, ServerTls, peer_identity, server};
use proptest::prelude::*;
use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;

use crate::pki::{Ca, Files, Issued, Leaf, etcd_fixture};

struct Good {
    files: Files,
    ca: Ca,
    issued: Issued,
}

impl Good {
    fn new() -> Good {
        let ca = Ca::new("ca");
        let files = Files::of(&ca);
        let issued = ca.issue(Leaf::default());
        files.write_pair("server", &issued);
        Good { files, ca, issued }
    }

    fn load(&self) -> Result<(), Error> {
        let crl = self.files.path("revoked.crl");
        let client_crl_file = crl.exists().then_some(crl);
        ServerTls::load(&server::Config { client_crl_file, ..self.files.server() }).map(|_| ())
    }
}

/// Writes one file of an otherwise good server and expects the path and all the words in the refusal.
fn check(name: &str, content: impl AsRef<[u8]>, words: &[&str]) {
    let good = Good::new();
    let path = good.files.write(name, content);
    let refusal = good.load().expect_err("the file is wrong").to_string();
    let path = path.display().to_string();
    for word in words.iter().copied().chain([path.as_str()]) {
        assert!(refusal.contains(word), "expected {word:?} in {refusal:?}");
    }
}

fn der(pem: &str) -> Vec<u8> {
    use rustls_pki_types::pem::PemObject;
    CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM of a certificate").to_vec()
}

#[test]
fn a_wrong_file_is_refused_with_what_it_holds_and_what_would_be_right() {
    let Good { issued, ca, .. } = Good::new();
    let other = ca.issue(Leaf::default());
    for name in ["server.crt", "server.key", "ca.crt", "revoked.crl"] {
        check(name, "", &["is empty", "is needed"]);
        check(name, " \n", &["is empty", "is needed"]);
        check(name, "hello", &["is needed"]);
    }
    check("server.crt", &issued.key, &["holds PRIVATE KEY", "swapped?"]);
    check("server.key", &issued.cert, &["holds CERTIFICATE", "swapped?"]);
    check("server.crt", der(&issued.cert), &["is DER, not PEM", "openssl x509 -inform der"]);
    check("ca.crt", der(&ca.pem()), &["is DER, not PEM"]);
    let key = KeyPair::from_pem(&issued.key).expect("the key is good").serialize_der();
    check("server.key", key, &["is DER, not PEM", "openssl pkey -inform der"]);
    check("server.key", &other.key, &["tls: private key does not match public key"]);
    check("revoked.crl", ca.pem(), &["holds CERTIFICATE", "X509 CRL"]);
    check("revoked.crl", der(&ca.pem()), &["is not a revocation list"]);
    let chain = ca.pem() + &issued.cert;
    let good = Good::new();
    good.files.write("server.key", &issued.key);
    good.files.write("server.crt", chain);
    let refusal = good.load().expect_err("the leaf is not the first").to_string();
    assert!(refusal.contains("certificate 2 in it; the leaf must come first"), "{refusal}");
}

#[test]
fn half_a_file_is_refused() {
    let Good { issued, ca, .. } = Good::new();
    let list = ca.revoke(&[1]).der().to_vec();
    check("server.crt", &issued.cert[..issued.cert.len() / 2], &["broken PEM", "half written"]);
    check("server.key", &issued.key[..issued.key.len() / 2], &["broken PEM", "half written"]);
    check("ca.crt", &ca.pem()[..100], &["broken PEM", "half written"]);
    check("revoked.crl", &list[..list.len() / 2], &["half written"]);
    let not_a_certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    check("ca.crt", ca.pem() + not_a_certificate, &["certificate 2 of 2"]);
}

#[test]
fn an_encrypted_key_is_refused_with_the_way_to_open_it() {
    let section = |label: &str, text: &str| format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n");
    check("server.key", section("ENCRYPTED PRIVATE KEY", "AAAA"), &["encrypted private key", "openssl pkey"]);
    let old = section("RSA PRIVATE KEY", "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA");
    check("server.key", old, &["encrypted private key", "openssl pkey"]);
}

#[test]
fn a_file_that_cannot_be_read_is_refused() {
    for name in ["server.crt", "server.key", "ca.crt"] {
        let good = Good::new();
        std::fs::remove_file(good.files.path(name)).expect("the file is there");
        let refusal = good.load().expect_err("the file is missing").to_string();
        assert!(refusal.contains(name) && refusal.contains("no such file"), "{refusal}");
        std::fs::create_dir(good.files.path(name)).expect("the folder can be written");
        let refusal = good.load().expect_err("a folder in its place").to_string();
        assert!(refusal.contains(name) && refusal.contains("it is a directory"), "{refusal}");
    }
}

#[test]
fn keys_of_all_three_formats_and_files_with_more_in_them_are_taken() {
    let good = Good::new();
    good.files.write("server.crt", format!("A comment.\n{}{}", good.issued.key, good.issued.cert));
    good.files.write("server.key", format!("{}{}", good.issued.cert, good.issued.key));
    good.files.write("ca.crt", format!("# first\n{}\n# second\n{}", good.ca.pem(), Ca::new("other").pem()));
    good.load().expect("PKCS#8, among other sections");
    for name in ["server", "server-ecdsa"] {
        let key = std::fs::read_to_string(etcd_fixture(&format!("{name}.key.insecure"))).expect("the fixture is there");
        // `openssl ecparam -genkey` writes the curve in front of the key.
        let parameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
        good.files.write("server.key", format!("{parameters}{key}"));
        std::fs::copy(etcd_fixture(&format!("{name}.crt")), good.files.path("server.crt"))
            .expect("the fixture is there");
        good.load().expect("PKCS#1 and SEC1");
    }
}

#[test]
fn half_a_pair_and_no_pair_are_refused_in_the_words_of_etcd() {
    let good = Good::new();
    let refusal = |config: server::Config| ServerTls::load(&config).map(|_| ()).expect_err("no pair").to_string();
    let half = server::Config { key_file: PathBuf::new(), cert_file: "c.pem".into(), ..good.files.server() };
    assert_eq!(refusal(half), "KeyFile and CertFile must both be present[key: , cert: c.pem]");
    let none = server::Config { key_file: PathBuf::new(), cert_file: PathBuf::new(), ..good.files.server() };
    assert!(refusal(none).contains("KeyFile and CertFile are not presented"));
}

/// Bytes that look like what is expected often enough to get past the first check.
fn foreign_bytes() -> impl Strategy<Value = Vec<u8>> {
    let Good { issued, ca, .. } = Good::new();
    let list = ca.revoke(&[1, 2, 3]);
    let crl_pem = list.pem().expect("PEM");
    let samples = vec![
        issued.cert.into_bytes(),
        issued.key.into_bytes(),
        ca.pem().into_bytes(),
        list.der().to_vec(),
        crl_pem.into_bytes(),
    ];
    let mutated = (proptest::sample::select(samples), any::<(prop::sample::Index, u8, prop::sample::Index)>());
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..400),
        "-----BEGIN [A-Z0-9 -]{0,20}-----\n[A-Za-z0-9+/=\n -]{0,80}".prop_map(String::into_bytes),
        mutated.prop_map(|(mut bytes, (at, value, end))| {
            let at = at.index(bytes.len());
            bytes[at] = value;
            let end = end.index(bytes.len() * 2).min(bytes.len());
            bytes.truncate(end);
            bytes
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn foreign_bytes_in_any_file_never_panic(bytes in foreign_bytes()) {
        let good = Good::new();
        good.files.write("revoked.crl", good.ca.revoke(&[1]).der());
        let config = server::Config { client_crl_file: Some(good.files.path("revoked.crl")), ..good.files.server() };
        let server = ServerTls::load(&config).expect("the files are good so far");
        for name in ["server.crt", "server.key", "ca.crt", "revoked.crl"] {
            let before = std::fs::read(good.files.path(name)).expect("the file is there");
            if before == bytes {
                continue;
            }
            good.files.write(name, &bytes);
            let refusal = ServerTls::load(&config).map(|_| ());
            let outcome = server.reload().expect("the content has changed");
            prop_assert_eq!(refusal.is_err(), !outcome.failed.is_empty());
            let _ = ClientTls::load(&good.files.client()).map(|_| ());
            good.files.write(name, before);
            server.reload();
        }
        let _ = peer_identity(&[CertificateDer::from(bytes)]);
    }

    #[test]
    fn a_certificate_with_a_changed_byte_never_panics(at in any::<prop::sample::Index>(), value in any::<u8>()) {
        let mut changed = der(&Good::new().issued.cert);
        let at = at.index(changed.len());
        changed[at] = value;
        let _ = peer_identity(&[CertificateDer::from(changed)]);
    }
}
