//! A small public key infrastructure in a temporary folder, and handshakes between the two sides.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use etcd_proxy::tls::{ClientTls, Peer, ServerTls, client, explain, server};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DistinguishedName, DnType,
};
use rcgen::{ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// A handshake over memory takes milliseconds; this much on a busy machine means that it hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);

const DAY: Duration = Duration::from_secs(24 * 3600);

pub struct Ca {
    pub issuer: CertifiedIssuer<'static, KeyPair>,
}

/// What a test wants in a certificate; the default is good for localhost on both sides and has no Common Name.
pub struct Leaf {
    pub common_name: &'static str,
    pub names: Vec<&'static str>,
    pub serial: u64,
    pub has_expired: bool,
}

impl Default for Leaf {
    fn default() -> Leaf {
        Leaf { common_name: "", names: vec!["localhost", "127.0.0.1"], serial: 7, has_expired: false }
    }
}

pub struct Issued {
    pub cert: String,
    pub key: String,
}

impl Ca {
    pub fn new(name: &str) -> Ca {
        let key = KeyPair::generate().expect("a key can be made");
        Ca { issuer: CertifiedIssuer::self_signed(ca_params(name), key).expect("a CA can be made") }
    }

    pub fn intermediate(&self, name: &str, serial: u64) -> Ca {
        let key = KeyPair::generate().expect("a key can be made");
        let mut params = ca_params(name);
        params.serial_number = Some(serial.into());
        Ca { issuer: CertifiedIssuer::signed_by(params, key, &self.issuer).expect("a CA can be made") }
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    pub fn issue(&self, leaf: Leaf) -> Issued {
        let key = KeyPair::generate().expect("a key can be made");
        let cert = leaf.params().signed_by(&key, &self.issuer).expect("a certificate can be made");
        Issued { cert: cert.pem(), key: key.serialize_pem() }
    }

    pub fn revoke(&self, serials: &[u64]) -> rcgen::CertificateRevocationList {
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: SystemTime::now().into(),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: SystemTime::now().into(),
            next_update: (SystemTime::now() + DAY).into(),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).expect("a list can be made")
    }
}

impl Leaf {
    pub fn params(&self) -> CertificateParams {
        let names: Vec<String> = self.names.iter().map(|name| name.to_string()).collect();
        let mut params = CertificateParams::new(names).expect("the names are fine");
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "etcd");
        if !self.common_name.is_empty() {
            params.distinguished_name.push(DnType::CommonName, self.common_name);
        }
        params.serial_number = Some(self.serial.into());
        params.not_before = (SystemTime::now() - 2 * DAY).into();
        params.not_after = if self.has_expired { SystemTime::now() - DAY } else { SystemTime::now() + DAY }.into();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params
    }
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// The files of both sides. A test changes what it is about.
pub struct Files {
    pub dir: TempDir,
}

impl Files {
    /// One CA, a server's and a client's certificate of it.
    pub fn of(ca: &Ca) -> Files {
        let files = Files { dir: tempfile::tempdir().expect("a temporary folder") };
        files.write("ca.crt", ca.pem());
        files.write_pair("server", &ca.issue(Leaf::default()));
        files.write_pair("client", &ca.issue(Leaf { serial: 8, ..Leaf::default() }));
        files
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        std::fs::write(self.path(name), content).expect("the folder can be written");
        self.path(name)
    }

    pub fn write_pair(&self, name: &str, issued: &Issued) {
        self.write(&format!("{name}.crt"), &issued.cert);
        self.write(&format!("{name}.key"), &issued.key);
    }

    pub fn server(&self) -> server::Config {
        server::Config {
            cert_file: self.path("server.crt"),
            key_file: self.path("server.key"),
            trusted_ca_file: Some(self.path("ca.crt")),
            ..server::Config::default()
        }
    }

    pub fn client(&self) -> client::Config {
        client::Config {
            cert: Some(self.path("client.crt")),
            key: Some(self.path("client.key")),
            cacert: Some(self.path("ca.crt")),
            ..client::Config::default()
        }
    }
}

pub fn etcd_fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls/etcd").join(name)
}

/// Both ends of a connection after the handshake.
pub struct Connection {
    pub server: tokio_rustls::server::TlsStream<DuplexStream>,
    pub client: tokio_rustls::client::TlsStream<DuplexStream>,
}

impl Connection {
    /// One byte there and one back.
    pub async fn is_alive(&mut self) -> bool {
        let talk = async {
            self.client.write_all(b"a").await?;
            self.client.flush().await?;
            let there = self.server.read_u8().await?;
            self.server.write_all(&[there + 1]).await?;
            self.server.flush().await?;
            self.client.read_u8().await
        };
        matches!(tokio::time::timeout(PATIENCE, talk).await, Ok(Ok(b'b')))
    }

    pub fn client_certificates(&self) -> &[CertificateDer<'static>] {
        self.server.get_ref().1.peer_certificates().unwrap_or_default()
    }

    pub fn server_certificate(&self) -> Vec<u8> {
        let certificates = self.client.get_ref().1.peer_certificates().expect("a server always shows one");
        certificates[0].to_vec()
    }
}

/// Loads both sides and lets them shake hands.
pub async fn connect(server: &server::Config, client: &client::Config) -> Result<Connection, String> {
    let server = ServerTls::load(server).map_err(|error| error.to_string())?;
    let client = ClientTls::load(client).map_err(|error| error.to_string())?;
    shake_hands(server.config(), client.config(), "localhost").await
}

/// A handshake has succeeded only when both ends say so: in TLS 1.3 a client is done before the server has judged it.
pub async fn shake_hands(
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    name: &str,
) -> Result<Connection, String> {
    let (near, far) = tokio::io::duplex(16 << 10);
    let name = ServerName::try_from(name.to_string()).expect("tests give good names");
    let both =
        async { tokio::join!(TlsAcceptor::from(server).accept(far), TlsConnector::from(client).connect(name, near)) };
    match tokio::time::timeout(PATIENCE, both).await.expect("the handshake does not hang") {
        (Ok(server), Ok(client)) => Ok(Connection { server, client }),
        (server, client) => {
            let text = |peer, error: Option<std::io::Error>| {
                error.map(|error| format!("{peer:?}: {error}: {}; ", explain(peer, &error))).unwrap_or_default()
            };
            // What the server says is about the client, and the other way round.
            Err(text(Peer::Client, server.err()) + &text(Peer::Etcd, client.err()))
        }
    }
}
