//! HTTP/1.1 and HTTP/2 as a test speaks them: one request on a connection of its own, plain or under TLS.

use std::sync::Arc;

use bytes::Bytes;
use etcd_proxy::tls::{ClientTls, client};
use etcd_proxy_e2e::Pair;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, rustls::ClientConfig, rustls::pki_types::ServerName};

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoken {
    Http1,
    Http2,
}

pub const BOTH: [Spoken; 2] = [Spoken::Http1, Spoken::Http2];

/// Where to ask.
#[derive(Clone)]
pub struct Place {
    address: String,
    tls: Option<Arc<ClientConfig>>,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Place {
    pub fn plain(address: &str) -> Self {
        Self { address: address.to_owned(), tls: None }
    }

    /// Trusts `ca` and shows `pair`.
    pub fn tls(address: &str, ca: std::path::PathBuf, pair: Option<&Pair>) -> Self {
        let config = client::Config {
            cert: pair.map(|pair| pair.cert.clone()),
            key: pair.map(|pair| pair.key.clone()),
            cacert: Some(ca),
            ..client::Config::default()
        };
        let tls = ClientTls::load(&config).expect("the files of the test are good");
        Self { address: address.to_owned(), tls: Some(tls.config()) }
    }

    pub async fn get(&self, spoken: Spoken, path: &str) -> Answer {
        self.ask(spoken, Method::GET, path, "").await
    }

    pub async fn ask(&self, spoken: Spoken, method: Method, path: &str, body: &str) -> Answer {
        let what = format!("{method} {path} from {} by {spoken:?}", self.address);
        let answered = self.try_to_ask(spoken, method, path, body).await;
        answered.unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    pub async fn try_to_ask(
        &self,
        spoken: Spoken,
        method: Method,
        path: &str,
        body: &str,
    ) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        let socket = self.connect(spoken).await?;
        let uri = match spoken {
            Spoken::Http1 => path.to_owned(),
            Spoken::Http2 => format!("http://{}{path}", self.address),
        };
        let request = Request::builder().method(method).uri(uri);
        match spoken {
            Spoken::Http1 => {
                let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
                tokio::spawn(connection);
                let request = request.header("host", &self.address).body(Full::new(Bytes::from(body.to_owned())))?;
                let (head, body) = send.send_request(request).await?.into_parts();
                let body = body.collect().await?.to_bytes();
                Ok(Answer { status: head.status.as_u16(), headers: head.headers, body: text(&body) })
            }
            Spoken::Http2 => {
                let (mut send, connection) = h2::client::handshake(socket).await?;
                tokio::spawn(connection);
                let (response, mut stream) = send.send_request(request.body(())?, body.is_empty())?;
                if !body.is_empty() {
                    stream.send_data(Bytes::from(body.to_owned()), true)?;
                }
                let (head, mut stream) = response.await?.into_parts();
                let mut body = Vec::new();
                while let Some(data) = stream.data().await {
                    let data = data?;
                    stream.flow_control().release_capacity(data.len())?;
                    body.extend_from_slice(&data);
                }
                Ok(Answer { status: head.status.as_u16(), headers: head.headers, body: text(&body) })
            }
        }
    }

    async fn connect(&self, spoken: Spoken) -> std::io::Result<Box<dyn Io>> {
        let socket = TcpStream::connect(&self.address).await?;
        let Some(tls) = &self.tls else { return Ok(Box::new(socket)) };
        let mut tls = tls.clone();
        let protocol: &[u8] = if spoken == Spoken::Http1 { b"http/1.1" } else { b"h2" };
        Arc::make_mut(&mut tls).alpn_protocols = vec![protocol.to_vec()];
        let name = ServerName::try_from("127.0.0.1").expect("an address is a name to TLS");
        let socket = TlsConnector::from(tls).connect(name, socket).await?;
        assert_eq!(socket.get_ref().1.alpn_protocol(), Some(protocol), "the server agrees to what is offered");
        Ok(Box::new(socket))
    }
}

fn text(body: &[u8]) -> String {
    String::from_utf8_lossy(body).into_owned()
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap_or("(binary)"))
    }
}
