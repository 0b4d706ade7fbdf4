//! TLS on both sides by real handshakes: who is let in, what is spoken, what happens when files change or are wrong.

mod files;
mod handshake;
mod pki;
mod reload;
