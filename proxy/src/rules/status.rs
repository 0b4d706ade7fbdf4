//! etcd's codes and exact words: the only maker of an error that a client sees.
//!
//! etcd's clients match on the text of an error, so the text is part of the API.

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use http::{HeaderMap, HeaderValue};
pub use tonic::{Code, Status};

use prost::Message as _;

use super::{
    methods::Method,
    tenant::{
        limits::{Exceeded, Limit},
        policy::{Profile, Refusal},
    },
};
use crate::go;

/// The status in a server's trailers. Details that cannot be read are left out: tonic takes them for a defect of its own.
pub fn of_trailers(trailers: &HeaderMap) -> Option<Status> {
    let Some(details) = trailers.get(DETAILS) else { return Status::from_header_map(trailers) };
    if EITHER_PADDING.decode(details.as_bytes()).is_ok() {
        return Status::from_header_map(trailers);
    }
    let mut readable = trailers.clone();
    readable.remove(DETAILS);
    Status::from_header_map(&readable)
}

const DETAILS: &str = "grpc-status-details-bin";
/// gRPC's base64, with or without padding.
const EITHER_PADDING: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A request that is not the message that the RPC takes.
pub fn malformed(what: impl std::fmt::Display) -> Status {
    Status::internal(format!("grpc: error unmarshalling request: {what}"))
}

/// A request in JSON that is not the message that the RPC takes, in the words of etcd's gateway.
pub fn undecodable(what: impl std::fmt::Display) -> Status {
    Status::invalid_argument(what.to_string())
}

/// A path that is no RPC's, in grpc-gateway's words.
pub fn no_such_path() -> Status {
    Status::not_found("Not Found")
}

/// A path that is an RPC's, by a method that is not, in grpc-gateway's words.
pub fn method_not_allowed() -> Status {
    Status::unimplemented("Method Not Allowed")
}

/// A `Grpc-Timeout` that is none, in grpc-gateway's words.
pub fn bad_timeout(text: &str) -> Status {
    Status::invalid_argument(format!("invalid grpc-timeout: {text}"))
}

/// A header of binary metadata that is no base64, in grpc-gateway's words.
pub fn bad_binary_header(name: &str, why: &str) -> Status {
    Status::invalid_argument(format!("invalid binary header {name}: {why}"))
}

/// What etcd tells a client that knows it by another name than it has, as a page.
pub fn unrecognized_host(host: &str) -> String {
    let host = crate::go::quote(host);
    format!(
        "\netcd received your request, but the Host header was unrecognized.\n\n\
         To fix this, choose one of the following options:\n\
         - Enable TLS, then any HTTPS request will be allowed.\n\
         - Add the hostname you want to use to the whitelist in settings.\n  \
         - e.g. etcd --host-whitelist {host}\n\n\
         This requirement has been added to help prevent \"DNS Rebinding\" attacks (CVE-2018-5702).\n\n"
    )
}

/// A message beyond the limit, in grpc-go's words.
pub fn message_too_large(size: usize, limit: usize) -> Status {
    Status::resource_exhausted(format!("grpc: received message larger than max ({size} vs. {limit})"))
}

/// A list of leases for which etcd would have to be asked about too many of them.
pub fn too_many_leases(count: usize, most: usize) -> Status {
    Status::resource_exhausted(format!(
        "etcdserver: too many leases to find those of a namespace ({count} vs. {most}); list them without a namespace"
    ))
}

/// A message compressed in a way that nobody here can read, in grpc-go's words.
pub fn compressed(encoding: &str) -> Status {
    Status::unimplemented(format!("grpc: Decompressor is not installed for grpc-encoding \"{encoding}\""))
}

/// A request stream that ended within a message, in grpc-go's words.
pub fn request_cut_short() -> Status {
    Status::internal("unexpected EOF")
}

/// The same of a unary RPC.
pub fn unary_request_cut_short() -> Status {
    Status::unknown("unexpected EOF")
}

/// A unary RPC without a message, in grpc-go's words.
pub fn no_request() -> Status {
    Status::unknown("EOF")
}

/// A message whose compression flag is no flag, in grpc-go's words.
pub fn unknown_payload_format(flag: u8) -> Status {
    Status::internal(format!("grpc: received unexpected payload format {flag}"))
}

/// A request of another protocol, in grpc-go's words.
pub fn not_grpc(content_type: &str) -> Status {
    Status::invalid_argument(format!("invalid gRPC request content-type \"{content_type}\""))
}

/// A call by another HTTP method than gRPC's, in grpc-go's words.
pub fn not_post(method: &str) -> Status {
    Status::internal(format!("Received a HEADERS frame with :method {} which should be POST", go::quote(method)))
}

/// A compressed message that does not inflate, in grpc-go's words.
pub fn undeflatable(error: impl std::fmt::Display) -> Status {
    Status::internal(format!("grpc: failed to decompress the received message: {error}"))
}

/// A message that inflates beyond the limit, in grpc-go's words.
pub fn inflated_too_large(limit: usize) -> Status {
    Status::resource_exhausted(format!("grpc: message after decompression larger than max ({limit})"))
}

/// A message marked as compressed though nothing says how, in grpc-go's words.
pub fn compressed_without_encoding() -> Status {
    Status::internal("grpc: compressed flag set with identity or empty encoding")
}

/// The client's stream broke while its request was read.
pub fn client_gone(detail: impl std::fmt::Display) -> Status {
    Status::cancelled(format!("context canceled: {detail}"))
}

/// A health check of a service by name, in grpc-go's words.
pub fn unknown_health_service() -> Status {
    Status::not_found("unknown service")
}

/// A method of a service that etcd does not have.
pub fn unknown_method(path: &str, service_is_known: bool) -> Status {
    let Some((service, method)) = path.strip_prefix('/').unwrap_or(path).rsplit_once('/') else {
        return Status::unimplemented(format!("malformed method name: \"{path}\""));
    };
    if service_is_known {
        Status::unimplemented(format!("unknown method {method} for service {service}"))
    } else {
        Status::unimplemented(format!("unknown service {service}"))
    }
}

/// A call that the tenant's profile, or a flag that names it, does not allow.
pub fn not_allowed(method: &Method, refusal: Refusal) -> Status {
    let name = method.path.rsplit('.').next().unwrap_or(method.path);
    Status::permission_denied(match refusal {
        Refusal::Profile(profile) => {
            format!("etcdserver: permission denied: {name} is not part of the API profile \"{}\"", profile.name())
        }
        Refusal::Unknown => return unknown_identity(),
        Refusal::Denied => format!("etcdserver: permission denied: {name} is denied by the configuration of the proxy"),
    })
}

/// Which limit was met, in the words that clients hear.
pub fn of_limit(limit: Limit) -> &'static str {
    match limit {
        Limit::Connections => "etcdserver: too many connections of this tenant",
        Limit::Streams => "etcdserver: too many streams of this tenant",
        Limit::Watches => "etcdserver: too many watches of this tenant",
        Limit::ConcurrentRequests => "etcdserver: too many requests: too many of this tenant are under way",
        Limit::RequestRate => "etcdserver: too many requests: more in a second than this tenant may make",
        Limit::RequestBytes => "etcdserver: request is too large for this tenant",
        Limit::AnswerBytes => "etcdserver: the answer is larger than this tenant may ask for; read it in pages",
        Limit::Keys => "etcdserver: mvcc: database space exceeded: this tenant has as many keys as it may have",
        Limit::StoredBytes => "etcdserver: mvcc: database space exceeded: this tenant has stored as much as it may",
        Limit::Upstream => "etcdserver: too many requests: no turn came in time, since others have theirs first",
        Limit::Memory => "etcdserver: the proxy holds too many large answers; read in pages",
    }
}

/// A limit of the tenant's is reached. Begins with etcd's own words where etcd has any, and says when to come again: in
/// words, as gRPC's `RetryInfo`, and as HTTP's `retry-after` in whole seconds.
pub fn exhausted(exceeded: Exceeded) -> Status {
    let Exceeded { limit, wait } = exceeded;
    let what = of_limit(limit);
    let message = format!("{what}; try again in {}ms", wait.as_millis().max(1));
    let retry = RetryInfo { retry_delay: prost_types::Duration::try_from(wait).ok() };
    let details = RichStatus {
        code: Code::ResourceExhausted as i32,
        message: message.clone(),
        details: vec![prost_types::Any { type_url: RETRY_INFO.to_owned(), value: retry.encode_to_vec() }],
    };
    let mut status = Status::with_details(Code::ResourceExhausted, message, details.encode_to_vec().into());
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    if let Ok(seconds) = seconds.to_string().parse() {
        status.metadata_mut().insert("retry-after", seconds);
    }
    status
}

const RETRY_INFO: &str = "type.googleapis.com/google.rpc.RetryInfo";

/// `google.rpc.Status`, as far as it is needed here.
#[derive(Clone, PartialEq, prost::Message)]
struct RichStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, prost::Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<prost_types::Duration>,
}

/// A compaction of what is not yet, in etcd's words.
pub fn future_revision() -> Status {
    Status::out_of_range("etcdserver: mvcc: required revision is a future revision")
}

/// A client whose certificate is good but names nobody whom the proxy serves.
pub fn unknown_identity() -> Status {
    Status::unauthenticated("etcdserver: the client's certificate names nobody whom this proxy serves")
}

/// etcd does not let the user in as whom the proxy asks for this client; the proxy's log says why.
pub fn cannot_log_in() -> Status {
    Status::unauthenticated("etcdserver: the proxy cannot log in to etcd as the user of this client")
}

/// A lease under an id of the client's choice that is not the tenant's to choose.
pub fn foreign_lease_id() -> Status {
    Status::invalid_argument(
        "etcdserver: this lease ID cannot be chosen here: ask for a lease without an ID, and one is made",
    )
}

/// What etcd answers to a LeaseGrant whose id is taken.
pub const LEASE_EXISTS: &str = "etcdserver: lease already exists";

/// A transaction that writes, where only reading is allowed.
pub fn txn_not_allowed() -> Status {
    let profile = Profile::ReadOnly.name();
    Status::permission_denied(format!(
        "etcdserver: permission denied: a Txn that writes is not part of the API profile \"{profile}\""
    ))
}

/// No endpoint could be reached; `last` is what the last of them said.
pub fn unreachable(last: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("connection error: desc = \"transport: Error while dialing: {last}\""))
}

/// There is no endpoint at all to try.
pub fn no_endpoints() -> Status {
    Status::unavailable("etcdclient: no available endpoints")
}

/// Every member that could be asked is behind what the caller has been shown, in the words of etcd's own client.
pub fn no_greater_revision() -> Status {
    Status::unknown("etcdclient: no cluster members have a revision higher than the previously received revision")
}

/// The connection to etcd broke after the request may have reached it.
pub fn broken(detail: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("error reading from server: {detail}"))
}

/// The store that a watch was on is not the one that answers now.
pub fn store_went_back() -> Status {
    broken("etcd was put back to an older state or is another cluster now")
}

/// The caller's deadline passed.
pub fn deadline_exceeded() -> Status {
    Status::deadline_exceeded("context deadline exceeded")
}

/// The proxy is going away and the client should go to another.
pub fn draining() -> Status {
    Status::unavailable("etcdserver: server stopped")
}

/// A defect of the proxy ended the call; the log has the details.
pub fn panicked() -> Status {
    Status::internal("etcdserver: the proxy failed to serve this call")
}

/// No member that can be reached has a leader.
pub fn no_leader() -> Status {
    Status::unavailable("etcdserver: no leader")
}

/// A key is leased to someone who does not give it up; nothing was written.
pub fn leasing_key_held() -> Status {
    Status::unavailable("etcdserver: request timed out, waiting for the owner of a leasing key to give it up")
}

/// The client ended a watch stream.
pub fn watch_canceled() -> Status {
    Status::cancelled("etcdserver: watch canceled")
}

/// etcd sent a key from outside the namespace; the answer is withheld.
pub fn outside_namespace() -> Status {
    Status::internal("etcdserver: answer withheld, it holds a key outside the namespace")
}

/// An HTTP error where etcd's answer should be, by gRPC's table and in grpc-go's words.
pub fn not_grpc_answer(http_status: http::StatusCode) -> Status {
    let code = match http_status.as_u16() {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502 | 503 | 504 => Code::Unavailable,
        _ => Code::Unknown,
    };
    let reason = http_status.canonical_reason().unwrap_or_default();
    Status::new(code, format!("{NOT_GRPC_ANSWER}: {} ({reason})", http_status.as_u16()))
}

/// How the words for an HTTP error begin.
pub const NOT_GRPC_ANSWER: &str = "unexpected HTTP status code received from server";

/// etcd's answer could not be read.
pub fn unreadable_answer(what: impl std::fmt::Display) -> Status {
    Status::internal(format!("grpc: failed to unmarshal the received message: {what}"))
}

/// What etcd answers, as the reason of a cancelled watch, for a revision that is compacted or negative.
pub const COMPACTED_REASON: &str = "etcdserver: mvcc: required revision has been compacted";
/// The reason for a watch on a range whose end is not after its start.
pub const EMPTY_WATCHER_RANGE_REASON: &str = "mvcc: watcher range is empty";
/// The reason for a second watch under an id that is taken.
pub const DUPLICATE_WATCH_ID_REASON: &str = "mvcc: duplicate watch ID provided on the WatchStream";
/// What etcd answers, with `InvalidArgument`, to whom auth asks for a name that is not given.
pub const USER_EMPTY: &str = "etcdserver: user name is empty";
/// The reasons that tell a client to authenticate again.
pub const REAUTHENTICATE_REASONS: [&str; 2] =
    ["etcdserver: invalid auth token", "etcdserver: revision of auth store is old"];

/// What etcd answers to a login where auth is off.
pub const AUTH_NOT_ENABLED: &str = "etcdserver: authentication is not enabled";

/// Whether a refusal means that the caller is to log in, again or at last. As the reason of a cancelled watch etcd puts
/// the code before the words.
pub fn asks_for_login(message: &str) -> bool {
    REAUTHENTICATE_REASONS.iter().chain([&USER_EMPTY]).any(|reason| message.ends_with(reason))
}

/// The HTTP status that etcd's gateway gives to a code. 499 is nginx's, for a client that has left.
pub fn http_status(code: Code) -> u16 {
    match code {
        Code::Ok => 200,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => 400,
        Code::Unauthenticated => 401,
        Code::PermissionDenied => 403,
        Code::NotFound => 404,
        Code::AlreadyExists | Code::Aborted => 409,
        Code::ResourceExhausted => 429,
        Code::Cancelled => 499,
        Code::Unknown | Code::Internal | Code::DataLoss => 500,
        Code::Unimplemented => 501,
        Code::Unavailable => 503,
        Code::DeadlineExceeded => 504,
    }
}

/// A status as it stands on the wire. The words are spelled as grpc-go spells them, blanks and all, where tonic would
/// escape more: clients decode both, but not everyone who reads a header is one.
pub fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(3);
    if status.add_header(&mut trailers).is_err() {
        trailers.insert(Status::GRPC_STATUS, HeaderValue::from(status.code() as i32));
    }
    trailers.insert(Status::GRPC_MESSAGE, escape(status.message()));
    trailers
}

/// Escapes `%` and whatever is not printable ASCII.
fn escape(message: &str) -> HeaderValue {
    let mut escaped = String::with_capacity(message.len());
    for &byte in message.as_bytes() {
        match byte {
            b'%' => escaped.push_str("%25"),
            b' '..=b'~' => escaped.push(char::from(byte)),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    HeaderValue::try_from(escaped).expect("printable ASCII is a header value")
}

/// What a member's refusal says of the member, and so what may be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The member does not take such calls: nothing was done, and any call may go elsewhere.
    Refused,
    /// The member cannot serve now: a read may go elsewhere.
    Sick,
    /// It is over already: a read may be asked again, of any member.
    Passed,
}

/// The code for it differs between versions of etcd, the text does not.
pub const NOT_SUPPORTED_FOR_LEARNER: &str = "etcdserver: rpc not supported for learner";

/// Whether a status is one member's trouble that another may not share.
pub fn member_trouble(code: Code, message: &str) -> Option<Trouble> {
    match message {
        NOT_SUPPORTED_FOR_LEARNER => Some(Trouble::Refused),
        _ if code != Code::Unavailable => None,
        "etcdserver: no leader" | "etcdserver: server stopped" => Some(Trouble::Sick),
        "etcdserver: leader changed" => Some(Trouble::Passed),
        _ if message.starts_with("etcdserver: request timed out") => Some(Trouble::Sick),
        _ if message.starts_with(NOT_GRPC_ANSWER) => Some(Trouble::Sick),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
