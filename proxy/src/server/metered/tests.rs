//! A connection under h2, with nobody above it and a pipe below.

use std::future::poll_fn;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;

const PREFACE: &[u8; PREFACE_LEN] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const PING: [u8; 17] = [0, 0, 8, kind::PING, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
const HEADERS: [u8; 10] = [0, 0, 1, kind::HEADERS, 5, 0, 0, 0, 7, 0x82];

fn metered() -> (DuplexStream, Metered<DuplexStream>) {
    let (client, server) = tokio::io::duplex(64 * 1024);
    (client, super::metered(server, Arc::default(), Duration::from_secs(5)).0)
}

#[tokio::test(start_paused = true)]
async fn a_client_that_pings_too_often_is_told_so_and_its_connection_ends() {
    let (mut client, mut server) = metered();
    client.write_all(PREFACE).await.expect("the pipe takes it");
    client.write_all(&HEADERS).await.expect("the pipe takes it");
    for _ in 0..4 {
        client.write_all(&PING).await.expect("the pipe takes it");
    }
    let reader = tokio::spawn(async move {
        let mut bytes = Vec::new();
        let error = server.read_to_end(&mut bytes).await.expect_err("the client is sent away");
        assert_eq!(error.to_string(), "too_many_pings");
    });
    let mut farewell = Vec::new();
    client.read_to_end(&mut farewell).await.expect("the pipe gives it");
    assert_eq!(farewell[..9], [0, 0, 22, kind::GOAWAY, 0, 0, 0, 0, 0]);
    assert_eq!(farewell[9..17], [0, 0, 0, 7, 0, 0, 0, 11]);
    assert_eq!(&farewell[17..], b"too_many_pings");
    reader.await.expect("the check holds although the client keeps its end open");
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_is_under_way_is_not_cut_by_the_farewell() {
    let (mut client, mut server) = metered();
    let begun = [0, 0, 9, kind::SETTINGS, 0, 0, 0, 0, 0, 1, 2];
    server.write_all(&begun).await.expect("the pipe takes it");
    client.write_all(PREFACE).await.expect("the pipe takes it");
    for _ in 0..4 {
        client.write_all(&PING).await.expect("the pipe takes it");
    }
    server.read_to_end(&mut Vec::new()).await.expect_err("the client is sent away");
    drop(server);
    let mut sent = Vec::new();
    client.read_to_end(&mut sent).await.expect("the pipe gives it");
    assert_eq!(sent, begun);
}

#[tokio::test]
async fn what_a_turn_writes_goes_out_at_its_end_and_no_more_is_held_than_the_bound() {
    let (mut client, server) = tokio::io::duplex(16 << 10);
    let (mut server, outlet) = super::metered(server, Arc::default(), Duration::from_secs(5));
    outlet.take_over();
    let frame = [[0, 0, 1, kind::DATA, 0, 0, 0, 0, 1].as_slice(), b"x"].concat();
    let mut sent = Vec::new();
    for _ in 0..100 {
        server.write_all(&frame).await.expect("there is room");
        server.flush().await.expect("it waits for the end of the turn");
        sent.extend_from_slice(&frame);
    }
    let mut byte = [0];
    let early = poll_fn(|context| {
        let mut buffer = ReadBuf::new(&mut byte);
        Poll::Ready(Pin::new(&mut client).poll_read(context, &mut buffer).is_ready())
    });
    assert!(!early.await, "something was written before the end of the turn");
    // Nobody reads: the pipe takes a part, the buffer what it may, and then the writer has to wait.
    let flooded = poll_fn(|context| {
        while let Poll::Ready(written) = Pin::new(&mut server).poll_write(context, &frame) {
            sent.extend_from_slice(&frame[..written.expect("the pipe is open")]);
        }
        assert!(outlet.poll_write_out(context).is_pending());
        Poll::Ready(sent.len())
    });
    assert!(flooded.await <= OUT_HIGH_WATER + (16 << 10));
    let writing = tokio::spawn(async move {
        poll_fn(|context| outlet.poll_write_out(context)).await.expect("the pipe takes it");
        server.shutdown().await.expect("the pipe closes");
    });
    let mut read = Vec::new();
    client.read_to_end(&mut read).await.expect("the pipe gives it");
    writing.await.expect("the writer ends");
    assert!(read == sent, "{} bytes were read and {} sent", read.len(), sent.len());
}

#[tokio::test]
async fn a_turn_takes_few_frames_and_the_next_ones_the_rest() {
    let (mut client, server) = tokio::io::duplex(64 << 10);
    let (mut server, outlet) = super::metered(server, Arc::default(), Duration::from_secs(5));
    outlet.take_over();
    let sent = [PREFACE.as_slice(), &HEADERS.repeat(1000)].concat();
    client.write_all(&sent).await.expect("the pipe takes it");
    let (mut read, mut turns) = (Vec::new(), 0);
    while read.len() < sent.len() {
        let in_turn = poll_fn(|context| {
            let before = read.len();
            let mut room = [0; 8 << 10];
            let mut buffer = ReadBuf::new(&mut room);
            while read.len() < sent.len() && Pin::new(&mut server).poll_read(context, &mut buffer).is_ready() {
                read.extend_from_slice(buffer.filled());
                buffer.clear();
            }
            assert!(outlet.poll_write_out(context).is_ready());
            Poll::Ready(read.len() - before)
        });
        assert!(in_turn.await <= MAX_SHORT_FRAMES_A_TURN * HEADERS.len() + SHORT_READ);
        turns += 1;
    }
    assert!(read == sent && turns > 3);
}

#[tokio::test]
async fn bytes_pass_unchanged_both_ways() {
    let (mut client, mut server) = metered();
    let sent = [PREFACE.as_slice(), &HEADERS, &PING].concat();
    client.write_all(&sent).await.expect("the pipe takes it");
    let mut read = vec![0; sent.len()];
    server.read_exact(&mut read).await.expect("the pipe gives it");
    assert_eq!(read, sent);
    let slices = [IoSlice::new(&HEADERS), IoSlice::new(&PING)];
    let written = server.write_vectored(&slices).await.expect("the pipe takes it");
    server.flush().await.expect("the pipe takes it");
    let mut read = vec![0; written];
    client.read_exact(&mut read).await.expect("the pipe gives it");
    assert_eq!(read, [HEADERS.as_slice(), &PING].concat()[..written]);
}
