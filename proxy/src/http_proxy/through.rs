//! `--discovery-proxy`: an HTTP proxy between this one and the discovery service, asked as Go's HTTP client asks one.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::HeaderValue;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::origin::Origin;
use crate::json::path::decoded;

/// The largest head of an answer to CONNECT. Proxies send a few lines.
const MAX_HEAD: usize = 8 << 10;

/// The proxy, and what it wants to know of us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Through {
    pub origin: Origin,
    pub authorization: Option<HeaderValue>,
}

impl Through {
    /// A URL; what does not begin with http is taken for a host, as in etcd.
    pub fn parse(text: &str) -> Result<Through, String> {
        let refuse = |reason: String| format!("invalid discovery-proxy: {reason}");
        let url =
            if text.starts_with("http") && text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let (scheme, rest) = url.split_once("://").unwrap_or(("http", &url));
        let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        let port = if scheme == "https" { 443 } else { 80 };
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let host = if has_port { host.to_owned() } else { format!("{host}:{port}") };
        let origin = Origin::parse(&format!("{scheme}://{host}")).map_err(refuse)?;
        if origin.host.is_empty() {
            return Err(refuse("no host is given; want a URL, such as http://proxy.example:3128".to_owned()));
        }
        let authorization = user.map(|user| {
            let encoded = STANDARD.encode(decoded(user));
            HeaderValue::try_from(format!("Basic {encoded}")).expect("base64 is printable ASCII")
        });
        Ok(Through { origin, authorization })
    }

    /// Has the proxy connect this stream to where TLS is spoken.
    pub async fn tunnel(&self, stream: &mut (impl AsyncRead + AsyncWrite + Unpin), target: &str) -> Result<(), String> {
        let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n").into_bytes();
        if let Some(value) = &self.authorization {
            request.extend_from_slice(b"Proxy-Authorization: ");
            request.extend_from_slice(value.as_bytes());
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"\r\n");
        let broken = |error: std::io::Error| format!("the proxy broke off: {error}");
        stream.write_all(&request).await.map_err(broken)?;
        // Byte by byte, since what comes after the head is the tunnel's; this is done once, at start.
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() >= MAX_HEAD {
                return Err("the proxy's answer has no end".to_owned());
            }
            head.push(stream.read_u8().await.map_err(broken)?);
        }
        let line = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
        let is_connected =
            line.starts_with("HTTP/1.") && line.split(' ').nth(1).is_some_and(|code| code.starts_with('2'));
        if is_connected { Ok(()) } else { Err(format!("the proxy refuses to connect to {target}: {line}")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_a_url_or_a_host_with_or_without_a_name_and_a_password() {
        let parse = |text| Through::parse(text).expect("a good proxy");
        assert_eq!(parse("http://a:3128").origin.url, "http://a:3128");
        assert_eq!(parse("a:3128/").origin.url, "http://a:3128");
        assert_eq!(parse("https://a").origin.url, "https://a:443");
        assert_eq!(parse("httpd").origin.url, "http://httpd:80");
        let named = parse("http://user:p%40ss@a:1");
        assert_eq!(
            (named.origin.url.as_str(), named.authorization),
            ("http://a:1", Some("Basic dXNlcjpwQHNz".parse().expect("a value")))
        );
        assert!(Through::parse("http://").is_err());
    }

    #[tokio::test]
    async fn a_tunnel_begins_after_the_proxys_answer_and_a_refusal_is_told() {
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\nX: y\r\n\r\nrest", Ok(())),
            (
                "HTTP/1.1 407 Who are you\r\n\r\n",
                Err("the proxy refuses to connect to b:443: HTTP/1.1 407 Who are you"),
            ),
            ("HTTP/1.1 200", Err("the proxy broke off: unexpected end of file")),
        ] {
            let (mut here, mut there) = tokio::io::duplex(MAX_HEAD);
            there.write_all(answer.as_bytes()).await.expect("it has room");
            let through = Through::parse("a:1").expect("a good proxy");
            let tunnel = async {
                let outcome = through.tunnel(&mut here, "b:443").await;
                assert_eq!(outcome, expected.map_err(str::to_owned));
                here
            };
            let asked = async {
                let mut asked = vec![0; 1024];
                let read = there.read(&mut asked).await.expect("it asks");
                drop(there);
                assert_eq!(&asked[..read], b"CONNECT b:443 HTTP/1.1\r\nHost: b:443\r\n\r\n");
            };
            let (mut here, ()) = tokio::join!(tunnel, asked);
            if expected.is_ok() {
                let mut rest = String::new();
                here.read_to_string(&mut rest).await.expect("the rest is there");
                assert_eq!(rest, "rest");
            }
        }
    }
}
