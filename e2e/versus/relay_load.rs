//! Load for a relay of bytes, and the server behind it, for `make versus-gateway`: streams, small messages, connections
//! one after another, and many that are silent.
//!
//! `relay_load serve ADDRESS` answers; `relay_load stream|small|connect|idle ADDRESS NUMBER` asks, and prints what it
//! counted: MiB, messages or connections, and the seconds that it took. NUMBER is seconds, or connections for `idle`.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The first byte of a connection says what the server is to do with the rest.
const ECHO: u8 = b'e';
const SWALLOW: u8 = b's';

/// A message as small as a put, and one as large as a range of some thousand keys.
const SMALL: usize = 128;
const LARGE: usize = 1 << 20;

/// As many as keep a proxy on two cores busy while client and server share them.
const STREAMS: usize = 4;
const TALKERS: usize = 32;
const CONNECTORS: usize = 16;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve", address] => serve(address),
        ["stream", address, seconds] => load(address, seconds, STREAMS, stream),
        ["small", address, seconds] => load(address, seconds, TALKERS, talk),
        ["connect", address, seconds] => load(address, seconds, CONNECTORS, connect),
        ["idle", address, connections] => idle(address, connections.parse().expect("a number of connections")),
        _ => panic!("usage: relay_load serve ADDRESS | stream|small|connect|idle ADDRESS NUMBER"),
    }
}

fn serve(address: &str) {
    let listener = TcpListener::bind(address).expect("the address is free");
    for socket in listener.incoming() {
        // A relay that fails under load is what the client counts, and none of the server's business.
        let Ok(socket) = socket else { continue };
        let served = std::thread::Builder::new().stack_size(64 << 10).spawn(move || answer(socket));
        served.expect("a thread can be started");
    }
}

fn answer(mut socket: TcpStream) -> Option<()> {
    let mut kind = [0];
    socket.set_nodelay(true).ok()?;
    socket.read_exact(&mut kind).ok()?;
    let mut buffer = vec![0; if kind[0] == ECHO { SMALL } else { 256 << 10 }];
    while let Ok(length @ 1..) = socket.read(&mut buffer) {
        if kind[0] == ECHO {
            socket.write_all(&buffer[..length]).ok()?;
        }
    }
    socket.shutdown(Shutdown::Write).ok()
}

/// Runs `work` on so many threads for a time. It counts until it is told to stop.
fn load(address: &str, seconds: &str, threads: usize, work: fn(&str, &AtomicBool, &AtomicU64)) {
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let started = Instant::now();
    let workers: Vec<_> = (0..threads)
        .map(|_| {
            let (address, stop, count) = (address.to_owned(), stop.clone(), count.clone());
            std::thread::spawn(move || work(&address, &stop, &count))
        })
        .collect();
    std::thread::sleep(Duration::from_secs_f64(seconds.parse().expect("a number of seconds")));
    let (counted, elapsed) = (count.load(Ordering::Relaxed), started.elapsed());
    stop.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.join().expect("the load goes through");
    }
    println!("{counted} {}", elapsed.as_secs_f64());
}

fn open(address: &str, kind: u8) -> TcpStream {
    let mut socket = TcpStream::connect(address).expect("the relay accepts");
    socket.set_nodelay(true).expect("a TCP socket takes the option");
    socket.write_all(&[kind]).expect("the relay takes a byte");
    socket
}

fn stream(address: &str, stop: &AtomicBool, count: &AtomicU64) {
    let mut socket = open(address, SWALLOW);
    let message = vec![7; LARGE];
    while !stop.load(Ordering::Relaxed) {
        socket.write_all(&message).expect("the relay takes a message");
        count.fetch_add(1, Ordering::Relaxed);
    }
}

fn talk(address: &str, stop: &AtomicBool, count: &AtomicU64) {
    let mut socket = open(address, ECHO);
    let mut message = [7; SMALL];
    while !stop.load(Ordering::Relaxed) {
        socket.write_all(&message).expect("the relay takes a message");
        socket.read_exact(&mut message).expect("the answer comes back");
        count.fetch_add(1, Ordering::Relaxed);
    }
}

fn connect(address: &str, stop: &AtomicBool, count: &AtomicU64) {
    while !stop.load(Ordering::Relaxed) {
        let mut socket = open(address, ECHO);
        let mut message = [7; SMALL];
        socket.write_all(&message).expect("the relay takes a message");
        socket.read_exact(&mut message).expect("the answer comes back");
        socket.shutdown(Shutdown::Write).expect("the half can be closed");
        assert_eq!(socket.read(&mut message).expect("the end comes back"), 0);
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Opens connections, sees each of them work, and holds them until it is killed.
fn idle(address: &str, connections: usize) {
    let started = Instant::now();
    let mut held = Vec::with_capacity(connections);
    for _ in 0..connections {
        let mut socket = open(address, ECHO);
        let mut message = [7; SMALL];
        socket.write_all(&message).expect("the relay takes a message");
        socket.read_exact(&mut message).expect("the answer comes back");
        held.push(socket);
    }
    println!("{} {}", held.len(), started.elapsed().as_secs_f64());
    std::io::stdout().flush().expect("stdout is open");
    loop {
        std::thread::park();
    }
}
