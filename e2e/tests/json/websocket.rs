//! WebSocket, with a client that is not ours: the same texts from etcd and from the proxy.

use std::time::Duration;

use etcd_proxy_e2e::{Etcd, Proxy, process::PATIENCE};
use futures_util::{SinkExt, StreamExt};
use http::{HeaderValue, Response};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest},
};

/// How often a number is asked for that no event tells of.
const POLL: Duration = Duration::from_millis(20);

type Socket = WebSocketStream<TcpStream>;

async fn open(address: &str, path: &str, headers: &[(&'static str, &str)]) -> (Socket, Response<Option<Vec<u8>>>) {
    let socket = TcpStream::connect(address).await.expect("it listens");
    let mut request = format!("ws://{address}{path}").into_client_request().expect("a request");
    for (name, value) in headers {
        request.headers_mut().insert(*name, HeaderValue::from_str(value).expect("a value"));
    }
    client_async(request, socket).await.expect("it speaks WebSocket")
}

async fn say(socket: &mut Socket, text: &str) {
    socket.send(Message::text(text)).await.expect("the server takes it");
}

/// The next text; none when the server has ended it.
async fn hear(socket: &mut Socket) -> Option<String> {
    let heard = tokio::time::timeout(PATIENCE, socket.next()).await.expect("an answer in time");
    match heard {
        Some(Ok(Message::Text(text))) => Some(text.as_str().replace(", \"", ",\"")),
        // etcd ends the connection without a word, the proxy with one.
        Some(Ok(Message::Close(_)) | Err(_)) | None => None,
        Some(Ok(other)) => panic!("{other:?}"),
    }
}

/// A conversation on the Watch RPC.
async fn converse(address: &str) -> Vec<Option<String>> {
    let (mut socket, _) = open(address, "/v3/watch", &[]).await;
    let mut heard = Vec::new();
    say(&mut socket, r#"{"create_request":{"key":"Zm9v","start_revision":"1"}}"#).await;
    for _ in 0..2 {
        heard.push(hear(&mut socket).await);
    }
    say(&mut socket, r#"{"create_request":{"key":"YmFy"}}"#).await;
    heard.push(hear(&mut socket).await);
    say(&mut socket, r#"{"cancel_request":{"watch_id":"1"}}"#).await;
    heard.push(hear(&mut socket).await);
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_is_the_same_as_with_etcd_itself() {
    let etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    crate::raw::post(etcd.address(), "/v3/kv/put", r#"{"key":"Zm9v","value":"MQ=="}"#);
    let expected = converse(etcd.address()).await;
    assert!(expected[1].as_ref().is_some_and(|line| line.contains(r#""value":"MQ==""#)), "{expected:?}");
    assert_eq!(converse(proxy.address()).await, expected);
    for address in [etcd.address(), proxy.address()] {
        let (mut socket, _) = open(address, "/v3/nothing", &[]).await;
        assert_eq!(hear(&mut socket).await.as_deref(), Some(r#"{"code":5,"message":"Not Found"}"#));
        assert_eq!(hear(&mut socket).await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_question_has_one_answer_and_rubbish_a_refusal() {
    let etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    let (mut socket, _) = open(proxy.address(), "/v3/kv/put", &[]).await;
    say(&mut socket, r#"{"key":"Zm9v"}"#).await;
    assert!(hear(&mut socket).await.is_some_and(|line| line.contains(r#""revision":"2""#)));
    assert_eq!(hear(&mut socket).await, None);
    let (mut socket, _) = open(proxy.address(), "/v3/watch", &[]).await;
    say(&mut socket, "xx").await;
    let refusal = r#"{"code":3,"message":"invalid character 'x' looking for beginning of value"}"#;
    assert_eq!(hear(&mut socket).await.as_deref(), Some(refusal));
    // Who leaves before it has asked has asked for nothing.
    let (mut socket, _) = open(proxy.address(), "/v3/kv/compaction", &[]).await;
    socket.close(None).await.expect("the server takes it");
    let heard = tokio::time::timeout(PATIENCE, socket.next()).await.expect("an answer in time");
    assert!(matches!(&heard, Some(Ok(Message::Close(None)))), "{heard:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_ends_its_watch_at_etcd_and_pings_are_answered_meanwhile() {
    let etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    let (mut socket, _) = open(proxy.address(), "/v3/watch", &[]).await;
    say(&mut socket, r#"{"create_request":{"key":"Zm9v"}}"#).await;
    hear(&mut socket).await.expect("it is created");
    socket.send(Message::Ping("are you there".into())).await.expect("the server takes it");
    let heard = tokio::time::timeout(PATIENCE, socket.next()).await.expect("an answer in time");
    assert!(matches!(&heard, Some(Ok(Message::Pong(data))) if data == "are you there"), "{heard:?}");
    let watchers = || etcd.members()[0].metric("etcd_debugging_mvcc_watcher_total");
    assert!(watchers() > Some(0.0));
    drop(socket);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while watchers() != Some(0.0) {
        assert!(tokio::time::Instant::now() < deadline, "the watch stays at etcd");
        tokio::time::sleep(POLL).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browsers_token_comes_as_a_subprotocol_or_a_cookie() {
    let etcd = Etcd::start();
    let proxy = Proxy::start(&etcd.endpoints());
    let post = |path: &str, body: &str| crate::raw::post(etcd.address(), path, body);
    post("/v3/auth/user/add", r#"{"name":"root","password":"p"}"#);
    post("/v3/auth/user/grant", r#"{"user":"root","role":"root"}"#);
    assert_eq!(post("/v3/auth/enable", "{}").head.status, 200);
    let answer = post("/v3/auth/authenticate", r#"{"name":"root","password":"p"}"#);
    let token = answer.body.split("\"token\":").nth(1).and_then(|rest| rest.split('"').nth(1)).expect("a token");
    let mut said = Vec::new();
    for address in [etcd.address(), proxy.address()] {
        let mut heard = Vec::new();
        for headers in [
            vec![("sec-websocket-protocol", format!("Bearer, {token}"))],
            vec![("cookie", format!("token={token}"))],
            vec![],
        ] {
            let headers: Vec<(&'static str, &str)> =
                headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let (mut socket, response) = open(address, "/v3/watch", &headers).await;
            let protocol = response.headers().get("sec-websocket-protocol").cloned();
            say(&mut socket, r#"{"create_request":{"key":"Zm9v"}}"#).await;
            heard.push((protocol, hear(&mut socket).await));
        }
        said.push(heard);
    }
    assert_eq!(said[0], said[1]);
}
