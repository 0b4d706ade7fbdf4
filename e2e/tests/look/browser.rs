//! Headless Chromium, steered by its DevTools protocol.

use std::process::Command;
use std::time::Duration;

use etcd_proxy_e2e::{Process, process::PATIENCE};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

use super::program;

/// A browser with one page.
pub struct Browser {
    _process: Process,
    _folder: tempfile::TempDir,
    socket: WebSocketStream<TcpStream>,
    session: Option<String>,
    last: u64,
}

impl Browser {
    /// Opens a page.
    pub async fn open(url: &str) -> Browser {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let mut command: Command = program("chromium", "chromium");
        command
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
            // It would ask its maker for news.
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .args(["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--no-proxy-server"])
            .args(["--remote-debugging-port=0", "--window-size=1280,1180", "about:blank"])
            .arg(format!("--user-data-dir={}", folder.path().display()));
        let process = Process::spawn("chromium", &mut command, b"");
        let line = process.expect_stderr("DevTools listening on ws://");
        let address = line.split_once("listening on ").expect("the line has it").1.trim().to_owned();
        let host = address.trim_start_matches("ws://").split('/').next().expect("split yields one part").to_owned();
        let stream = TcpStream::connect(&host).await.expect("the browser listens");
        let (socket, _) = tokio_tungstenite::client_async(address.as_str(), stream).await.expect("it speaks WebSocket");
        let mut browser = Browser { _process: process, _folder: folder, socket, session: None, last: 0 };
        let target = browser.call("Target.createTarget", json!({ "url": url })).await;
        let target = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.call("Target.attachToTarget", target).await;
        browser.session = Some(attached["sessionId"].as_str().expect("a session has an id").to_owned());
        browser
    }

    /// What a command answers.
    pub async fn call(&mut self, method: &str, params: Value) -> Value {
        self.last += 1;
        let mut command = json!({ "id": self.last, "method": method, "params": params });
        if let Some(session) = &self.session {
            command["sessionId"] = session.clone().into();
        }
        self.socket.send(Message::text(command.to_string())).await.expect("the browser listens");
        let answer = tokio::time::timeout(PATIENCE, async {
            loop {
                let message = self.socket.next().await.expect("the browser goes on").expect("a message");
                let Ok(text) = message.to_text() else { continue };
                // Between answers it tells of events.
                let Ok(message) = serde_json::from_str::<Value>(text) else { continue };
                if message["id"] == self.last {
                    return message;
                }
            }
        });
        let answer = answer.await.unwrap_or_else(|_| panic!("the browser does not answer to {method}"));
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].clone()
    }

    /// The value of an expression in the page.
    pub async fn value(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true });
        let answer = self.call("Runtime.evaluate", params).await;
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// What a reader sees of an element.
    pub async fn text(&mut self, id: &str) -> String {
        let text = self.value(&format!("document.getElementById('{id}')?.innerText ?? ''")).await;
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until an element shows these words.
    pub async fn expect(&mut self, id: &str, words: &str) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let text = self.text(id).await;
            if text.contains(words) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{id} does not show {words:?}: {text}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// A picture of the page, as PNG in base64.
    pub async fn picture(&mut self) -> String {
        let answer = self.call("Page.captureScreenshot", json!({ "format": "png" })).await;
        answer["data"].as_str().expect("a picture").to_owned()
    }
}
