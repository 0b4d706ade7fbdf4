//! `etcd-proxy top`: how a running proxy is doing, on one screen of a terminal. It reads the document of the status page
//! from the proxy's metrics address, so that both show the same.

use std::{io::Write, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, header::HOST};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    signal::unix::{SignalKind, signal},
};

use crate::{
    admin::status::Document,
    flags::{self, tools::TopFlags},
    go,
    tls::{self, ClientTls},
};

mod screen;

/// How long a proxy may take to answer; it looks at a few numbers only.
const PATIENCE: Duration = Duration::from_secs(5);
/// The document has some kilobytes; a thousand endpoints and tenants do not fill this.
const MAX_DOCUMENT: usize = 4 << 20;

/// Why nothing can be shown.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    #[error(transparent)]
    Url(#[from] flags::Refusal),
    #[error(transparent)]
    Tls(#[from] tls::Error),
    #[error("cannot wait for signals: {0}")]
    Signal(std::io::Error),
    #[error("{url} gives no status: {cause}; is it a --metrics-addr of an etcd-proxy?")]
    NoStatus { url: String, cause: String },
}

/// What the screen goes back to when this is dropped, however the program ends it.
struct Screen;

impl Screen {
    /// A second screen, so that what was on the first is there again afterwards; and no cursor.
    fn take() -> Self {
        print("\x1b[?1049h\x1b[?25l");
        Self
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        print("\x1b[?25h\x1b[?1049l");
    }
}

/// A reader that has gone, as `head` does, is no failure.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Shows it once, or until it is interrupted. Says whether the proxy was ready at the last look.
pub async fn run(flags: &TopFlags) -> Result<bool, TopError> {
    let source = Source::new(flags)?;
    if flags.once {
        let document = source.document().await?;
        print(&screen::plain(&document));
        return Ok(document.ready);
    }
    let mut interrupt = signal(SignalKind::interrupt()).map_err(TopError::Signal)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(TopError::Signal)?;
    let mut before = source.document().await?;
    let screen = Screen::take();
    let mut shown = Ok(before.clone());
    loop {
        let (rows, columns) = size();
        print(&screen::live(&shown.as_ref().map_err(ToString::to_string), &before, rows, columns));
        tokio::select! {
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            () = tokio::time::sleep(flags.interval) => (),
        }
        if let Ok(document) = shown {
            before = document;
        }
        shown = source.document().await;
    }
    drop(screen);
    Ok(shown.is_ok_and(|document| document.ready))
}

/// Rows and columns of the terminal; those of old ones where nobody knows.
fn size() -> (usize, usize) {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the call fills the struct that it is given, which lives until it returns.
    let found = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    match (found, size.ws_row, size.ws_col) {
        (0, rows @ 1.., columns @ 1..) => (rows.into(), columns.into()),
        _ => (24, 80),
    }
}

/// Where the documents come from.
struct Source {
    url: String,
    address: String,
    tls: Option<ClientTls>,
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Source {
    fn new(flags: &TopFlags) -> Result<Self, TopError> {
        let url = flags.target()?;
        let config = tls::client::Config {
            cert: flags.cert.clone(),
            key: flags.key.clone(),
            cacert: flags.cacert.clone(),
            insecure_skip_verify: flags.insecure_skip_tls_verify,
            server_name: None,
            allow_non_empty_cn: true,
            cipher_suites: Vec::new(),
        };
        let tls = url.tls.then(|| ClientTls::load(&config)).transpose()?;
        Ok(Self { url: flags.url.clone(), address: url.address, tls })
    }

    async fn document(&self) -> Result<Document, TopError> {
        let asked = tokio::time::timeout(PATIENCE, self.ask()).await;
        let asked = asked.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")));
        asked.map_err(|cause| TopError::NoStatus { url: self.url.clone(), cause })
    }

    async fn ask(&self) -> Result<Document, String> {
        let socket = TcpStream::connect(&self.address).await.map_err(|error| go::io_error(&error))?;
        let socket: Box<dyn Io> = match &self.tls {
            None => Box::new(socket),
            Some(tls) => {
                let name = tls.server_name(&self.address).map_err(|error| error.to_string())?;
                let mut config = tls.config();
                Arc::make_mut(&mut config).alpn_protocols = vec![b"http/1.1".to_vec()];
                let connected = tokio_rustls::TlsConnector::from(config).connect(name, socket).await;
                Box::new(connected.map_err(|error| error.to_string())?)
            }
        };
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let (mut send, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.map_err(|error| text(&error))?;
        let request = Request::get("/status.json").header(HOST, self.address.as_str()).body(Empty::<Bytes>::new());
        let request = request.map_err(|error| text(&error))?;
        let answered = async move {
            let response = send.send_request(request).await.map_err(|error| text(&error))?;
            if response.status() != StatusCode::OK {
                return Err(format!("HTTP status {}", response.status()));
            }
            let body =
                Limited::new(response.into_body(), MAX_DOCUMENT).collect().await.map_err(|error| text(&error))?;
            serde_json::from_slice(&body.to_bytes()).map_err(|error| text(&error))
        };
        tokio::pin!(answered);
        tokio::select! {
            answered = &mut answered => answered,
            // The answer may have come whole before the connection ended.
            _ = connection => answered.await,
        }
    }
}
