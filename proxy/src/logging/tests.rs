//! Log lines as they leave the process, through writers that work and writers that do not.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use tracing::{debug, error, info, trace, warn};

use super::*;

/// No wait of a test is longer.
const SOON: Duration = Duration::from_secs(10);

#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Memory {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("no writer panics").clone()).expect("lines are UTF-8")
    }
}

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no writer panics").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What is written while `log` runs, and the logger's own state after it.
fn logged(level: Level, format: Format, log: impl FnOnce(&Shared)) -> String {
    let memory = Memory::default();
    let logger = Logger::new(level, format, Box::new(memory.clone())).expect("a thread");
    let shared = Arc::clone(&logger.shared);
    tracing::subscriber::with_default(logger, || log(&shared));
    assert!(shared.sink.flush(SOON));
    memory.text()
}

/// The one line, with its time replaced after a look at it.
fn line(format: Format, log: impl FnOnce()) -> String {
    let text = logged(Level::DEBUG, format, |_| log());
    let line = text.strip_suffix('\n').expect("a line ends");
    assert!(!line.contains('\n'), "{line}");
    let start = line.find("20").expect("a year");
    let time = &line[start..start + 27];
    for (at, byte) in time.bytes().enumerate() {
        let fits = match at {
            4 | 7 => byte == b'-',
            10 => byte == b'T',
            13 | 16 => byte == b':',
            19 => byte == b'.',
            26 => byte == b'Z',
            _ => byte.is_ascii_digit(),
        };
        assert!(fits, "{time}");
    }
    line.replace(time, "TIME")
}

fn json(text: &str) -> serde_json::Map<String, serde_json::Value> {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[derive(Debug, thiserror::Error)]
#[error("cannot dial")]
struct Outer(#[source] std::io::Error);

#[test]
fn a_line_has_the_keys_of_zap_in_their_order_and_then_the_fields() {
    let at = line!() + 1;
    let line = line(Format::Json, || info!(address = "127.0.0.1:23790", count = 3, "started gRPC proxy"));
    assert_eq!(
        line,
        format!(
            "{{\"level\":\"info\",\"ts\":\"TIME\",\"caller\":\"logging/tests.rs:{at}\",\
             \"msg\":\"started gRPC proxy\",\"address\":\"127.0.0.1:23790\",\"count\":3}}"
        )
    );
}

#[test]
fn the_text_format_has_the_same_parts_with_tabs_between() {
    let at = line!() + 1;
    let with_fields = line(Format::Text, || warn!(a = true, b = "x\ty", "two\nlines"));
    assert_eq!(with_fields, format!("TIME\twarn\tlogging/tests.rs:{at}\ttwo\\nlines\t{{\"a\":true,\"b\":\"x\\ty\"}}"));
    let without = line(Format::Text, || error!("bare"));
    assert!(without.ends_with("\tbare"), "{without}");
}

#[test]
fn values_are_written_as_zap_writes_them() {
    let nan = f64::NAN;
    let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
    let outer = Outer(refused);
    let line = line(Format::Json, || {
        info!(
            int = -5i64,
            uint = u64::MAX,
            wide = i128::MAX,
            float = 1.5,
            nan,
            infinite = f64::NEG_INFINITY,
            yes = true,
            took = %duration(Duration::from_millis(7_201_500)),
            error = &outer as &(dyn std::error::Error + 'static),
            debug = ?vec!["a\"b"],
            "tls-info" = "x",
            r#type = "t",
            "the \"message\" \\ \u{1} \u{7f} \u{1f600} {}",
            5
        );
    });
    assert!(line.contains("\"took\":\"2h0m1.5s\""), "{line}");
    assert!(line.contains("\"wide\":170141183460469231731687303715884105727,"), "{line}");
    let fields = json(&line.replace("170141183460469231731687303715884105727", "0"));
    assert_eq!(fields["msg"], "the \"message\" \\ \u{1} \u{7f} \u{1f600} 5");
    assert_eq!(fields["int"], -5);
    assert_eq!(fields["uint"], u64::MAX);
    assert_eq!(fields["float"], 1.5);
    assert_eq!(fields["nan"], "NaN");
    assert_eq!(fields["infinite"], "-Inf");
    assert_eq!(fields["yes"], true);
    assert_eq!(fields["error"], "cannot dial: connection refused");
    assert_eq!(fields["debug"], "[\"a\\\"b\"]");
    assert_eq!(fields["tls-info"], "x");
    assert_eq!(fields["type"], "t");
}

#[test]
fn lists_of_texts_are_lists_in_the_fields_that_etcd_has_them_in() {
    let endpoints = ["a:1".to_owned(), "say \"b\"".to_owned()];
    let line = line(Format::Json, || info!(?endpoints, other = ?endpoints, args = ?1, "text"));
    let line = json(&line);
    assert_eq!(line["endpoints"], serde_json::json!(endpoints));
    assert!(line["other"].is_string() && line["args"] == "1", "{line:?}");
}

#[test]
fn a_long_text_is_cut_and_the_line_stays_json() {
    let long = "\u{e9}\"".repeat(100_000);
    let line = line(Format::Json, || info!(long, more = %long, "cut {long}"));
    assert!(line.len() < 400_000, "{}", line.len());
    let fields = json(&line);
    for field in ["long", "more", "msg"] {
        assert!(fields[field].as_str().is_some_and(|text| text.ends_with("...")), "{field}");
    }
}

#[test]
fn what_is_below_the_level_is_not_even_formatted() {
    struct Told(AtomicBool);
    impl std::fmt::Display for Told {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            self.0.store(true, Ordering::Relaxed);
            f.write_str("told")
        }
    }
    let told = Told(AtomicBool::new(false));
    let text = logged(Level::INFO, Format::Json, |_| {
        debug!(%told, "unwanted");
        trace!(%told, "unwanted");
    });
    assert_eq!(text, "");
    assert!(!told.0.load(Ordering::Relaxed));
}

#[test]
fn the_level_changes_while_the_process_runs() {
    let text = logged(Level::WARN, Format::Json, |shared| {
        for round in 0..3 {
            let level = [Level::WARN, Level::DEBUG, Level::ERROR][round];
            shared.set_level(level);
            assert_eq!(shared.level(), level);
            debug!(round, "debug");
            warn!(round, "warn");
            error!(round, "error");
        }
    });
    let seen: Vec<String> = text.lines().map(json).map(|line| format!("{}{}", line["level"], line["round"])).collect();
    assert_eq!(seen, ["\"warn\"0", "\"error\"0", "\"debug\"1", "\"warn\"1", "\"error\"1", "\"error\"2"]);
}

#[test]
fn libraries_speak_from_warn_up_unless_debug_is_on() {
    let chatter = || {
        info!(target: "h2::codec", "frame");
        warn!(target: "rustls::conn", "alert");
        debug!(target: "hyper", "io");
        info!(target: "etcd_proxy::server", "ours");
    };
    let at_info = logged(Level::INFO, Format::Json, |_| chatter());
    let at_debug = logged(Level::DEBUG, Format::Json, |_| chatter());
    let messages = |text: &str| {
        text.lines().map(|line| json(line)["msg"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(messages(&at_info), ["alert", "ours"]);
    assert_eq!(messages(&at_debug), ["frame", "alert", "io", "ours"]);
}

#[test]
fn a_storm_of_one_message_does_not_drown_another() {
    let mut sampled = 0;
    let text = logged(Level::INFO, Format::Json, |shared| {
        for number in 0..10_000 {
            info!(number, "storm");
        }
        info!("calm");
        sampled = shared.sampled.load(Ordering::Relaxed);
    });
    let count = |message: &str| text.lines().filter(|line| json(line)["msg"] == message).count() as u64;
    assert_eq!(count("storm") + sampled, 10_000);
    // How many are left out depends on how many seconds the storm lasts.
    assert!(sampled > 0);
    assert_eq!(count("calm"), 1);
}

#[test]
fn a_field_that_logs_while_it_is_formatted_spoils_no_line() {
    struct Chatty;
    impl std::fmt::Display for Chatty {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            info!("inner");
            f.write_str("chatty")
        }
    }
    let text = logged(Level::INFO, Format::Json, |_| info!(value = %Chatty, "outer"));
    for line in text.lines() {
        let fields = json(line);
        assert!(fields["msg"] == "inner" || fields["value"] == "chatty", "{line}");
    }
    assert!(text.contains("\"outer\""), "{text}");
}

// === writers that do not work ===

fn sink(writer: impl Write + Send + 'static) -> Sink {
    Sink::start(Format::Json, Box::new(writer)).expect("a thread")
}

#[test]
fn a_full_disk_costs_lines_that_are_counted() {
    let full = OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
    let sink = sink(full);
    for _ in 0..10 {
        sink.push(b"{}\n");
    }
    assert!(sink.flush(SOON));
    assert_eq!(sink.dropped(), 10);
}

#[test]
fn a_reader_that_is_gone_costs_lines_that_are_counted() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let sink = sink(writer);
    sink.push(b"{}\n");
    sink.push(b"{}\n");
    assert!(sink.flush(SOON));
    assert_eq!(sink.dropped(), 2);
}

#[test]
fn a_reader_that_pauses_blocks_nobody_and_is_told_what_it_missed() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let sink = sink(writer);
    let line = format!("{{\"text\":\"{}\"}}", "x".repeat(100_000));
    let mut pushed = 0;
    while sink.dropped() == 0 {
        sink.push(format!("{line}\n").as_bytes());
        pushed += 1;
        assert!(pushed < 1_000, "the queue has a bound");
    }
    assert!(!sink.flush(Duration::from_millis(1)));
    sink.push(b"{}\n");
    // The reader comes back: all that was queued arrives whole, with the news of the loss somewhere in between.
    let mut whole = 0;
    let mut told = Vec::new();
    for read in BufReader::new(reader).lines() {
        match read.expect("lines are UTF-8") {
            end if end == "{}" => break,
            read if read == line => whole += 1,
            read => told.push(json(&read)),
        }
    }
    assert_eq!(whole, pushed - 1);
    assert_eq!(told.len(), 1);
    assert_eq!((&told[0]["level"], &told[0]["dropped"]), (&"warn".into(), &1.into()));
    assert!(sink.flush(SOON));
}

/// Takes a number of bytes and then fails, until it is given more.
struct Limited {
    memory: Memory,
    left: Arc<Mutex<usize>>,
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut left = self.left.lock().expect("no writer panics");
        let taken = bytes.len().min(*left);
        if taken == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::StorageFull));
        }
        *left -= taken;
        self.memory.write(&bytes[..taken])
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_line_that_was_torn_by_a_full_disk_does_not_spoil_the_next() {
    let (memory, left) = (Memory::default(), Arc::new(Mutex::new(8)));
    let sink = sink(Limited { memory: memory.clone(), left: Arc::clone(&left) });
    for line in [&b"{\"a\":1}\n"[..], b"{\"b\":2}\n", b"{\"c\":3}\n"] {
        sink.push(line);
        assert!(sink.flush(SOON));
        let mut left = left.lock().expect("no writer panics");
        *left = if line[2] == b'a' { 3 } else { 1_000 };
    }
    let text = memory.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines[0], lines[1], lines[3]), ("{\"a\":1}", "{\"b", "{\"c\":3}"), "{text}");
    assert_eq!(json(lines[2])["dropped"], 1);
    assert_eq!(sink.dropped(), 1);
}

// === the whole process ===

const CHILD: &str = "ETCD_PROXY_LOGGING_TEST_CHILD";

/// This test runs itself in child processes whose stderr is broken in one way each.
#[test]
fn a_process_outlives_a_broken_stderr() {
    const NAME: &str = "logging::tests::a_process_outlives_a_broken_stderr";
    if std::env::var_os(CHILD).is_some() {
        return child();
    }
    let program = std::env::current_exe().expect("a test runs from a file");
    let run = |shell: &str, stderr: Stdio| {
        let output = Command::new("sh")
            .args(["-c", shell])
            .arg(&program)
            .args(["--exact", NAME, "--nocapture"])
            .env(CHILD, "1")
            .stderr(stderr)
            .output()
            .expect("a shell");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{shell}: {text}");
        assert!(text.contains("alive"), "{shell}: {text}");
        text
    };
    let full = OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
    let text = run("exec \"$0\" \"$@\"", full.into());
    assert!(text.contains("dropped 3 lines"), "{text}");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let text = run("exec \"$0\" \"$@\"", writer.into());
    assert!(text.contains("dropped 3 lines"), "{text}");
    // Rust opens /dev/null in the place of a closed stderr, before main, lest a socket take its number.
    let text = run("exec \"$0\" \"$@\" 2>&-", Stdio::null());
    assert!(text.contains("dropped 0 lines"), "{text}");
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    run("exec \"$0\" \"$@\"", writer.into());
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("lines are UTF-8");
    let lines: Vec<_> = text.lines().map(json).collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert_eq!(
        (&lines[0]["msg"], &lines[1]["msg"], &lines[2]["msg"]),
        (&"one".into(), &"panicked".into(), &"two".into())
    );
    assert_eq!(lines[1]["error"], "on purpose 1");
}

fn child() {
    init(Level::INFO, Format::Json).expect("logging begins once");
    assert!(matches!(init(Level::INFO, Format::Json), Err(InitError::Twice)));
    info!("one");
    let outcome = std::panic::catch_unwind(|| panic!("on purpose {}", 1));
    assert!(outcome.is_err());
    assert_eq!(panics(), 1);
    set_level(Level::DEBUG);
    assert_eq!(level(), Level::DEBUG);
    set_level(Level::INFO);
    debug!("never");
    info!("two");
    assert!(flush(SOON));
    println!("alive; dropped {} lines, sampled {}", dropped(), sampled());
}
