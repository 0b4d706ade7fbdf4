//! One port for many tenants, whom rules tell apart by their certificates.

use std::{fs, path::PathBuf};

use etcd_proxy_e2e::{Authority, Etcd, Etcdctl, Pair, Proxy, Version};
use tempfile::TempDir;

pub struct Port {
    pub proxy: Proxy,
    pub etcd: Etcd,
    pub authority: Authority,
    /// The file of the rules.
    pub config: PathBuf,
    pub folder: TempDir,
}

impl Port {
    /// With these rules, and with flags beside them that may name files in the folder.
    pub fn open(rules: &str, flags: impl FnOnce(&TempDir) -> Vec<String>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let authority = Authority::new(folder.path());
        let etcd = Etcd::start();
        let server = authority.server("server");
        let config = folder.path().join("proxy.yaml");
        fs::write(&config, rules).expect("the file can be written");
        let proxy = Proxy::builder()
            .flag(format!("--endpoints={}", etcd.endpoints()))
            .flag(format!("--cert-file={}", server.cert.display()))
            .flag(format!("--key-file={}", server.key.display()))
            .flag(format!("--trusted-ca-file={}", authority.ca().display()))
            .flag(format!("--config-file={}", config.display()))
            .flags(flags(&folder).iter().map(String::as_str))
            .start();
        Self { proxy, etcd, authority, config, folder }
    }

    pub fn etcdctl(&self, pair: &Pair) -> Etcdctl {
        Etcdctl::new(Version::default(), format!("https://{}", self.proxy.address()))
            .tls(&self.authority.ca(), Some(pair))
    }
}
