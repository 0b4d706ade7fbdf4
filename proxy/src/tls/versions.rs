//! TLS versions as etcd spells them in `--tls-min-version` and `--tls-max-version`.

use std::fmt;

use rustls::SupportedProtocolVersion;

/// The versions that may be spoken. Older ones are broken, and the TLS library does not have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    Tls12,
    Tls13,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    /// etcd's words, from `tlsutil.GetTLSVersion`.
    #[error("unexpected TLS version {0:?} (must be one of: TLS1.2, TLS1.3)")]
    Unexpected(String),
    #[error("tls-min-version is invalid: {0}")]
    Minimum(Box<VersionError>),
    #[error("tls-max-version is invalid: {0}")]
    Maximum(Box<VersionError>),
    #[error("min version ({min}) is greater than max version ({max})")]
    Crossed { min: Version, max: Version },
}

/// Both ends of the range, as the flags gave them, and what a person should know about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Versions {
    pub min: Option<Version>,
    pub max: Option<Version>,
    pub warning: Option<String>,
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Version::Tls12 => "TLS1.2",
            Version::Tls13 => "TLS1.3",
        })
    }
}

/// One version as etcd reads it: the empty string leaves the choice to the program.
pub fn parse(text: &str) -> Result<Option<Version>, VersionError> {
    match text {
        "" => Ok(None),
        "TLS1.2" => Ok(Some(Version::Tls12)),
        "TLS1.3" => Ok(Some(Version::Tls13)),
        other => Err(VersionError::Unexpected(other.to_string())),
    }
}

/// Both flags together, refused with the texts of etcd's `checkArgs`.
///
/// A minimum of TLS 1.0 or 1.1 asks for at least that, and TLS 1.2 is at least that: it is raised, with a warning. A
/// maximum below 1.2 asks for something that cannot be had and is refused.
pub fn parse_range(min: &str, max: &str) -> Result<Versions, VersionError> {
    let (min_version, warning) = match min {
        "TLS1.0" | "TLS1.1" => (
            Some(Version::Tls12),
            Some(format!(
                "tls-min-version {min} is raised to TLS1.2, because older versions are broken and not built in"
            )),
        ),
        other => (parse(other).map_err(|error| VersionError::Minimum(Box::new(error)))?, None),
    };
    let max_version = parse(max).map_err(|error| VersionError::Maximum(Box::new(error)))?;
    check_order(min_version, max_version)?;
    Ok(Versions { min: min_version, max: max_version, warning })
}

pub(super) fn check_order(min: Option<Version>, max: Option<Version>) -> Result<(), VersionError> {
    match (min, max) {
        (Some(min), Some(max)) if min > max => Err(VersionError::Crossed { min, max }),
        _ => Ok(()),
    }
}

/// The range in the words of the TLS library, newest first.
pub(super) fn supported(min: Option<Version>, max: Option<Version>) -> Vec<&'static SupportedProtocolVersion> {
    let (min, max) = (min.unwrap_or(Version::Tls12), max.unwrap_or(Version::Tls13));
    [(Version::Tls13, &rustls::version::TLS13), (Version::Tls12, &rustls::version::TLS12)]
        .into_iter()
        .filter(|(version, _)| min <= *version && *version <= max)
        .map(|(_, supported)| supported)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(min: &str, max: &str, expected: Result<(Option<Version>, Option<Version>), &str>) {
        let found = parse_range(min, max).map(|range| (range.min, range.max)).map_err(|error| error.to_string());
        assert_eq!(found, expected.map_err(str::to_string), "{min:?} to {max:?}");
    }

    #[test]
    fn versions_are_read_and_refused_in_the_words_of_etcd() {
        use Version::{Tls12, Tls13};
        check("", "", Ok((None, None)));
        check("TLS1.2", "", Ok((Some(Tls12), None)));
        check("TLS1.2", "TLS1.3", Ok((Some(Tls12), Some(Tls13))));
        check("TLS1.3", "TLS1.3", Ok((Some(Tls13), Some(Tls13))));
        check(
            "1.2",
            "",
            Err("tls-min-version is invalid: unexpected TLS version \"1.2\" (must be one of: TLS1.2, TLS1.3)"),
        );
        check(
            "TLS1.2",
            "TLS1.1",
            Err("tls-max-version is invalid: unexpected TLS version \"TLS1.1\" (must be one of: TLS1.2, TLS1.3)"),
        );
        check("TLS1.3", "TLS1.2", Err("min version (TLS1.3) is greater than max version (TLS1.2)"));
    }

    #[test]
    fn a_minimum_below_tls_1_2_is_raised_with_a_warning() {
        for old in ["TLS1.0", "TLS1.1"] {
            let range = parse_range(old, "").expect("an old minimum is raised, not refused");
            assert_eq!(range.min, Some(Version::Tls12));
            assert!(range.warning.is_some_and(|warning| warning.contains(old)));
        }
        assert_eq!(parse_range("TLS1.2", "").expect("TLS1.2 is fine").warning, None);
    }
}
