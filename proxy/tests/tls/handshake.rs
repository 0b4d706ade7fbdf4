//! Who is let in and what is spoken.

use etcd_proxy::tls::{ClientTls, PeerIdentity, ServerTls, Version, client, peer_identity, self_signed, server};
use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, KeyPair, PKCS_ECDSA_P521_SHA512};
use rustls::ProtocolVersion;

use crate::pki::{Ca, Files, Issued, Leaf, connect, etcd_fixture, shake_hands};

/// Connects, and expects all of the given words in the refusal.
async fn check_refused(server: &server::Config, client: &client::Config, words: &[&str]) {
    let refusal = match connect(server, client).await {
        Ok(_) => panic!("let in, expected a refusal with {words:?}"),
        Err(refusal) => refusal,
    };
    for word in words {
        assert!(refusal.contains(word), "expected {word:?} in {refusal:?}");
    }
}

#[tokio::test]
async fn a_client_with_a_certificate_of_the_trusted_ca_is_let_in_by_name() {
    let ca = Ca::new("ca");
    let files = Files::of(&ca);
    files.write_pair("client", &ca.issue(Leaf { common_name: "alice", names: vec!["laptop"], ..Leaf::default() }));
    let client = client::Config { allow_non_empty_cn: true, ..files.client() };
    let mut connection = connect(&files.server(), &client).await.expect("both trust the CA");
    assert!(connection.is_alive().await);
    let expected = PeerIdentity { common_name: Some("alice".into()), dns_names: vec!["laptop".into()], uris: vec![] };
    assert_eq!(peer_identity(connection.client_certificates()), Some(expected));
}

#[tokio::test]
async fn without_a_trusted_ca_no_client_is_asked_for_a_certificate() {
    let files = Files::of(&Ca::new("ca"));
    let server = server::Config { trusted_ca_file: None, ..files.server() };
    let connection = connect(&server, &files.client()).await.expect("the client trusts the CA");
    assert!(connection.client_certificates().is_empty());
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused_where_one_is_wanted() {
    let files = Files::of(&Ca::new("ca"));
    let client = client::Config { cert: None, key: None, ..files.client() };
    check_refused(&files.server(), &client, &["Client: peer sent no certificates"]).await;
}

#[tokio::test]
async fn a_client_of_another_ca_is_refused() {
    let files = Files::of(&Ca::new("ca"));
    files.write_pair("client", &Ca::new("other").issue(Leaf::default()));
    check_refused(
        &files.server(),
        &files.client(),
        &["Client: ", "the certificate of the client is not of a CA in --trusted-ca-file"],
    )
    .await;
}

#[tokio::test]
async fn expired_certificates_are_refused_on_both_sides() {
    let ca = Ca::new("ca");
    let files = Files::of(&ca);
    files.write_pair("client", &ca.issue(Leaf { has_expired: true, ..Leaf::default() }));
    check_refused(&files.server(), &files.client(), &["Client: ", "the certificate of the client expired on "]).await;
    let files = Files::of(&ca);
    files.write_pair("server", &ca.issue(Leaf { has_expired: true, ..Leaf::default() }));
    check_refused(&files.server(), &files.client(), &["Etcd: ", "the certificate of etcd expired on "]).await;
}

#[tokio::test]
async fn a_revoked_client_is_refused_and_others_are_not() {
    let ca = Ca::new("ca");
    let files = Files::of(&ca);
    for version in [Version::Tls12, Version::Tls13] {
        for list in [ca.revoke(&[8]).der().to_vec(), ca.revoke(&[8]).pem().expect("PEM").into_bytes()] {
            let crl = Some(files.write("revoked.crl", list));
            let server = server::Config { client_crl_file: crl, max_version: Some(version), ..files.server() };
            check_refused(
                &server,
                &files.client(),
                &["Client: ", "the certificate of the client is revoked by --client-crl-file"],
            )
            .await;
            files.write("revoked.crl", ca.revoke(&[9, 0x0800]).der());
            connect(&server, &files.client()).await.expect("its serial is not in the list");
        }
    }
}

#[tokio::test]
async fn every_list_in_the_file_counts_and_every_certificate_that_is_shown() {
    let ca = Ca::new("ca");
    let files = Files::of(&ca);
    let middle = ca.intermediate("middle", 77);
    let mut issued = middle.issue(Leaf { serial: 9, ..Leaf::default() });
    issued.cert.push_str(&middle.pem());
    files.write_pair("client", &issued);
    let mut server = files.server();
    connect(&server, &files.client()).await.expect("the chain leads to the CA");

    let lists = [ca.revoke(&[1]).der().to_vec(), ca.revoke(&[77]).der().to_vec()].concat();
    server.client_crl_file = Some(files.write("revoked.crl", lists));
    check_refused(&server, &files.client(), &["Revoked"]).await;
    let lists = [middle.revoke(&[9]).pem().expect("PEM"), ca.revoke(&[1]).pem().expect("PEM")].concat();
    server.client_crl_file = Some(files.write("revoked.crl", lists));
    check_refused(&server, &files.client(), &["Revoked"]).await;
}

#[tokio::test]
async fn a_server_of_another_ca_is_refused_unless_verification_is_skipped() {
    let files = Files::of(&Ca::new("ca"));
    files.write_pair("server", &Ca::new("other").issue(Leaf { names: vec!["elsewhere"], ..Leaf::default() }));
    check_refused(&files.server(), &files.client(), &["Etcd: ", "the certificate of etcd is not of a CA in --cacert"])
        .await;
    let system = client::Config { cacert: None, ..files.client() };
    check_refused(&files.server(), &system, &["Etcd: ", "the certificate of etcd is not of a CA in --cacert"]).await;
    let skipping = client::Config { insecure_skip_verify: true, ..files.client() };
    connect(&files.server(), &skipping).await.expect("nothing is verified");
}

#[tokio::test]
async fn a_server_is_checked_against_its_names_and_addresses() {
    let ca = Ca::new("ca");
    let files = Files::of(&ca);
    let client = ClientTls::load(&files.client()).expect("the files are good");
    let server = ServerTls::load(&files.server()).expect("the files are good");
    let connection = shake_hands(server.config(), client.config(), "127.0.0.1").await.expect("the address is named");
    assert_eq!(connection.server.get_ref().1.server_name(), None, "no name is sent for an address");
    for stranger in ["127.0.0.2", "elsewhere"] {
        assert!(shake_hands(server.config(), client.config(), stranger).await.is_err(), "{stranger}");
    }
    files.write_pair("server", &ca.issue(Leaf { common_name: "localhost", names: vec![], ..Leaf::default() }));
    check_refused(
        &files.server(),
        &files.client(),
        &["certificate relies on legacy Common Name field, use SANs instead"],
    )
    .await;
}

#[tokio::test]
async fn a_configured_server_name_takes_the_place_of_the_host() {
    let files = Files::of(&Ca::new("ca"));
    let client = client::Config { server_name: Some("localhost".into()), ..files.client() };
    let client = ClientTls::load(&client).expect("the name is good");
    assert_eq!(client.server_name("10.0.0.3:2379").expect("a name").to_str(), "localhost");
    let client = ClientTls::load(&files.client()).expect("the files are good");
    assert_eq!(client.server_name("10.0.0.3:2379").expect("an address").to_str(), "10.0.0.3");
}

#[tokio::test]
async fn http2_and_http1_are_both_spoken_and_nothing_else() {
    let files = Files::of(&Ca::new("ca"));
    let server = ServerTls::load(&files.server()).expect("the files are good");
    let client = ClientTls::load(&files.client()).expect("the files are good");
    let check = async |offered: &[&str], expected: Option<&[u8]>| {
        let mut config = client.config().as_ref().clone();
        if !offered.is_empty() {
            config.alpn_protocols = offered.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        }
        let connection = shake_hands(server.config(), config.into(), "localhost").await;
        let found = connection.map(|connection| connection.server.get_ref().1.alpn_protocol().map(<[u8]>::to_vec));
        assert_eq!(found.ok().flatten().as_deref(), expected, "{offered:?}");
    };
    check(&[], Some(b"h2")).await;
    check(&["http/1.1", "h2"], Some(b"h2")).await;
    check(&["http/1.1"], Some(b"http/1.1")).await;
    check(&["spdy/3"], None).await;
}

#[tokio::test]
async fn versions_and_cipher_suites_are_honoured() {
    let files = Files::of(&Ca::new("ca"));
    let client = ClientTls::load(&files.client()).expect("the files are good");
    let connect = async |min, max, suites: &[&str]| {
        let cipher_suites = suites.iter().map(|suite| suite.to_string()).collect();
        let server = server::Config { min_version: min, max_version: max, cipher_suites, ..files.server() };
        let server = ServerTls::load(&server).expect("the settings are good");
        let connection =
            shake_hands(server.config(), client.config(), "localhost").await.expect("both versions are spoken");
        let session = connection.server.get_ref().1;
        let suite = session.negotiated_cipher_suite().expect("the handshake is done").suite();
        (session.protocol_version(), suite.as_str().unwrap_or_default())
    };
    assert_eq!(connect(None, None, &[]).await.0, Some(ProtocolVersion::TLSv1_3));
    assert_eq!(connect(None, Some(Version::Tls12), &[]).await.0, Some(ProtocolVersion::TLSv1_2));
    assert_eq!(connect(Some(Version::Tls13), None, &[]).await.0, Some(ProtocolVersion::TLSv1_3));
    for suite in ["TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"] {
        assert_eq!(connect(None, Some(Version::Tls12), &[suite]).await.1, suite);
        assert_eq!(connect(None, None, &[suite]).await.0, Some(ProtocolVersion::TLSv1_3));
    }
}

#[tokio::test]
async fn a_ca_is_no_client_although_it_is_of_the_trusted_ca() {
    let ca = Ca::new("ca");
    let files = Files::of(&ca);
    let key = KeyPair::generate().expect("a key can be made");
    let mut params = Leaf::default().params();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let cert = params.signed_by(&key, &ca.issuer).expect("a certificate").pem();
    files.write_pair("client", &Issued { cert, key: key.serialize_pem() });
    check_refused(&files.server(), &files.client(), &["the certificate of the client is marked as a CA"]).await;
}

#[tokio::test]
async fn a_session_is_never_resumed_past_the_checks() {
    let files = Files::of(&Ca::new("ca"));
    let server = ServerTls::load(&files.server()).expect("the files are good");
    let mut config = ClientTls::load(&files.client()).expect("the files are good").config().as_ref().clone();
    config.resumption = rustls::client::Resumption::in_memory_sessions(8);
    let config = std::sync::Arc::new(config);
    for _ in 0..3 {
        let mut connection = shake_hands(server.config(), config.clone(), "localhost").await.expect("both are good");
        assert!(connection.is_alive().await);
        assert_eq!(connection.server.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
}

#[tokio::test]
async fn the_fixtures_of_etcd_are_let_in_or_revoked_as_in_etcd() {
    let pair = |name: &str| (etcd_fixture(&format!("{name}.crt")), etcd_fixture(&format!("{name}.key.insecure")));
    for server_name in ["server", "server-ecdsa"] {
        let (cert_file, key_file) = pair(server_name);
        let server = server::Config {
            cert_file,
            key_file,
            trusted_ca_file: Some(etcd_fixture("ca.crt")),
            client_crl_file: Some(etcd_fixture("revoke.crl")),
            ..server::Config::default()
        };
        let client = |name: &str| {
            let (cert, key) = pair(name);
            let cacert = Some(etcd_fixture("ca.crt"));
            client::Config {
                cert: Some(cert),
                key: Some(key),
                cacert,
                allow_non_empty_cn: true,
                ..client::Config::default()
            }
        };
        connect(&server, &client("client-nocn")).await.expect("the client that etcd's tests use");
        connect(&server, &client("server-ecdsa")).await.expect("a client with an ECDSA key");
        check_refused(
            &server,
            &client("server-revoked"),
            &["Client: ", "the certificate of the client is revoked by --client-crl-file"],
        )
        .await;
    }
}

#[tokio::test]
async fn a_common_name_in_the_certificate_for_etcd_is_refused_in_the_words_of_etcd() {
    let cert = etcd_fixture("server.crt");
    let client = client::Config {
        cert: Some(cert.clone()),
        key: Some(etcd_fixture("server.key.insecure")),
        ..client::Config::default()
    };
    let refusal = ClientTls::load(&client).map(|_| ()).expect_err("it has a Common Name").to_string();
    assert_eq!(refusal, format!("cert has non empty Common Name (example.com): {}", cert.display()));
    let client = client::Config { allow_non_empty_cn: true, ..client };
    ClientTls::load(&client).map(|_| ()).expect("it was allowed");
}

#[tokio::test]
async fn the_certificate_that_auto_tls_makes_can_be_trusted_by_itself() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let dir = dir.path().join("fixtures/proxy");
    let auto_tls = self_signed::Config { dir: dir.clone(), validity_years: 1, hosts: vec!["localhost:23790".into()] };
    let server = server::Config { auto_tls: Some(auto_tls), ..server::Config::default() };
    let client = client::Config { cacert: Some(dir.join("cert.pem")), ..client::Config::default() };
    let server = ServerTls::load(&server).expect("the pair is made");
    let client = ClientTls::load(&client).expect("the certificate is there by now");
    shake_hands(server.config(), client.config(), "localhost").await.expect("it is trusted as it is");
}

#[tokio::test]
async fn a_pair_as_etcd_makes_it_for_auto_tls_serves_and_is_trusted_by_itself() {
    let files = Files::of(&Ca::new("ca"));
    let key = KeyPair::generate_for(&PKCS_ECDSA_P521_SHA512).expect("a key can be made");
    let check = async |leaf: Leaf| {
        let mut params = leaf.params();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let dir = files.path("fixtures");
        std::fs::create_dir_all(&dir).expect("the folder can be written");
        files.write("fixtures/cert.pem", params.self_signed(&key).expect("a certificate").pem());
        files.write("fixtures/key.pem", key.serialize_pem());
        let auto_tls = self_signed::Config { dir, validity_years: 1, hosts: vec![] };
        let server = server::Config { auto_tls: Some(auto_tls), ..server::Config::default() };
        let client = client::Config { cacert: Some(files.path("fixtures/cert.pem")), ..client::Config::default() };
        connect(&server, &client).await
    };
    check(Leaf::default()).await.expect("etcd and its clients take it so, too");
    let refusal = check(Leaf { names: vec!["elsewhere"], ..Leaf::default() }).await.err().unwrap_or_default();
    assert!(refusal.contains("not valid for name"), "{refusal}");
}

#[tokio::test]
async fn a_client_whose_certificate_stands_in_the_ca_file_is_trusted_as_it_is() {
    let files = Files::of(&Ca::new("ca"));
    let key = KeyPair::generate().expect("a key can be made");
    let check = async |leaf: Leaf, usage| {
        let mut params = leaf.params();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.extended_key_usages = vec![usage];
        let cert = params.self_signed(&key).expect("a certificate").pem();
        let trusted_ca_file = Some(files.write("trusted.crt", &cert));
        files.write_pair("client", &Issued { cert, key: key.serialize_pem() });
        connect(&server::Config { trusted_ca_file, ..files.server() }, &files.client()).await.map(|_| ())
    };
    check(Leaf::default(), ExtendedKeyUsagePurpose::ClientAuth).await.expect("Go takes it so, too");
    let expired = Leaf { has_expired: true, ..Leaf::default() };
    let refusal = check(expired, ExtendedKeyUsagePurpose::ClientAuth).await.expect_err("its time is over");
    assert!(refusal.contains("Expired"), "{refusal}");
    let refusal = check(Leaf::default(), ExtendedKeyUsagePurpose::ServerAuth).await.expect_err("it is for servers");
    assert!(refusal.contains("InvalidPurpose"), "{refusal}");
}
