//! Names of endpoints are looked up again while the gateway runs.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use etcd_proxy_e2e::wait::until;
use etcd_proxy_e2e::{Etcd, Proxy};

use super::listener_that_never_answers;

/// Has the C library find one name's addresses in a file, as `/etc/hosts` and name servers would, and all others as ever.
const RESOLVER: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
  int (*next)(const char *, const char *, const struct addrinfo *, struct addrinfo **) = dlsym(RTLD_NEXT, "getaddrinfo");
  if (!name || strcmp(name, "etcd.example")) return next(name, service, hints, found);
  FILE *file = fopen(getenv("ADDRESS_OF_ETCD_EXAMPLE"), "r");
  if (!file) return EAI_AGAIN;
  int failed = EAI_NONAME;
  char address[64];
  struct addrinfo **end = found;
  while (fscanf(file, "%63s", address) == 1 && !(failed = next(address, service, hints, end)))
    while (*end) end = &(*end)->ai_next;
  fclose(file);
  return failed;
}
"#;

fn compiled(folder: &Path) -> String {
    let (source, library) = (folder.join("resolver.c"), folder.join("resolver.so"));
    std::fs::write(&source, RESOLVER).expect("the folder can be written to");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl");
    let compiled = cc.output().expect("a C compiler is there, as CONTRIBUTING.md asks");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    library.to_str().expect("a plain path").to_owned()
}

/// Tells everyone who comes its name.
fn greeter(listener: TcpListener, name: &'static str) {
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let _ = socket.expect("somebody came").write_all(name.as_bytes());
        }
    });
}

#[test]
fn a_name_that_comes_to_mean_another_machine_is_followed() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let hosts = folder.path().join("address");
    // All of 127.0.0.0/8 is this machine; both listen on the same port.
    let first = TcpListener::bind("127.0.0.2:0").expect("a free port");
    let port = first.local_addr().expect("a bound listener has an address").port();
    let second = TcpListener::bind(("127.0.0.3", port)).expect("the port is free there too");
    greeter(first, "first");
    greeter(second, "second");
    std::fs::write(&hosts, "127.0.0.2").expect("the folder can be written to");
    let gateway = Proxy::builder()
        .gateway()
        .flag(format!("--endpoints=etcd.example:{port}"))
        .env("LD_PRELOAD", compiled(folder.path()))
        .env("ADDRESS_OF_ETCD_EXAMPLE", hosts.as_os_str())
        .start();
    let greeting = || {
        let mut said = String::new();
        let mut socket = TcpStream::connect(gateway.address()).expect("the gateway accepts");
        socket.read_to_string(&mut said).expect("it ends in order");
        said
    };
    assert_eq!(greeting(), "first");
    // As a whole, so that nobody reads half of it.
    let beside = folder.path().join("new");
    std::fs::write(&beside, "127.0.0.3").expect("the folder can be written to");
    std::fs::rename(&beside, &hosts).expect("it takes the place of the other");
    until("the name is looked up again", || greeting() == "second");
    // Names that cannot be looked up any more take nothing away.
    std::fs::remove_file(&hosts).expect("it was there");
    assert_eq!(greeting(), "second");
}

#[test]
fn an_address_where_nobody_answers_does_not_keep_from_the_others_of_its_name() {
    let etcd = Etcd::start();
    let (host, port) = etcd.address().rsplit_once(':').map(|(h, p)| (h.to_owned(), p.to_owned())).expect("host:port");
    // As after the loss of a machine that DNS still names.
    let _silent = listener_that_never_answers(&format!("127.0.0.2:{port}"));
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let hosts = folder.path().join("addresses");
    std::fs::write(&hosts, format!("127.0.0.2 {host}")).expect("the folder can be written to");
    let library = compiled(folder.path());
    for builder in [Proxy::builder().gateway(), Proxy::builder()] {
        let proxy = builder
            .flag(format!("--endpoints=etcd.example:{port}"))
            .env("LD_PRELOAD", &library)
            .env("ADDRESS_OF_ETCD_EXAMPLE", hosts.as_os_str())
            .start();
        proxy.etcdctl().ok(&["put", "key", "value"]);
        assert!(!proxy.log().iter().any(|line| line["msg"] == "deactivated endpoint"));
    }
}
