//! etcd's API as HTTP/JSON through the proxy: as etcd's own gateway serves it, over every way that HTTP has, to clients
//! that stream, leave, read slowly, or are web pages.

/// HTTP/1.1 byte by byte.
mod raw;

mod access;
mod doors;
mod parity;
mod streams;
mod websocket;
