//! Which peers the cluster has, and by which URLs its members serve clients: asked at the peers, kept in a file.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{discovery, origin::Origin, pool::Pool};

/// How long one peer may take over its member list, as in etcd.
const TIMEOUT: Duration = Duration::from_secs(10);
/// etcd's name of the folder below the data directory, and of the file in it.
const FOLDER: &str = "proxy";
const FILE: &str = "cluster";

/// The file in which a proxy remembers its cluster, so that a restart finds it without discovery.
#[derive(Debug)]
pub struct State {
    path: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    #[serde(rename = "PeerURLs")]
    peer_urls: Vec<String>,
}

impl State {
    /// Makes the folder, and refuses that of a member.
    pub fn open(data_dir: &Path) -> Result<State, String> {
        let folder = data_dir.join(FOLDER);
        let of_member = data_dir.join("member");
        if of_member.exists() {
            let both = "invalid datadir; both member and proxy directories exist";
            let only = "it holds the data of a member; start etcd with it, or give another --data-dir";
            return Err(format!("{}: {}", data_dir.display(), if folder.exists() { both } else { only }));
        }
        fs::create_dir_all(&folder).map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
        Ok(State { path: folder.join(FILE) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The peer URLs that were kept, if any were.
    pub fn read(&self) -> Result<Option<Vec<String>>, String> {
        let failed = |error: &dyn std::fmt::Display| format!("cannot read {}: {error}", self.path.display());
        match fs::read(&self.path) {
            Ok(text) => {
                let kept: Kept = serde_json::from_slice(&text).map_err(|error| failed(&error))?;
                Ok(Some(kept.peer_urls))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(&error)),
        }
    }

    /// Replaces the file as a whole, so that a crash leaves the old one or the new one.
    pub fn write(&self, peer_urls: &[String]) -> io::Result<()> {
        let text = serde_json::to_vec(&Kept { peer_urls: peer_urls.to_vec() })?;
        let temporary = self.path.with_extension("bak");
        let mut file = File::create(&temporary)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&temporary, &self.path)
    }
}

/// A member as `/members` tells of it.
#[derive(Deserialize)]
pub(super) struct Member {
    #[serde(default, rename = "peerURLs")]
    peer_urls: Vec<String>,
    #[serde(default, rename = "clientURLs")]
    client_urls: Vec<String>,
    #[serde(default, rename = "isLearner")]
    is_learner: bool,
}

/// What the members tell of their cluster.
#[derive(Debug, PartialEq, Eq)]
pub struct Members {
    pub peer_urls: Vec<String>,
    /// Of those that may vote: learners refuse most requests.
    pub client_urls: Vec<String>,
}

/// Asks one peer after the other until one tells.
pub async fn members(pool: &Pool, peer_urls: &[String]) -> Result<Members, String> {
    for url in peer_urls {
        let address = format!("{url}/members");
        let asked = async {
            let origin = Origin::parse(url)?;
            let (head, body) = discovery::ask_whole(pool, &origin, "/members").await?;
            if head.headers.get("x-etcd-cluster-id").is_none() {
                return Err(format!("it answers {} without the id of a cluster", head.status));
            }
            let members: Vec<Member> = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
            Ok(members)
        };
        match tokio::time::timeout(TIMEOUT, asked).await.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
            Ok(members) if members.is_empty() => {
                return Err("failed to get raft cluster member(s) from the given URLs".to_owned());
            }
            Ok(members) => return Ok(summary(members)),
            Err(error) => tracing::warn!(address, error, "failed to get cluster response"),
        }
    }
    Err("could not retrieve cluster information from the given URLs".to_owned())
}

pub(super) fn summary(members: Vec<Member>) -> Members {
    let sorted = |urls: &mut Vec<String>| {
        urls.sort();
        urls.dedup();
    };
    let voters = members.iter().filter(|member| !member.is_learner);
    let mut client_urls: Vec<String> = voters.flat_map(|member| member.client_urls.clone()).collect();
    let mut peer_urls: Vec<String> = members.into_iter().flat_map(|member| member.peer_urls).collect();
    sorted(&mut client_urls);
    sorted(&mut peer_urls);
    Members { peer_urls, client_urls }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_etcds_and_is_found_again() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let state = State::open(folder.path()).expect("a fresh folder");
        assert_eq!(state.read(), Ok(None));
        state.write(&["http://a:2380".into()]).expect("the folder can be written to");
        let text = fs::read_to_string(folder.path().join("proxy/cluster")).expect("the file is there");
        assert_eq!(text, r#"{"PeerURLs":["http://a:2380"]}"#);
        assert_eq!(State::open(folder.path()).expect("our folder").read(), Ok(Some(vec!["http://a:2380".into()])));
        fs::write(state.path(), "{").expect("the folder can be written to");
        assert!(state.read().is_err());
        fs::create_dir(folder.path().join("member")).expect("the folder can be written to");
        assert!(State::open(folder.path()).is_err_and(|error| error.contains("both member and proxy")));
    }

    #[test]
    fn learners_serve_no_clients() {
        let members = r#"[{"peerURLs":["http://b:2"],"clientURLs":["http://b:1"]},
            {"peerURLs":["http://a:2"],"clientURLs":["http://a:1"],"isLearner":true}]"#;
        let members = summary(serde_json::from_str(members).expect("JSON"));
        assert_eq!(members.client_urls, ["http://b:1"]);
        assert_eq!(members.peer_urls, ["http://a:2", "http://b:2"]);
    }
}
