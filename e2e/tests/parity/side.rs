//! The three sides that a script runs against, what each of them said, and the comparison.

use std::fmt::Write as _;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use etcd_proxy_e2e::{Authority, Etcd, Pair, Proxy, Tls, Version};
use http::HeaderMap;
use prost::Message;
use tempfile::TempDir;

use crate::mixture;
use crate::rpcs::Rpc;
use crate::stream::{Answer, Stream};
use crate::wire::{Item, Link};

/// What the namespaced side's keys begin with in etcd.
pub const NAMESPACE: &str = "tenant/";

/// The first key that is past all of them.
const NAMESPACE_END: &str = "tenant0";

/// Longer messages are shown and compared by length and checksum.
const SHOWN_BYTES: usize = 512;

/// What is shown of a message's meaning; its bytes are compared whole.
const SHOWN_TEXT: usize = 800;

/// How an HTTP error is shown, whose further words no gRPC client reads.
const NOT_GRPC: &str = "    no gRPC, which means";

/// How it is shown that nothing came.
const SILENCE: &str = "    silence";

/// How a side reaches etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Direct,
    Proxied,
    Namespaced,
}

/// One side as a script sees it. Clones share the connection and the transcript, and differ in metadata.
#[derive(Clone)]
pub struct Side {
    pub way: Way,
    pub version: Version,
    link: Link,
    parts: Arc<Parts>,
    metadata: Vec<(String, Vec<u8>)>,
    excused: bool,
    any_message: bool,
    either_end: bool,
    any_http_status: bool,
}

struct Parts {
    etcd: Etcd,
    proxy: Option<Proxy>,
    /// TLS with etcd, if it speaks that.
    tls: Option<Secured>,
    /// Guards what was said so far; scripts of one side may call at the same time.
    transcript: Mutex<Vec<Entry>>,
}

/// Certificates for etcd and its clients.
struct Secured {
    authority: Authority,
    own: Pair,
    /// Goes away with them.
    _folder: TempDir,
}

/// What was said in one case.
#[derive(Clone, Debug)]
struct Entry {
    case: String,
    said: String,
    /// The namespaced side may say something else here; the script says why.
    excused: bool,
}

/// Runs a script on three fresh etcds and fails with every case in which a way through the proxy was not as direct.
pub fn compare<F, Fut>(version: Version, flags: Vec<String>, script: F)
where
    F: Fn(Side) -> Fut + Copy + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime can be built");
    runtime.block_on(async {
        let sides = [Way::Direct, Way::Proxied, Way::Namespaced].map(|way| {
            let flags = flags.clone();
            tokio::spawn(async move {
                let parts = tokio::task::spawn_blocking(move || start(way, version, &flags)).await;
                let parts = Arc::new(parts.expect("etcd and the proxy start"));
                let link = parts.dial().await;
                let side = Side {
                    way,
                    version,
                    link,
                    parts: parts.clone(),
                    metadata: Vec::new(),
                    excused: false,
                    any_message: false,
                    either_end: false,
                    any_http_status: false,
                };
                let ended = tokio::spawn(script(side)).await;
                let transcript = std::mem::take(&mut *parts.lock());
                // Held until the report, which panics, so that the logs of etcd and the proxy are shown.
                (way, transcript, ended.err().map(|error| (error.to_string(), parts)))
            })
        });
        let mut transcripts = Vec::new();
        for side in sides {
            transcripts.push(side.await.expect("a side hands over its transcript"));
        }
        report(version, transcripts);
    });
}

fn start(way: Way, version: Version, flags: &[String]) -> Parts {
    let mut etcd = Etcd::builder().version(version);
    // Ids are made of the advertised peer URL, so it is the same everywhere; nobody connects to it.
    let peer = "http://127.0.0.1:2380";
    etcd = etcd.flag(format!("--initial-advertise-peer-urls={peer}")).flag(format!("--initial-cluster=m0={peer}"));
    let tls = has_tls(version).then(|| {
        let folder = TempDir::with_prefix("etcd-proxy-parity-").expect("a temporary folder can be made");
        let authority = Authority::new(folder.path());
        Secured { own: authority.nameless_client("own"), authority, _folder: folder }
    });
    if let Some(Secured { authority, .. }) = &tls {
        etcd = etcd.tls(Tls { server: authority.server("etcd"), ca: authority.ca(), client_cert_auth: false });
    }
    let etcd = flags.iter().fold(etcd, |etcd, flag| etcd.flag(flag)).start();
    // With nothing to advertise, the proxy shows the members as they are.
    let mut proxy = Proxy::builder().flag(format!("--endpoints={}", etcd.endpoints())).flag("--advertise-client-url=");
    if let Some(Secured { authority, own, .. }) = &tls {
        proxy = proxy.flag(format!("--cacert={}", authority.ca().display()));
        proxy = proxy.flag(format!("--cert={}", own.cert.display())).flag(format!("--key={}", own.key.display()));
    }
    let proxy = match way {
        Way::Direct => None,
        Way::Proxied => Some(proxy.start()),
        Way::Namespaced => Some(proxy.flag(format!("--namespace={NAMESPACE}")).start()),
    };
    Parts { etcd, proxy, tls, transcript: Mutex::default() }
}

/// Whether etcd speaks TLS: it is then served by Go's own HTTP/2 and not by gRPC's, and words its answers otherwise.
fn has_tls(version: Version) -> bool {
    version == Version::V3_6
}

type Transcript = (Way, Vec<Entry>, Option<(String, Arc<Parts>)>);

fn report(version: Version, transcripts: Vec<Transcript>) {
    let (_, direct, direct_error) = &transcripts[0];
    let last = |said: &[Entry]| said.last().map_or_else(String::new, |entry| format!("{}\n{}", entry.case, entry.said));
    if let Some((error, _)) = direct_error {
        panic!("etcd {version:?} itself: {error} after {}", last(direct));
    }
    assert!(!direct.is_empty(), "the script has no cases");
    // Silence is awaited long, and shows nothing that an answer to a later question would not show sooner.
    let silent: Vec<&str> =
        direct.iter().filter(|entry| entry.said.contains(SILENCE)).map(|entry| &*entry.case).collect();
    assert!(silent.is_empty(), "etcd {version:?} itself says nothing: {silent:?}");
    let mut differences = String::new();
    let mut count = 0;
    for (way, said, error) in &transcripts[1..] {
        for (ours, theirs) in said.iter().zip(direct) {
            if ours.case != theirs.case {
                // Where scripts go other ways because of an answer, that answer is among the differences already.
                count += 1;
                break;
            }
            let is_seen = ours.case.starts_with(mixture::SEEN) && mixture::have_seen_the_same(&ours.said, &theirs.said);
            if ours.said != theirs.said && !is_seen && !(theirs.excused && *way == Way::Namespaced) {
                count += 1;
                write!(differences, "\n{way:?}: {}\n  direct:\n{}  {way:?}:\n{}", ours.case, theirs.said, ours.said)
                    .expect("a String takes all");
            }
        }
        if let Some((error, _)) = error {
            count += 1;
            let last = last(said);
            write!(differences, "\n{way:?}: the script broke off: {error}, after {last}\n")
                .expect("a String takes all");
        } else if said.len() != direct.len() {
            count += 1;
            writeln!(differences, "\n{way:?}: {} cases instead of {}", said.len(), direct.len())
                .expect("a String takes all");
        }
    }
    assert!(count == 0, "{count} of {} answers differ at etcd {version:?}{differences}", direct.len() * 2);
    println!("{} cases, each answered alike three times", direct.len());
}

impl Parts {
    fn address(&self) -> &str {
        self.proxy.as_ref().map_or(self.etcd.address(), Proxy::address)
    }

    /// A connection to where this side's calls go. Those of the proxy have no TLS.
    async fn dial(&self) -> Link {
        match self.proxy {
            Some(_) => Link::dial(self.address(), None).await,
            None => self.dial_etcd().await,
        }
    }

    async fn dial_etcd(&self) -> Link {
        let tls = self.tls.as_ref().map(|tls| (tls.authority.ca(), &tls.own));
        Link::dial(self.etcd.address(), tls.as_ref().map(|(ca, own)| (ca.as_path(), *own))).await
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Entry>> {
        self.transcript.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Side {
    /// The same side, sending this header besides.
    pub fn with(&self, name: &str, value: impl Into<Vec<u8>>) -> Side {
        let mut side = self.clone();
        side.metadata.push((name.to_owned(), value.into()));
        side
    }

    /// The same side; what it says may differ behind a namespace, for the reason given.
    pub fn differing_behind_a_namespace(&self, reason: &str) -> Side {
        assert!(!reason.is_empty());
        Side { excused: true, ..self.clone() }
    }

    /// The same side; the text of a failure is not compared, its code is.
    pub fn with_any_message(&self) -> Side {
        Side { any_message: true, ..self.clone() }
    }

    /// The same side, for calls that run into their deadline: etcd ends them by a status or by a reset, whichever of its
    /// two timers is first.
    pub fn with_either_end_of_a_deadline(&self) -> Side {
        Side { either_end: true, ..self.clone() }
    }

    /// The same side; where a gRPC status is in the head, the HTTP status is not compared, since gRPC clients do not
    /// look at it then.
    pub fn with_any_http_status(&self) -> Side {
        Side { any_http_status: true, ..self.clone() }
    }

    /// Records what a script found out by itself.
    pub fn note(&self, case: &str, said: String) {
        self.record(case, format!("    {said}\n"));
    }

    /// The same side on a connection of its own.
    pub async fn on_a_new_connection(&self) -> Side {
        Side { link: self.parts.dial().await, ..self.clone() }
    }

    /// The same side past its proxy, if it has one.
    pub async fn at_etcd(&self) -> Side {
        Side { link: self.parts.dial_etcd().await, ..self.clone() }
    }

    /// Whether etcd speaks TLS.
    pub fn has_tls(&self) -> bool {
        has_tls(self.version)
    }

    /// A key as etcd itself knows it.
    pub fn key_in_etcd(&self, key: &str) -> Bytes {
        match self.way {
            Way::Namespaced => format!("{NAMESPACE}{key}").into(),
            _ => Bytes::copy_from_slice(key.as_bytes()),
        }
    }

    /// The end of a range as etcd itself knows it.
    pub fn end_in_etcd(&self, end: &str) -> Bytes {
        match end {
            "" => Bytes::new(),
            "\0" if self.way == Way::Namespaced => NAMESPACE_END.into(),
            _ => self.key_in_etcd(end),
        }
    }

    /// The way back for both.
    pub fn key_without_prefix(&self, key: &Bytes) -> Bytes {
        match key.strip_prefix(NAMESPACE.as_bytes()) {
            _ if self.way != Way::Namespaced => key.clone(),
            Some(stripped) => Bytes::copy_from_slice(stripped),
            None if key == NAMESPACE_END => "\0".into(),
            None => key.clone(),
        }
    }

    /// Calls an RPC with one request and records all that comes of it; the first answer is returned.
    pub async fn call<Q: Message, A: Answer>(&self, case: &str, rpc: Rpc<Q, A>, request: Q) -> Option<A> {
        self.masked(case, rpc, request, |_| ()).await
    }

    /// The same; `mask` takes away what no two etcds have in common, such as tokens, before answers are recorded.
    pub async fn masked<Q: Message, A: Answer>(
        &self,
        case: &str,
        rpc: Rpc<Q, A>,
        request: Q,
        mask: impl Fn(&mut A),
    ) -> Option<A> {
        let mut stream = self.open(rpc).await;
        stream.send_last(&request);
        stream.rest_masked(case, mask).await.into_iter().next()
    }

    /// Calls without recording, for what a script needs and does not examine.
    pub async fn fetch<Q: Message, A: Answer>(&self, rpc: Rpc<Q, A>, request: Q) -> A {
        let mut stream = self.open(rpc).await;
        stream.send_last(&request);
        let mut said = String::new();
        while let Some(item) = stream.item().await {
            if let Item::Message { bytes, .. } = &item {
                return A::decode(bytes.clone()).expect("etcd's answers decode");
            }
            said += &self.show(&item, |_: &mut A| ());
        }
        panic!("no answer: {said}");
    }

    /// Calls without recording what comes of it.
    pub async fn forget<Q: Message, A: Answer>(&self, rpc: Rpc<Q, A>, request: Q) {
        let mut stream = self.open(rpc).await;
        stream.send_last(&request);
        while stream.item().await.is_some() {}
    }

    /// Opens a stream.
    pub async fn open<Q, A>(&self, rpc: Rpc<Q, A>) -> Stream<Q, A> {
        let mut headers = grpc_headers();
        headers.extend(self.metadata.iter().cloned());
        let call = self.link.begin(rpc.path, &headers).await;
        Stream::new(call, self.clone())
    }

    /// Sends exactly these headers and bytes, and records all that comes of it.
    pub async fn raw(&self, case: &str, path: &str, headers: &[(String, Vec<u8>)], pieces: &[Bytes], half_close: bool) {
        let mut call = self.link.begin(path, headers).await;
        for (index, piece) in pieces.iter().enumerate() {
            call.send(piece.clone(), half_close && index + 1 == pieces.len());
        }
        if pieces.is_empty() && half_close {
            call.send(Bytes::new(), true);
        }
        let mut said = String::new();
        while let Some(item) = call.next().await {
            said += &self.show(&item, |_: &mut ()| ());
        }
        self.record(case, said);
    }

    pub fn record(&self, case: &str, mut said: String) {
        // Headers that precede a failure without messages are sent with it or before it, as the server likes.
        if let Some((head, rest)) = said.split_once("]\n    trailers [")
            && !head.contains('\n')
        {
            said = format!("{}, {rest}", head.replacen(" [", ", and no more [", 1));
        }
        if let Some(end) = said.find(NOT_GRPC).map(|at| at + said[at..].find('\n').map_or(0, |end| end + 1)) {
            said.truncate(end);
        }
        // A watch that is told of the end by gRPC's own timer takes it for its client's.
        let ends = ["grpc-status: 4]", "grpc-status: 1]", "stream no longer needed"];
        if self.either_end && ends.iter().any(|end| said.contains(end)) {
            said = "    the deadline\n".to_owned();
        }
        self.parts.lock().push(Entry { case: case.to_owned(), said, excused: self.excused });
    }

    /// One line or two for a thing said, equal for equal things.
    pub fn show<A: Answer>(&self, item: &Item, mask: impl Fn(&mut A)) -> String {
        match item {
            Item::Head { status, headers, last } => {
                let last = if *last { ", and no more" } else { "" };
                if let Some(code) = self.code_of_http_error(*status, headers) {
                    return format!("{NOT_GRPC} {code}\n");
                }
                let any = self.any_http_status && headers.contains_key("grpc-status");
                let status = if any { "any".to_owned() } else { status.to_string() };
                format!("    head {status}{last} {}\n", self.headers(headers))
            }
            Item::Message { flag, bytes } => {
                // Who answers may compress to one who does, or not; what is said is the same.
                let inflated = (*flag == 1).then(|| gunzip(bytes)).flatten();
                let flag = if inflated.is_some() { &0 } else { flag };
                let bytes = self.with_one_address(inflated.as_ref().unwrap_or(bytes));
                let (bytes, text) = match A::decode(bytes.clone()) {
                    Ok(mut answer) => {
                        let before = answer.encode_to_vec();
                        mask(&mut answer);
                        let after = answer.encode_to_vec();
                        // Unmasked answers are compared as they stood on the wire.
                        (if before == after { bytes } else { after.into() }, format!("{answer:?}"))
                    }
                    Err(error) => (bytes, error.to_string()),
                };
                let text: String = text.chars().take(SHOWN_TEXT).collect();
                let shown = show_bytes(&bytes);
                format!("    message flag {flag}, {} bytes {shown}\n      {text}\n", bytes.len())
            }
            Item::Leftover(bytes) => format!("    leftover {}\n", show_bytes(bytes)),
            Item::Trailers(trailers) => format!("    trailers {}\n", self.headers(trailers)),
            Item::End => "    end without trailers\n".to_owned(),
            Item::Broken(error) => format!("    broken: {error}\n"),
            Item::Silence => format!("{SILENCE}\n"),
        }
    }

    /// What gRPC makes of an HTTP error, which an etcd with TLS gives for some malformed requests. The proxy, whose own
    /// answer is always gRPC, says the same in words.
    fn code_of_http_error(&self, status: u16, headers: &HeaderMap) -> Option<&'static str> {
        let words = headers.get("grpc-message").and_then(|words| words.to_str().ok()).unwrap_or_default();
        let told = words.starts_with("unexpected HTTP status code received from server: 400");
        (self.has_tls() && (status == 400 || told)).then_some("INTERNAL")
    }

    fn headers(&self, headers: &HeaderMap) -> String {
        let mut lines: Vec<String> = headers
            .iter()
            // That an answer was compressed, and that there is nothing to say.
            .filter(|(name, value)| *name != "grpc-encoding" && !(*name == "grpc-message" && value.is_empty()))
            // What etcd's HTTP server adds and the proxy takes away.
            .filter(|(name, _)| {
                let of_http = *name == "trailer" || name.as_str().starts_with("access-control-allow-");
                !(of_http && self.way == Way::Direct && self.has_tls())
            })
            .filter(|(name, _)| !(self.any_message && *name == "grpc-message"))
            .map(|(name, value)| {
                let value = self.with_one_address(&Bytes::copy_from_slice(value.as_bytes()));
                format!("{name}: {}", String::from_utf8_lossy(&value))
            })
            .collect();
        lines.sort();
        format!("[{}]", lines.join(", "))
    }

    /// Each etcd listens on its own port; all ports have five digits, so one may stand for all, even in protobuf.
    fn with_one_address(&self, bytes: &Bytes) -> Bytes {
        let address = self.parts.etcd.address().as_bytes();
        let mut bytes = bytes.to_vec();
        let mut at = 0;
        while let Some(found) = bytes[at..].windows(address.len()).position(|window| window == address) {
            let port = at + found + "127.0.0.1:".len();
            bytes[port..at + found + address.len()].fill(b'#');
            at += found + address.len();
        }
        bytes.into()
    }
}

/// What every gRPC client sends.
pub fn grpc_headers() -> Vec<(String, Vec<u8>)> {
    [("content-type", "application/grpc"), ("te", "trailers")]
        .map(|(name, value)| (name.to_owned(), value.into()))
        .into()
}

fn gunzip(bytes: &[u8]) -> Option<Bytes> {
    let mut inflated = Vec::new();
    flate2::read::GzDecoder::new(bytes).read_to_end(&mut inflated).ok()?;
    Some(inflated.into())
}

pub fn show_bytes(bytes: &Bytes) -> String {
    if bytes.len() <= SHOWN_BYTES {
        return bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    }
    // FNV-1a: whatever tells long messages apart.
    let sum = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("with checksum {sum:016x}")
}
