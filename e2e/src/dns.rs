//! A name server on 127.0.0.1 that knows the SRV records that a test tells it, and fails when the test says so.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};

/// One second: resolvers may ask again as soon as the proxy does.
const TTL_SECONDS: u32 = 1;
const SRV: u16 = 33;
const INTERNET: u16 = 1;
const NO_ERROR: u16 = 0;
const SERVER_FAILURE: u16 = 2;
const NO_SUCH_NAME: u16 = 3;
/// No question of a resolver is longer, as it travels without fragments.
const LONGEST_QUESTION: usize = 1500;

/// The server; it answers as long as the test runs.
#[derive(Clone)]
pub struct NameServer {
    address: SocketAddr,
    shared: Arc<Mutex<Known>>,
}

/// A server on `localhost`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Record {
    pub priority: u16,
    pub weight: u16,
    pub port: u16,
}

#[derive(Default)]
struct Known {
    /// By the name of the service.
    records: HashMap<String, Vec<Record>>,
    fails: bool,
    questions: usize,
}

impl NameServer {
    pub fn start() -> NameServer {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("loopback has a free port");
        let server =
            NameServer { address: socket.local_addr().expect("a bound socket has an address"), shared: Arc::default() };
        let answering = server.clone();
        std::thread::spawn(move || {
            let mut question = [0; LONGEST_QUESTION];
            while let Ok((length, asker)) = socket.recv_from(&mut question) {
                if let Some(answer) = answering.answer(&question[..length]) {
                    // A resolver that is gone needs no answer.
                    let _ = socket.send_to(&answer, asker);
                }
            }
        });
        server
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `name`, such as `_etcd-client._tcp.example.com`, is served on these ports of `localhost`; none takes it away.
    pub fn set(&self, name: &str, ports: &[u16]) {
        let records: Vec<Record> = ports.iter().map(|port| Record { port: *port, ..Record::default() }).collect();
        self.set_records(name, &records);
    }

    /// The same with priorities and weights.
    pub fn set_records(&self, name: &str, records: &[Record]) {
        let mut known = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        known.records.remove(name);
        if !records.is_empty() {
            known.records.insert(name.to_owned(), records.to_vec());
        }
    }

    /// Whether it answers each question with "server failure".
    pub fn set_failing(&self, fails: bool) {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).fails = fails;
    }

    /// How many questions came so far.
    pub fn questions(&self) -> usize {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).questions
    }

    fn answer(&self, question: &[u8]) -> Option<Vec<u8>> {
        let (name, end) = read_name(question)?;
        let kind = u16::from_be_bytes(question.get(end..end + 2)?.try_into().ok()?);
        let mut known = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        known.questions += 1;
        let records = known.records.get(&name);
        let (code, records) = match records {
            _ if known.fails => (SERVER_FAILURE, &[][..]),
            None => (NO_SUCH_NAME, &[][..]),
            Some(records) if kind == SRV => (NO_ERROR, &records[..]),
            Some(_) => (NO_ERROR, &[][..]),
        };
        let mut answer = question.get(..2)?.to_vec();
        // An answer to a question with recursion, by a server that offers it.
        for number in [0x8180 | code, 1, u16::try_from(records.len()).ok()?, 0, 0] {
            answer.extend(number.to_be_bytes());
        }
        answer.extend(question.get(12..end + 4)?);
        for record in records {
            // The name is the question's, which begins at byte 12.
            answer.extend([0xc0, 12]);
            answer.extend([SRV.to_be_bytes(), INTERNET.to_be_bytes()].concat());
            answer.extend(TTL_SECONDS.to_be_bytes());
            let target = b"\x09localhost\x00";
            answer.extend(u16::try_from(6 + target.len()).ok()?.to_be_bytes());
            for number in [record.priority, record.weight, record.port] {
                answer.extend(number.to_be_bytes());
            }
            answer.extend(target);
        }
        Some(answer)
    }
}

/// The name that is asked for, in lower case, and where it ends.
fn read_name(question: &[u8]) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    let mut at = 12;
    loop {
        let length = usize::from(*question.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        labels.push(String::from_utf8_lossy(question.get(at..at + length)?).to_lowercase());
        at += length;
    }
}
