//! Cipher suites by the names that Go has for them, as `--listen-cipher-suites` takes them.
//!
//! Go knows more suites than the TLS library has: those with CBC, RC4, 3DES, and those that exchange keys by RSA
//! without forward secrecy. A list with one of them is refused rather than thinned out: whoever wrote it has clients in
//! mind that could then not connect, and should hear so at start and not from the clients.

use rustls::SupportedCipherSuite;
use rustls::crypto::aws_lc_rs::cipher_suite as suites;

use super::Version;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CipherError {
    /// etcd's words, from `tlsutil.GetCipherSuites`.
    #[error("unexpected TLS cipher suite {0:?}")]
    Unexpected(String),
    #[error("TLS cipher suite {name:?} is not supported because it {reason}; supported are {}", names().join(", "))]
    Unsupported { name: String, reason: &'static str },
    /// etcd's words, from `checkArgs` of the grpc-proxy.
    #[error("cipher suites cannot be configured when only TLS1.3 is enabled")]
    OnlyTls13,
    #[error("the list has only TLS 1.3 cipher suites, but tls-max-version is TLS1.2; add one of {}", names().join(", "))]
    NoneForTls12,
}

/// Go's name and the suite. The two names that end in `POLY1305` are etcd's own aliases.
const SUPPORTED: &[(&str, SupportedCipherSuite)] = &[
    ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", suites::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", suites::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", suites::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305", suites::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", suites::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", suites::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", suites::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305", suites::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
    ("TLS_AES_128_GCM_SHA256", suites::TLS13_AES_128_GCM_SHA256),
    ("TLS_AES_256_GCM_SHA384", suites::TLS13_AES_256_GCM_SHA384),
    ("TLS_CHACHA20_POLY1305_SHA256", suites::TLS13_CHACHA20_POLY1305_SHA256),
];

const NO_FORWARD_SECRECY: &str = "exchanges keys by RSA, without forward secrecy";
const CBC: &str = "uses CBC, which is open to padding attacks";
const RC4: &str = "uses RC4, which is broken";
const TRIPLE_DES: &str = "uses 3DES, whose blocks are too small";

/// What Go accepts and we do not have.
const REFUSED: &[(&str, &str)] = &[
    ("TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA", CBC),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA", CBC),
    ("TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA", CBC),
    ("TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA", CBC),
    ("TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256", CBC),
    ("TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256", CBC),
    ("TLS_ECDHE_ECDSA_WITH_RC4_128_SHA", RC4),
    ("TLS_ECDHE_RSA_WITH_RC4_128_SHA", RC4),
    ("TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA", TRIPLE_DES),
    ("TLS_RSA_WITH_RC4_128_SHA", NO_FORWARD_SECRECY),
    ("TLS_RSA_WITH_3DES_EDE_CBC_SHA", NO_FORWARD_SECRECY),
    ("TLS_RSA_WITH_AES_128_CBC_SHA", NO_FORWARD_SECRECY),
    ("TLS_RSA_WITH_AES_256_CBC_SHA", NO_FORWARD_SECRECY),
    ("TLS_RSA_WITH_AES_128_CBC_SHA256", NO_FORWARD_SECRECY),
    ("TLS_RSA_WITH_AES_128_GCM_SHA256", NO_FORWARD_SECRECY),
    ("TLS_RSA_WITH_AES_256_GCM_SHA384", NO_FORWARD_SECRECY),
];

/// The names of the TLS 1.2 suites that a list may have.
pub fn names() -> Vec<&'static str> {
    SUPPORTED.iter().filter(|(name, suite)| !is_tls13(suite) && name.contains("_SHA")).map(|(name, _)| *name).collect()
}

/// The suites to offer: the TLS 1.3 ones always, since Go does not let a list take them away, and of TLS 1.2 those in
/// the list, or all when it is empty. The order is the library's, as Go has ignored the order of the list since 1.17.
///
/// A list with nothing but names of TLS 1.3 leaves TLS 1.2 without a suite, as it does in Go.
pub fn select(
    names: &[String],
    min: Option<Version>,
    max: Option<Version>,
) -> Result<Vec<SupportedCipherSuite>, CipherError> {
    let wanted = names.iter().map(|name| find(name)).collect::<Result<Vec<_>, _>>()?;
    if min == Some(Version::Tls13) && !wanted.is_empty() {
        return Err(CipherError::OnlyTls13);
    }
    if max == Some(Version::Tls12) && !wanted.is_empty() && wanted.iter().all(is_tls13) {
        return Err(CipherError::NoneForTls12);
    }
    let all = rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES.iter().copied();
    Ok(all.filter(|suite| is_tls13(suite) || wanted.is_empty() || wanted.contains(suite)).collect())
}

fn find(name: &str) -> Result<SupportedCipherSuite, CipherError> {
    if let Some((_, suite)) = SUPPORTED.iter().find(|(known, _)| *known == name) {
        return Ok(*suite);
    }
    Err(match REFUSED.iter().find(|(known, _)| *known == name) {
        Some((_, reason)) => CipherError::Unsupported { name: name.to_string(), reason },
        None => CipherError::Unexpected(name.to_string()),
    })
}

fn is_tls13(suite: &SupportedCipherSuite) -> bool {
    matches!(suite, SupportedCipherSuite::Tls13(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select_names(names: &[&str], min: Option<Version>, max: Option<Version>) -> Result<usize, String> {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        select(&names, min, max).map(|suites| suites.len()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_list_narrows_tls_1_2_and_leaves_tls_1_3_alone() {
        assert_eq!(select_names(&[], None, None), Ok(9));
        assert_eq!(select_names(&["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"], None, None), Ok(4));
        assert_eq!(select_names(&["TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305"], None, None), Ok(4));
        assert_eq!(select_names(&["TLS_AES_128_GCM_SHA256"], None, None), Ok(3));
    }

    #[test]
    fn names_are_refused_in_the_words_of_etcd() {
        assert_eq!(select_names(&["FOO"], None, None), Err("unexpected TLS cipher suite \"FOO\"".to_string()));
        assert_eq!(
            select_names(&["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"], Some(Version::Tls13), None),
            Err("cipher suites cannot be configured when only TLS1.3 is enabled".to_string())
        );
        assert!(select_names(&["TLS_AES_128_GCM_SHA256"], None, Some(Version::Tls12)).is_err());
    }

    #[test]
    fn suites_that_only_go_has_are_refused_with_the_names_that_would_do() {
        for (name, _) in REFUSED {
            let refusal = select_names(&[name], None, None).expect_err("not built in");
            assert!(refusal.contains(name) && refusal.contains("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"), "{refusal}");
        }
        assert_eq!(names().len(), 6);
    }
}
