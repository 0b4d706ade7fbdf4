//! HTTP/2 as a client sees it: heads, framed messages, trailers and resets, in the order in which they come.

use std::future::poll_fn;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use etcd_proxy_e2e::Pair;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Version};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// How long the next thing on a stream may take before it counts as silence. Longer than anything that etcd does in
/// these chapters on a busy machine, so that silence on one side only is a difference and on all sides a broken script.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Answers of several MiB are taken whole, so that no window stands in their way.
const WINDOW: u32 = 16 << 20;

/// The five bytes before each gRPC message.
const PREFIX_LEN: usize = 5;

/// A connection that any number of calls share.
#[derive(Clone)]
pub struct Link {
    send: SendRequest<Bytes>,
    scheme: &'static str,
}

/// What a server may say next on a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// Response headers, and whether the stream ended with them.
    Head {
        status: u16,
        headers: HeaderMap,
        last: bool,
    },
    /// One message and its compression flag.
    Message {
        flag: u8,
        bytes: Bytes,
    },
    /// Bytes at the end that are no whole message; all bytes, if the answer is not gRPC.
    Leftover(Bytes),
    Trailers(HeaderMap),
    /// The stream ended with DATA, without trailers.
    End,
    /// RST_STREAM or a lost connection.
    Broken(String),
    /// Nothing within [`PATIENCE`].
    Silence,
}

/// One HTTP/2 stream.
pub struct Call {
    send: SendStream<Bytes>,
    response: Option<ResponseFuture>,
    body: Option<RecvStream>,
    is_grpc: bool,
    held: BytesMut,
    ended: bool,
}

impl Link {
    /// A server that speaks TLS has a certificate of `ca`, and wants the client to have one too.
    pub async fn dial(address: &str, tls: Option<(&Path, &Pair)>) -> Link {
        let socket = TcpStream::connect(address).await.unwrap_or_else(|error| panic!("cannot dial {address}: {error}"));
        socket.set_nodelay(true).expect("a connected socket takes options");
        let Some((ca, own)) = tls else { return Link::over(socket, "http").await };
        let ca = CertificateDer::from_pem_file(ca).expect("the authority wrote its certificate");
        let mut roots = RootCertStore::empty();
        roots.add(ca).expect("the authority's certificate is good");
        let cert = CertificateDer::from_pem_file(&own.cert).expect("the authority wrote the certificate");
        let key = PrivateKeyDer::from_pem_file(&own.key).expect("the authority wrote the key");
        let config = ClientConfig::builder().with_root_certificates(roots).with_client_auth_cert(vec![cert], key);
        let mut config = config.expect("the key fits the certificate");
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = ServerName::try_from("localhost").expect("a name");
        let socket = TlsConnector::from(Arc::new(config)).connect(name, socket).await;
        Link::over(socket.unwrap_or_else(|error| panic!("no TLS with {address}: {error}")), "https").await
    }

    async fn over(socket: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, scheme: &'static str) -> Link {
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW).max_header_list_size(WINDOW);
        let (send, connection) = builder.handshake(socket).await.expect("both sides speak HTTP/2");
        tokio::spawn(async move {
            // Its end shows on the streams.
            let _ = connection.await;
        });
        Link { send, scheme }
    }

    /// Opens a stream. Values may be any bytes that HTTP allows.
    pub async fn begin(&self, path: &str, headers: &[(String, Vec<u8>)]) -> Call {
        let uri = format!("{}://parity.test{path}", self.scheme);
        let mut request = Request::post(uri).version(Version::HTTP_2);
        for (name, value) in headers {
            request = request.header(name, value.as_slice());
        }
        let request = request.body(()).expect("the script's headers are valid");
        let send = self.send.clone().ready().await;
        let (response, send) = send
            .and_then(|mut send| send.send_request(request, false))
            .unwrap_or_else(|error| panic!("cannot open a stream for {path}: {error}"));
        Call { send, response: Some(response), body: None, is_grpc: true, held: BytesMut::new(), ended: false }
    }
}

impl Call {
    /// Sends bytes as they are. A server that has ended the stream takes no more, which is no error here.
    pub fn send(&mut self, bytes: Bytes, last: bool) {
        let _ = self.send.send_data(bytes, last);
    }

    /// Gives the call up, as a client does whose caller went away.
    pub fn cancel(&mut self) {
        self.send.send_reset(h2::Reason::CANCEL);
    }

    /// The next thing that the server says, or `None` after its last.
    pub async fn next(&mut self) -> Option<Item> {
        if self.ended {
            return None;
        }
        let item = tokio::time::timeout(PATIENCE, self.read()).await.unwrap_or(Item::Silence);
        let last = !matches!(item, Item::Head { last: false, .. } | Item::Message { .. } | Item::Leftover(_));
        self.ended = last;
        Some(item)
    }

    async fn read(&mut self) -> Item {
        if let Some(response) = &mut self.response {
            let response = match response.await {
                Ok(response) => response,
                Err(error) => return Item::Broken(error.to_string()),
            };
            self.response = None;
            let (head, body) = response.into_parts();
            let last = body.is_end_stream();
            self.is_grpc = head.headers.get("content-type").is_some_and(|kind| kind == "application/grpc");
            self.body = Some(body);
            return Item::Head { status: head.status.as_u16(), headers: head.headers, last };
        }
        let body = self.body.as_mut().expect("a head comes with a body");
        loop {
            if self.is_grpc && self.held.len() >= PREFIX_LEN {
                let size = u32::from_be_bytes([self.held[1], self.held[2], self.held[3], self.held[4]]) as usize;
                if self.held.len() >= PREFIX_LEN + size {
                    let mut framed = self.held.split_to(PREFIX_LEN + size).freeze();
                    let prefix = framed.split_to(PREFIX_LEN);
                    return Item::Message { flag: prefix[0], bytes: framed };
                }
            }
            match body.data().await {
                Some(Ok(data)) => {
                    // It fails only for a stream that is gone, which the next read shows.
                    let _ = body.flow_control().release_capacity(data.len());
                    self.held.extend_from_slice(&data);
                }
                Some(Err(error)) => return Item::Broken(error.to_string()),
                None if !self.held.is_empty() => return Item::Leftover(std::mem::take(&mut self.held).freeze()),
                None => {
                    return match poll_fn(|context| body.poll_trailers(context)).await {
                        Ok(Some(trailers)) => Item::Trailers(trailers),
                        Ok(None) => Item::End,
                        Err(error) => Item::Broken(error.to_string()),
                    };
                }
            }
        }
    }
}
