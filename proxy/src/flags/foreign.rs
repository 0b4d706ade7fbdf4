//! Command lines, variables and config files that are damaged are read or refused.

use std::{collections::BTreeMap, ffi::OsString, os::unix::ffi::OsStringExt};

use super::{Invocation, file, parse};
use crate::{
    foreign::{damaged, damaged_seldom},
    go,
};

fn os(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}

#[test]
fn damaged_command_lines_are_read_or_refused() {
    let lines: [&[u8]; 6] = [
        b"grpc-proxy\nstart\n--endpoints=http://127.0.0.1:2379,unix:///a.sock\n--namespace=a/",
        b"--listen-addr\n127.0.0.1:1\ngrpc-proxy\nstart\n--max-send-bytes=10\n--enable-pprof\n--dial-timeout=1h2m3.5s",
        b"gateway\nstart\n--endpoints=a:1,[::1]:2\n--retry-delay=1m0s",
        b"http-proxy\nstart\n--initial-cluster=a=http://b:1\n--discovery-proxy=c:2\n--cors=*",
        b"grpc-proxy\nstart\n--metrics-addr=https://127.0.0.1:1\n--listen-addr=unix:/a\n--auto-tls\n--tls-min-version=TLS1.3",
        b"help\ngrpc-proxy\nstart\n--version",
    ];
    damaged_seldom(&lines, |line| {
        let words = line.split(|byte| *byte == b'\n').map(os);
        match parse(words, &BTreeMap::new()) {
            Ok(Invocation::Start { flags, .. }) => drop((flags.check(), flags.effective())),
            Ok(Invocation::StartGateway { flags, .. }) => drop((flags.check(), flags.effective())),
            Ok(Invocation::StartHttpProxy { flags, .. }) => drop((flags.check(), flags.effective())),
            _ => (),
        }
    });
}

#[test]
fn damaged_variables_are_read_or_refused() {
    let values: [&[u8]; 4] = [b"127.0.0.1:2379,b:1", b"1h30m", b"true", b"\"quoted,list\",x"];
    damaged_seldom(&values, |value| {
        let names =
            ["ETCD_PROXY_ENDPOINTS", "ETCD_PROXY_RESOLVER_TTL", "ETCD_PROXY_DIAL_TIMEOUT", "ETCD_PROXY_AUTO_TLS"];
        for name in names {
            let words = ["grpc-proxy", "start"].map(OsString::from);
            let _ = parse(words, &BTreeMap::from([(name.to_owned(), os(value))]));
        }
        let text = String::from_utf8_lossy(value);
        let _ = (go::quote(&text), go::read_csv(&text), go::parse_bool(&text));
    });
}

#[test]
fn damaged_config_files_are_read_or_refused() {
    let kinds = BTreeMap::from([("endpoints", "strings"), ("namespace", "string"), ("dial-timeout", "duration")]);
    let files: [&[u8]; 4] = [
        b"endpoints: [\"http://a:1\", b:2]\nnamespace: \"a/\"\n# a comment\ndial-timeout: 1s\n",
        b"endpoints:\n  - a:1\n  - &x b:2\n  - *x\nnamespace: |\n  text\n",
        b"client-identity:\n  - name: a\n    common-name: b\n    namespace: c/\n",
        b"{endpoints: [a], namespace: !!str 1e3, ? {a: b} : c}\n",
    ];
    damaged(&files, |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        let _ = file::settings(text, &kinds);
    });
}
