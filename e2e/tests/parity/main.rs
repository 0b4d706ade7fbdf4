//! Parity: one list of calls, run at a real etcd, through the proxy, and through the proxy with a namespace, must be
//! answered alike, byte for byte, status for status, whatever the call is.
//!
//! Each chapter gets three fresh etcds with equal ids, so that even the headers' cluster, member, revision and term
//! must agree. Only direct against proxied counts; how the versions of etcd differ among themselves does not.
//! `cargo test --test parity kv::` runs a chapter, `cargo test --test parity parity_with_3_7` all of them at 3.7.

/// HTTP/2 as a client sees it, with nothing hidden.
mod wire;

/// The RPCs by name and type.
mod rpcs;

/// The three sides, and what they said.
mod side;

/// One call, message by message.
mod stream;

mod auth;
mod callers;
mod chance;
mod cluster;
mod kv;
mod lease;
mod locks;
mod maintenance;
mod malformed;
mod mixture;
mod sharing;
mod tokens;
mod txn;
mod watch;
mod writes;

/// A test per version for each chapter.
macro_rules! chapters {
    ($($chapter:ident),* $(,)?) => {$(
        mod $chapter {
            use etcd_proxy_e2e::Version;

            #[test]
            fn parity_with_3_5() {
                crate::side::compare(Version::V3_5, crate::$chapter::flags(Version::V3_5), crate::$chapter::script);
            }

            #[test]
            fn parity_with_3_6() {
                crate::side::compare(Version::V3_6, crate::$chapter::flags(Version::V3_6), crate::$chapter::script);
            }

            #[test]
            fn parity_with_3_7() {
                crate::side::compare(Version::V3_7, crate::$chapter::flags(Version::V3_7), crate::$chapter::script);
            }
        }
    )*};
}

/// The tests themselves, apart from the chapters so that their names are `of::<chapter>::parity_with_<version>`.
mod of {
    chapters!(
        auth,
        chance,
        cluster,
        kv,
        lease,
        locks,
        maintenance,
        malformed,
        mixture,
        sharing,
        tokens,
        txn,
        watch,
        writes
    );
}
