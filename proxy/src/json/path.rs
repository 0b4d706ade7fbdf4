//! Which paths are the API's, and what Go's multiplexer makes of a path before it looks for one.

/// Where the API is, and where it was before it was called so.
const PREFIX: &str = "/v3/";
const OLD_PREFIX: &str = "/v3beta/";

/// Whether a request's path, as it came, is for the API in JSON.
pub fn takes(path: &str) -> bool {
    let path = decoded(path);
    if path == super::OPENAPI_PATH {
        return true;
    }
    let path = current(&path);
    let path = cleaned(&path).unwrap_or(path);
    path.starts_with(PREFIX)
}

/// A path without its percent signs. One that is not UTF-8 then is none of ours.
pub fn decoded(path: &str) -> String {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = (*first == b'%').then(|| after.get(..2)).flatten();
        // The parser of numbers would take a sign as well.
        let digits = digits.filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let byte = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        out.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A path, percent signs where Go puts them.
pub fn escaped(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~/$&+,:;=@!'()*".contains(&byte);
    path.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// The old name as the present one.
pub fn current(path: &str) -> String {
    path.strip_prefix(OLD_PREFIX).map_or_else(|| path.to_owned(), |rest| format!("{PREFIX}{rest}"))
}

/// The path without `//`, `.` and `..`, if it has any; and `/v3` as the folder that it is.
pub fn cleaned(path: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => (),
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let mut clean = format!("/{}", parts.join("/"));
    if (path.ends_with('/') && clean != "/") || format!("{clean}/") == PREFIX {
        clean.push('/');
    }
    (clean != path).then_some(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_apis_paths_are_known_in_every_spelling() {
        for path in
            ["/v3/kv/range", "/v3/", "/v3", "/v3//kv", "//v3/kv", "/v3beta/kv/range", "/v3/%6bv", "/openapi.json"]
        {
            assert!(takes(path), "{path}");
        }
        for path in ["/", "/health", "/v3alpha/kv/range", "/v3x", "/v3/../health", "/v2/keys", "/v3beta", "*", ""] {
            assert!(!takes(path), "{path}");
        }
    }

    #[test]
    fn paths_are_cleaned_as_go_cleans_them() {
        for (path, expected) in [
            ("/v3/kv/range", None),
            ("/v3/kv/range/", None),
            ("/v3", Some("/v3/")),
            ("/v3//kv/range", Some("/v3/kv/range")),
            ("/v3/./kv/../kv//", Some("/v3/kv/")),
            ("/../..//", Some("/")),
        ] {
            assert_eq!(cleaned(path).as_deref(), expected, "{path}");
        }
        assert_eq!(decoded("/v3/r%61nge%2"), "/v3/range%2");
        assert_eq!(escaped("/a b/\u{e9}?"), "/a%20b/%C3%A9%3F");
        assert_eq!(current("/v3beta/kv/range"), "/v3/kv/range");
    }
}
