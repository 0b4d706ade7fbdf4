//! gRPC channels to etcd or a proxy, for tests that look closer than etcdctl does.

use std::time::Duration;

use bytes::Bytes;
use tonic::transport::{Channel, Endpoint};

/// A connection on loopback is there at once or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A plaintext channel to `address` (`127.0.0.1:port`), connected.
pub async fn channel(address: &str) -> Channel {
    endpoint(address).connect().await.unwrap_or_else(|error| panic!("cannot connect to {address}: {error:?}"))
}

/// The same, not yet connected, for tests that set more on it.
pub fn endpoint(address: &str) -> Endpoint {
    Endpoint::from_shared(format!("http://{address}"))
        .unwrap_or_else(|error| panic!("{address} is no address: {error}"))
        .connect_timeout(CONNECT_TIMEOUT)
}

/// A message with its prefix.
pub fn frame(message: &[u8]) -> Bytes {
    flagged(0, message)
}

/// The same with any compression flag.
pub fn flagged(flag: u8, message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("messages are small");
    [&[flag][..], &length.to_be_bytes(), message].concat().into()
}
