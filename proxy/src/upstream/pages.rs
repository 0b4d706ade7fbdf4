//! A member's own HTTP pages, such as its metrics, fetched from one that is up.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body::{Body, Frame};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::{
    task::JoinHandle,
    time::{Instant, Sleep},
};

use super::{Upstream, endpoint::Endpoint};

/// How long one member may take until its answer begins; making its metrics takes etcd some milliseconds.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the whole of a page may take; a scrape by Prometheus has 10 s by default.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// How large a page may be; etcd's metrics have some hundred kilobytes.
const MAX_PAGE: usize = 64 << 20;

/// No member has given the page.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    #[error("there is no etcd endpoint to ask")]
    NoEndpoints,
    /// None was reached.
    #[error("none of {tried} etcd endpoints can be reached (last: {endpoint}, {problem})")]
    Unreachable { tried: usize, endpoint: String, problem: String },
    /// One was reached, but gave no answer that is HTTP.
    #[error("{endpoint} gave no HTTP answer ({problem}); does etcd serve HTTP elsewhere (--listen-client-http-urls)?")]
    NoAnswer { endpoint: String, problem: String },
}

impl PageError {
    /// As a proxy says it in HTTP.
    pub fn http_status(&self) -> StatusCode {
        match self {
            Self::NoEndpoints | Self::Unreachable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::NoAnswer { .. } => StatusCode::BAD_GATEWAY,
        }
    }
}

/// A page on its way, held to its limits of time and size.
pub struct PageBody {
    incoming: Incoming,
    end: Pin<Box<Sleep>>,
    left: usize,
    _connection: Connection,
}

/// Runs the connection for as long as it is wanted.
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Upstream {
    /// GETs a page of whichever member can give it, best first. What the member answers is passed on, errors too.
    pub async fn page(&self, path: &str) -> Result<Response<PageBody>, PageError> {
        let end = Instant::now() + PAGE_TIMEOUT;
        let mut tried: Vec<Arc<Endpoint>> = Vec::new();
        let mut last = PageError::NoEndpoints;
        while let Some(endpoint) = self.endpoints.pick(0, &tried) {
            tried.push(endpoint.clone());
            let socket = match self.channels.socket(&endpoint).await {
                Ok(socket) => socket,
                Err(error) => {
                    // That a member was reached says more than that the next was not.
                    if !matches!(last, PageError::NoAnswer { .. }) {
                        let (tried, endpoint) = (tried.len(), endpoint.name.clone());
                        last = PageError::Unreachable { tried, endpoint, problem: error.to_string() };
                    }
                    continue;
                }
            };
            match tokio::time::timeout(HEAD_TIMEOUT, get(socket, endpoint.authority(), path, end)).await {
                Ok(Ok(page)) => return Ok(page),
                Ok(Err(error)) => last = no_answer(&endpoint, error),
                Err(_) => last = no_answer(&endpoint, format_args!("nothing came within {HEAD_TIMEOUT:?}")),
            }
        }
        Err(last)
    }
}

fn no_answer(endpoint: &Endpoint, problem: impl ToString) -> PageError {
    PageError::NoAnswer { endpoint: endpoint.name.clone(), problem: problem.to_string() }
}

async fn get(
    socket: Box<dyn super::channel::Io>,
    host: &str,
    path: &str,
    end: Instant,
) -> Result<Response<PageBody>, Box<dyn std::error::Error + Send + Sync>> {
    let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
    let connection = Connection(tokio::spawn(async move {
        // Whoever reads the page learns of an error too.
        let _ = connection.await;
    }));
    let request = Request::get(path).header(header::HOST, HeaderValue::from_str(host)?).body(Empty::<Bytes>::new())?;
    let response = send.send_request(request).await?;
    let end = Box::pin(tokio::time::sleep_until(end));
    Ok(response.map(|incoming| PageBody { incoming, end, left: MAX_PAGE, _connection: connection }))
}

impl Body for PageBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.end.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Err(io::Error::new(io::ErrorKind::TimedOut, "the page took too long"))));
        }
        Pin::new(&mut self.incoming).poll_frame(context).map(|frame| {
            let frame = frame?.map_err(io::Error::other);
            let size = frame.as_ref().ok().and_then(Frame::data_ref).map_or(0, Bytes::len);
            match self.left.checked_sub(size) {
                Some(left) => self.left = left,
                None => return Some(Err(io::Error::new(io::ErrorKind::FileTooLarge, "the page is too large"))),
            }
            Some(frame)
        })
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.incoming.size_hint()
    }
}
