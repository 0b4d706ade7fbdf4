//! HTTP under TLS on both sides: the listeners ask for certificates, and so does etcd.

use etcd_proxy_e2e::{Authority, Etcd, Proxy, Tls, ports};

use crate::{
    HEALTHY,
    client::{BOTH, Place},
    until_status,
};

#[tokio::test(flavor = "multi_thread")]
async fn every_listener_and_the_way_to_etcd_take_and_ask_for_certificates() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let authority = Authority::new(folder.path());
    let (server, client) = (authority.server("server"), authority.nameless_client("client"));
    let tls = Tls { server: server.clone(), ca: authority.ca(), client_cert_auth: true };
    let etcd = Etcd::builder().tls(tls).start();
    let (secure, open) = (ports::free_address(), ports::free_address());
    let ca = authority.ca();
    let proxy = Proxy::builder()
        .flag(format!("--endpoints={}", etcd.endpoints()))
        .flag(format!("--metrics-addr=https://{secure},http://{open}"))
        .flag(format!("--cert-file={}", server.cert.display()))
        .flag(format!("--key-file={}", server.key.display()))
        .flag(format!("--trusted-ca-file={}", ca.display()))
        .flag(format!("--cert={}", client.cert.display()))
        .flag(format!("--key={}", client.key.display()))
        .flag(format!("--cacert={}", ca.display()))
        .start();
    let places = [
        Place::tls(proxy.address(), ca.clone(), Some(&client)),
        Place::tls(&secure, ca.clone(), Some(&client)),
        Place::plain(&open),
    ];
    for place in &places {
        until_status(place, "/readyz", 200).await;
        for spoken in BOTH {
            for path in ["/health", "/proxy/health"] {
                let answer = place.get(spoken, path).await;
                assert_eq!((answer.status, answer.body.as_str()), (200, HEALTHY), "{path} {spoken:?}");
            }
            let answer = place.get(spoken, "/metrics").await;
            assert_eq!(answer.status, 200, "{answer:?}");
            assert!(answer.body.contains("etcd_server_has_leader 1"), "{answer:?}");
            assert_eq!(place.get(spoken, "/version").await.status, 200);
        }
    }
    let metrics = places[2].get(BOTH[0], "/proxy/metrics").await.body;
    for (role, side) in [("cert", "clients"), ("ca", "clients"), ("cert", "etcd"), ("ca", "etcd")] {
        let current = format!("etcd_proxy_tls_file_current{{role=\"{role}\",side=\"{side}\"}} 1");
        assert!(metrics.lines().any(|line| line == current), "missing {current} in {metrics}");
        let expiry = format!("etcd_proxy_tls_expiry_timestamp_seconds{{role=\"{role}\",side=\"{side}\"}} ");
        let expiry = metrics.lines().find_map(|line| line.strip_prefix(&expiry)).expect("it has a date");
        assert!(expiry.parse::<f64>().is_ok_and(|seconds| seconds > 1.7e9), "{expiry}");
    }

    for address in [proxy.address(), &secure] {
        let stranger = Place::tls(address, ca.clone(), None);
        let refused = stranger.try_to_ask(BOTH[0], http::Method::GET, "/health", "").await;
        assert!(refused.is_err(), "a client without a certificate is served: {refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_counted_and_a_broken_one_too() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let authority = Authority::new(folder.path());
    let server = authority.server("server");
    let etcd = Etcd::start();
    let metrics = ports::free_address();
    let _proxy = Proxy::builder()
        .flag(format!("--endpoints={}", etcd.endpoints()))
        .flag(format!("--metrics-addr=http://{metrics}"))
        .flag(format!("--cert-file={}", server.cert.display()))
        .flag(format!("--key-file={}", server.key.display()))
        .start();
    let place = Place::plain(&metrics);
    let until_series = async |series: &str| {
        let deadline = std::time::Instant::now() + etcd_proxy_e2e::process::PATIENCE;
        while !place.get(BOTH[0], "/proxy/metrics").await.body.lines().any(|line| line == series) {
            assert!(std::time::Instant::now() < deadline, "{series} does not come");
            tokio::time::sleep(crate::POLL).await;
        }
    };
    let good = std::fs::read(&server.cert).expect("it can be read");
    std::fs::write(&server.cert, "no certificate").expect("it can be written");
    until_series(r#"etcd_proxy_tls_reloads_total{result="failure",side="clients"} 1"#).await;
    until_series(r#"etcd_proxy_tls_file_current{role="cert",side="clients"} 0"#).await;
    assert_eq!(place.get(BOTH[0], "/readyz/certificates").await.status, 200, "the old one is still good");
    std::fs::write(&server.cert, good).expect("it can be written");
    until_series(r#"etcd_proxy_tls_file_current{role="cert",side="clients"} 1"#).await;
    authority.server("server");
    until_series(r#"etcd_proxy_tls_reloads_total{result="success",side="clients"} 1"#).await;
}
