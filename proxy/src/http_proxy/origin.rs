//! A URL's scheme, host and port: where a member is.

use crate::doors::Address;

/// A member's URL as it was told, and what is needed to reach it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// As it was told, without a slash at the end.
    pub url: String,
    pub is_secure: bool,
    pub address: Address,
    /// What the certificate must be good for.
    pub host: String,
}

impl Origin {
    /// In Go's words if it is none.
    pub fn parse(url: &str) -> Result<Origin, String> {
        let url = url.trim().trim_end_matches('/');
        let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
        let is_secure = matches!(scheme, "https" | "unixs");
        match scheme {
            "http" | "https" => {
                if rest.contains('/') {
                    return Err(format!("URL must not contain a path: {url}"));
                }
                let host_port = rest.rsplit_once('@').map_or(rest, |(_, host_port)| host_port);
                let split = host_port.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok());
                let Some((host, _)) = split else {
                    return Err(format!("URL address does not have the form \"host:port\": {url}"));
                };
                let host = host.trim_matches(['[', ']']).to_owned();
                Ok(Origin { url: url.to_owned(), is_secure, address: Address::Tcp(host_port.to_owned()), host })
            }
            "unix" | "unixs" => {
                let file = rest.rsplit('/').next().unwrap_or(rest);
                let host = file.split(':').next().unwrap_or(file).to_owned();
                Ok(Origin { url: url.to_owned(), is_secure, address: Address::Unix(rest.into()), host })
            }
            _ => Err(format!("URL scheme must be http, https, unix, or unixs: {url}")),
        }
    }

    /// As the Host header has it.
    pub fn authority(&self) -> String {
        match &self.address {
            Address::Tcp(host_port) => host_port.clone(),
            Address::Unix(_) => "localhost".to_owned(),
        }
    }
}

/// The URLs of `name=url,name=url`, sorted, as etcd reads `--initial-cluster`.
pub fn of_cluster(cluster: &str) -> Result<Vec<String>, String> {
    let mut urls = Vec::new();
    for item in cluster.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let Some((name, url)) = item.split_once('=').filter(|(_, url)| !url.is_empty()) else {
            return Err(format!("empty URL given for {:?}", item.trim_end_matches('=')));
        };
        if name.is_empty() {
            return Err(format!("no name is given for {url}"));
        }
        urls.push(Origin::parse(url)?.url);
    }
    if urls.is_empty() {
        return Err("no member is named".to_owned());
    }
    urls.sort();
    urls.dedup();
    Ok(urls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart_and_others_refused_in_gos_words() {
        let origin = Origin::parse("https://a.example:2379/").expect("a good URL");
        assert_eq!((origin.is_secure, origin.host.as_str()), (true, "a.example"));
        assert_eq!(origin.address, Address::Tcp("a.example:2379".into()));
        assert_eq!(Origin::parse("http://[::1]:1").expect("a good URL").host, "::1");
        let socket = Origin::parse("unix://localhost:2379").expect("a good URL");
        assert_eq!(socket.address, Address::Unix("localhost:2379".into()));
        for (url, words) in [
            ("a:1", "URL scheme must be http, https, unix, or unixs: a:1"),
            ("http://a", "URL address does not have the form \"host:port\": http://a"),
            ("http://a:1/b", "URL must not contain a path: http://a:1/b"),
        ] {
            assert_eq!(Origin::parse(url), Err(words.to_owned()));
        }
    }

    #[test]
    fn a_cluster_is_the_sorted_urls_of_its_members() {
        let urls = of_cluster("b=http://b:1,a=http://a:1, a=http://a:2");
        assert_eq!(urls, Ok(["http://a:1", "http://a:2", "http://b:1"].map(str::to_owned).to_vec()));
        for wrong in ["", "a", "a=", "=http://a:1", "a=b"] {
            assert!(of_cluster(wrong).is_err(), "{wrong}");
        }
    }
}
