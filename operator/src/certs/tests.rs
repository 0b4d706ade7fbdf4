//! What is kept and what is renewed, over ten years in a moment.

use super::*;

fn object() -> Object {
    Object { namespace: "team".to_owned(), name: "x".to_owned(), uid: "u".to_owned() }
}

fn managed(names: &[&str]) -> Managed {
    Managed { names: names.iter().map(|&name| name.to_owned()).collect(), further_clients: None }
}

fn at(day: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).expect("the time is in range") + Duration::days(day)
}

fn keep_at(day: i64, stored: &Stored) -> Issued {
    keep(&object(), &managed(&["localhost", "127.0.0.1"]), stored, at(day)).expect("certificates can be issued")
}

fn trusts(bundle: &[u8], certificate: &[u8]) -> bool {
    let issuer = certificate_facts(certificate).expect("a certificate").issuer;
    let mut rest = std::str::from_utf8(bundle).expect("PEM is text");
    while let Some(at) = rest.find("-----BEGIN") {
        let end = rest[at..].find("-----END").expect("a certificate ends") + at;
        let one = &rest[at..end + "-----END CERTIFICATE-----".len()];
        if certificate_facts(one.as_bytes()).is_ok_and(|facts| facts.subject == issuer) {
            return true;
        }
        rest = &rest[end + 8..];
    }
    false
}

#[test]
fn what_is_good_is_kept() {
    let first = keep_at(0, &Stored::default());
    assert_eq!(first.renewed, ["serving CA", "client CA", "serving", "client"]);
    let second = keep_at(59, &first.stored);
    assert!(second.renewed.is_empty(), "{:?}", second.renewed);
    assert_eq!(second.stored.serving, first.stored.serving);
}

#[test]
fn a_certificate_is_renewed_well_before_it_expires_and_when_its_names_change() {
    let first = keep_at(0, &Stored::default());
    assert_eq!(keep_at(61, &first.stored).renewed, ["serving", "client"]);
    let other = keep(&object(), &managed(&["localhost", "elsewhere"]), &first.stored, at(1)).expect("it can be issued");
    assert_eq!(other.renewed, ["serving"]);
    let facts = certificate_facts(&other.stored.serving["tls.crt"]).expect("a certificate");
    assert!(facts.names.contains(&"elsewhere".to_owned()));
}

#[test]
fn a_client_certificate_names_no_user() {
    let issued = keep_at(0, &Stored::default());
    assert_eq!(certificate_facts(&issued.stored.client["tls.crt"]).expect("a certificate").common_name, None);
}

#[test]
fn what_cannot_be_read_is_issued_anew() {
    let mut stored = keep_at(0, &Stored::default()).stored;
    stored.serving.insert("tls.key".to_owned(), b"nonsense".to_vec());
    assert_eq!(keep_at(1, &stored).renewed, ["serving"]);
    stored.ca.clear();
    assert_eq!(keep_at(1, &stored).renewed.len(), 4, "without its authority nothing is good");
}

/// Peers see a Secret of some days ago and one of today; each must trust what the other shows.
#[test]
fn no_peer_ever_meets_an_authority_that_it_was_not_told_of() {
    let mut before = keep_at(0, &Stored::default()).stored;
    let mut authorities = 0;
    // The life of a certificate, and the days in which one authority follows another.
    for day in (1..130).step_by(4).chain((2420..2560).step_by(4)) {
        let issued = keep_at(day, &before);
        authorities += issued.renewed.iter().filter(|what| what.starts_with("next")).count();
        let now = issued.stored;
        assert!(trusts(&before.client["ca.crt"], &now.serving["tls.crt"]), "day {day}: an old client, a new server");
        assert!(trusts(&now.client["ca.crt"], &before.serving["tls.crt"]), "day {day}: a new client, an old server");
        assert!(
            trusts(&before.serving["client-ca.crt"], &now.client["tls.crt"]),
            "day {day}: a new client, an old server"
        );
        assert!(
            trusts(&now.serving["client-ca.crt"], &before.client["tls.crt"]),
            "day {day}: an old client, a new server"
        );
        before = now;
    }
    assert_eq!(authorities, 2, "each authority was followed by one other");
}
