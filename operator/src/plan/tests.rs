//! Refusals: each says which field it is about and what would be right.

use super::*;

fn proxy(spec: &str) -> EtcdProxy {
    let text = format!(
        "{{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdProxy, metadata: {{name: x, namespace: team, uid: u}}, \
         spec: {spec}}}"
    );
    serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{spec}: {error}"))
}

fn fetched() -> Fetched {
    let backend = serde_yaml::from_str(
        "{apiVersion: etcdproxy.dev/v1alpha1, kind: EtcdBackend, metadata: {name: shared}, spec: {\
         endpoints: ['http://etcd:2379'], namespace: backend, keyspace: {root: /t/}, \
         allowedNamespaces: {selector: {matchExpressions: [{key: etcd, operator: In, values: [yes]}]}}, \
         limits: {modes: [Deployment]}, grants: [{name: theirs, prefix: /old/, namespaces: [other]}]}}",
    );
    let backend = Some(backend.expect("the backend is written right"));
    Fetched { backend, namespace_labels: BTreeMap::from([("etcd".to_owned(), "yes".to_owned())]), ..Fetched::default() }
}

fn settings() -> Settings {
    Settings::with_image("i")
}

/// Checks the reason, and that the message has the words.
#[track_caller]
fn refused(spec: &str, fetched: &Fetched, settings: &Settings, reason: &str, words: &str) {
    let refusal = check(&proxy(spec), fetched, settings).expect_err("it is refused");
    assert_eq!(refusal.reason, reason, "{refusal:?}");
    assert!(refusal.message.contains(words), "{refusal:?}");
}

const SHARED: &str = "{mode: Deployment, backendRef: {name: shared}}";

#[test]
fn a_backend_is_for_those_whom_it_allows() {
    assert!(check(&proxy(SHARED), &fetched(), &settings()).is_ok());
    let none = Fetched::default();
    refused(SHARED, &none, &settings(), "BackendNotFound", "spec.backendRef names EtcdBackend shared");
    let other = Fetched { namespace_labels: BTreeMap::new(), ..fetched() };
    refused(SHARED, &other, &settings(), "NamespaceNotAllowed", "spec.allowedNamespaces");
    refused(
        "{backendRef: {name: shared}}",
        &fetched(),
        &settings(),
        "ModeNotAllowed",
        "[Deployment], and not DaemonSet",
    );
    let many = "{mode: Deployment, replicas: 6, backendRef: {name: shared}}";
    refused(many, &fetched(), &settings(), "ReplicasExceedLimit", "spec.replicas is 6");
    let grant = "{mode: Deployment, backendRef: {name: shared, grant: theirs}}";
    refused(grant, &fetched(), &settings(), "GrantNotFound", "has no grant theirs for namespace team");
    let greedy = "{mode: Deployment, replicas: 6, backendRef: {name: shared, grant: theirs}}";
    refused(greedy, &fetched(), &settings(), "GrantNotFound", "has no grant theirs for namespace team");
}

#[test]
fn what_cannot_be_a_name_is_never_asked_for() {
    for good in ["a", "a-1.b", &"a".repeat(253)] {
        assert!(is_object_name(good), "{good}");
    }
    for bad in
        ["", "A", "a/b", "..", "a..b", "../b", "a?b", "a#b", "a b", "a%2fb", "-a", "a-", "ä", "a\n", &"a".repeat(254)]
    {
        assert!(!is_object_name(bad), "{bad}");
    }
}

#[test]
fn an_etcd_of_ones_own_can_be_forbidden() {
    let settings = Settings { inline_upstream: false, ..settings() };
    let own = "{upstream: {endpoints: ['http://a:1']}}";
    refused(own, &Fetched::default(), &settings, "InlineUpstreamForbidden", "use spec.backendRef");
}

#[test]
fn a_user_without_a_name_or_password_is_refused() {
    let spec = "{upstream: {endpoints: ['https://a:1'], auth: {secretRef: {name: u}}}}";
    let key = ObjectKey { kind: crate::api::RefKind::Secret, namespace: "team".to_owned(), name: "u".to_owned() };
    let with = |found: Found| Fetched { objects: BTreeMap::from([(key.clone(), found)]), ..Fetched::default() };
    let data = |keys: &[&str]| Found::Data(keys.iter().map(|key| ((*key).to_owned(), b"x".to_vec())).collect());
    refused(spec, &with(Found::Missing), &settings(), "SecretNotFound", "spec.upstream.auth.secretRef names Secret u");
    refused(spec, &with(data(&["username"])), &settings(), "KeyMissing", "has no key password");
    refused(spec, &with(data(&["password"])), &settings(), "KeyMissing", "has no key username");
    for found in [data(&["username", "password"]), Found::NotReadable] {
        assert!(check(&proxy(spec), &with(found), &settings()).is_ok());
    }
}

#[test]
fn an_update_that_can_never_happen_is_refused() {
    let with = |strategy: &str| format!("{{upstream: {{endpoints: ['http://a:1']}}, updateStrategy: {strategy}}}");
    let nothing = Fetched::default();
    refused(&with("{maxSurge: 0, maxUnavailable: 0}"), &nothing, &settings(), "InvalidUpdateStrategy", "both 0");
    refused(&with("{maxSurge: 1, maxUnavailable: 10%}"), &nothing, &settings(), "InvalidUpdateStrategy", "DaemonSet");
    for (given, surge, unavailable) in [("{maxSurge: 0%}", 0, 1), ("{maxUnavailable: 0}", 1, 0), ("{}", 1, 0)] {
        let plan = check(&proxy(&with(given)), &nothing, &settings()).expect("it is a good strategy");
        let workload = plan.workload.expect("it has pods");
        let zero = |quantity: &Quantity| i32::from(!is_zero(quantity));
        assert_eq!((zero(&workload.max_surge), zero(&workload.max_unavailable)), (surge, unavailable), "{given}");
    }
}

#[test]
fn names_abroad_are_unique_and_fit() {
    let object =
        |namespace: &str, name: &str| Object { namespace: namespace.into(), name: name.into(), uid: "u".into() };
    let backend: EtcdBackend = fetched().backend.expect("there is one");
    let base = |namespace: &str, name: &str| Home::of(&object(namespace, name), Some(&backend)).base;
    assert_ne!(base("a", "b-c"), base("a-b", "c"), "where names are joined the hash tells them apart");
    let long = base(&"9".repeat(63), &"n".repeat(40));
    assert!(long.len() <= 58 && long.starts_with("p-"), "{long}");
}

#[test]
fn a_secret_that_cannot_serve_is_refused_by_what_is_wrong_with_it() {
    let spec = "{upstream: {endpoints: ['https://a:1'], tls: {secretRef: {name: c}}}}";
    let key = ObjectKey { kind: crate::api::RefKind::Secret, namespace: "team".to_owned(), name: "c".to_owned() };
    let with =
        |found: Found, now| Fetched { objects: BTreeMap::from([(key.clone(), found)]), now, ..Fetched::default() };
    let data = |certificate: &str, key: &str| {
        Found::Data(BTreeMap::from([
            ("tls.crt".to_owned(), certificate.as_bytes().to_vec()),
            ("tls.key".to_owned(), key.as_bytes().to_vec()),
            ("ca.crt".to_owned(), certificate.as_bytes().to_vec()),
        ]))
    };
    let with_ca = |found: Found, ca: Option<&str>| {
        let Found::Data(mut data) = found else { panic!("there is data") };
        match ca {
            Some(ca) => data.insert("ca.crt".to_owned(), ca.as_bytes().to_vec()),
            None => data.remove("ca.crt"),
        };
        Found::Data(data)
    };
    let issue = |name: Option<&str>| {
        let key = rcgen::KeyPair::generate().expect("a key can be made");
        let mut parameters = rcgen::CertificateParams::default();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(name) = name {
            parameters.distinguished_name.push(rcgen::DnType::CommonName, name);
        }
        (parameters.self_signed(&key).expect("a key can sign").pem(), key.serialize_pem())
    };
    let (nameless, its_key) = issue(None);
    let (named, named_key) = issue(Some("root"));
    let after_all = 9_999_999_999_999;
    for (found, now, reason, words) in [
        (Found::Missing, 0, "SecretNotFound", "spec.upstream.tls.secretRef names Secret c"),
        (Found::Data(BTreeMap::new()), 0, "KeyMissing", "has no key tls.crt"),
        (data("nonsense", &its_key), 0, "CertificateInvalid", "holds no PEM certificate"),
        (data(&nameless, &its_key), after_all, "CertificateExpired", "has expired"),
        (data(&nameless, &named_key), 0, "KeyMismatch", "do not belong together"),
        (data(&named, &named_key), 0, "CertificateInvalid", "common name \"root\""),
        (data(&nameless, "nonsense"), 0, "CertificateInvalid", "tls.key holds no private key that can be read"),
        (data(&nameless, &nameless), 0, "CertificateInvalid", "tls.key holds no private key that can be read"),
        (with_ca(data(&nameless, &its_key), None), 0, "KeyMissing", "set spec.upstream.tls.caRef"),
        (with_ca(data(&nameless, &its_key), Some(" \n")), 0, "KeyMissing", "no ca.crt, or an empty one"),
        (
            with_ca(data(&nameless, &its_key), Some("nonsense")),
            0,
            "CertificateInvalid",
            "ca.crt holds no PEM certificate",
        ),
    ] {
        refused(spec, &with(found, now), &settings(), reason, words);
    }
    for found in [data(&nameless, &its_key), Found::NotReadable] {
        assert!(check(&proxy(spec), &with(found, 0), &settings()).is_ok());
    }
}
