//! The types of flags' values: how each is read, and how the start-up log spells it.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use serde::{Serialize, Serializer};

use crate::go;

/// What a log line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Json,
    Text,
}

/// A duration below zero means what zero means, as etcd compares with `> 0` throughout; the parser warns about it.
pub fn duration(text: &str) -> Result<Duration, String> {
    let nanos = go::parse_duration(text)?;
    Ok(Duration::from_nanos(u64::try_from(nanos).unwrap_or(0)))
}

/// Zero is gRPC's own default in Go, both in its server and its client: no answer could come within no time.
pub fn ping_timeout(text: &str) -> Result<Duration, String> {
    const GRPC_DEFAULT: Duration = Duration::from_secs(20);
    duration(text).map(|timeout| if timeout.is_zero() { GRPC_DEFAULT } else { timeout })
}

pub fn uint32(text: &str) -> Result<u32, String> {
    let value = go::parse_uint(text, go::Bits::B32)?;
    u32::try_from(value).map_err(|error| error.to_string())
}

pub fn uint64(text: &str) -> Result<u64, String> {
    go::parse_uint(text, go::Bits::B64)
}

/// Zero and less leave the limit to etcd's own client, which has this one.
pub fn max_send_bytes(text: &str) -> Result<u64, String> {
    const CLIENT_DEFAULT: u64 = 2 * 1024 * 1024;
    Ok(positive(go::parse_int(text)?).unwrap_or(CLIENT_DEFAULT))
}

/// Zero and less leave the limit to etcd's own client, which has this one.
pub fn max_recv_bytes(text: &str) -> Result<u64, String> {
    const CLIENT_DEFAULT: u64 = i32::MAX as u64;
    Ok(positive(go::parse_int(text)?).unwrap_or(CLIENT_DEFAULT))
}

fn positive(value: i64) -> Option<u64> {
    u64::try_from(value).ok().filter(|value| *value > 0)
}

/// Zero means no limit, as it does to a gRPC server in Go.
pub fn max_concurrent_streams(text: &str) -> Result<u32, String> {
    uint32(text).map(|streams| if streams == 0 { u32::MAX } else { streams })
}

pub fn path() -> impl TypedValueParser<Value = Option<PathBuf>> {
    OsStringValueParser::new().map(|text| if text.is_empty() { None } else { Some(PathBuf::from(text)) })
}

pub fn log_level(text: &str) -> Result<tracing::Level, String> {
    match text {
        "debug" => Ok(tracing::Level::DEBUG),
        "info" => Ok(tracing::Level::INFO),
        "warn" => Ok(tracing::Level::WARN),
        "error" => Ok(tracing::Level::ERROR),
        _ => Err("must be one of: debug, info, warn, error".to_owned()),
    }
}

pub fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "json" => Ok(LogFormat::Json),
        "text" => Ok(LogFormat::Text),
        _ => Err("must be one of: json, text".to_owned()),
    }
}

pub fn as_go_duration<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&go::format_duration(*duration))
}

pub fn as_text<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(bytes))
}

pub fn as_level<S: Serializer>(level: &tracing::Level, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&level.as_str().to_ascii_lowercase())
}
