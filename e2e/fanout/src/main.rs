//! Measures what a proxy spends on the events of many watchers: `fanout --etcd ADDRESS --proxy ADDRESS --process PID`.
//!
//! One writer writes straight to etcd, and one thread holds all watchers, which watch the same prefix through the
//! proxy. Both speak HTTP/2 by hand and decode nothing, so that on a small machine the proxy gets most of it. Every
//! event must reach every watcher; if one does not, that is said instead of a number.

use std::{
    process::ExitCode,
    sync::atomic::Ordering::Relaxed,
    thread,
    time::{Duration, Instant},
};

mod cost;
mod counter;
mod line;
mod sink;
mod source;
mod wire;

use sink::{Shape, Totals};
use source::{Load, Source};

/// How long watches may take to be made, and the last events to come.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(5);
/// Before anything is counted, so that buffers have grown.
const WARM_UP: Duration = Duration::from_millis(700);
/// What each stream of the watchers takes unread, as much as a Go client grants at most.
const WINDOW: u32 = 16 << 20;
/// How long watchers are idle before their memory is looked at: what was freed has been given back by then.
const REST: Duration = Duration::from_secs(2);

/// What was asked for on the command line.
struct Asked {
    etcd: String,
    proxy: String,
    is_secure: bool,
    process: u32,
    shape: Shape,
    load: Load,
    window: u32,
    seconds: f64,
}

fn main() -> ExitCode {
    let asked = match Asked::parse(std::env::args().skip(1)) {
        Ok(asked) => asked,
        Err(problem) => {
            eprintln!("fanout: {problem}");
            return ExitCode::from(2);
        }
    };
    match measure(&asked) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("fanout: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Asked {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let shape = Shape { connections: 1, streams: 1, watchers: 1 };
        let load = Load { puts: 1, depth: 16, rate: None, keys: 1000, value_size: 100 };
        let (etcd, proxy) = (String::new(), String::new());
        let is_secure = false;
        let mut asked = Self { etcd, proxy, is_secure, process: 0, shape, load, window: WINDOW, seconds: 3.0 };
        while let Some(flag) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{flag} wants a value"))?;
            let bad = |_| format!("{flag} wants a number, not {value}");
            match flag.as_str() {
                "--etcd" => asked.etcd = value,
                "--proxy" => asked.proxy = value,
                "--tls" => asked.is_secure = value.parse().map_err(|_| format!("{flag} wants true or false"))?,
                "--process" => asked.process = value.parse().map_err(bad)?,
                "--connections" => asked.shape.connections = value.parse().map_err(bad)?,
                "--streams" => asked.shape.streams = value.parse().map_err(bad)?,
                "--watchers" => asked.shape.watchers = value.parse().map_err(bad)?,
                "--puts" => asked.load.puts = value.parse().map_err(bad)?,
                "--depth" => asked.load.depth = value.parse().map_err(bad)?,
                "--keys" => asked.load.keys = value.parse().map_err(bad)?,
                "--value-size" => asked.load.value_size = value.parse().map_err(bad)?,
                "--window" => asked.window = value.parse().map_err(bad)?,
                "--rate" => asked.load.rate = Some(value.parse().map_err(|_| format!("{flag} wants a number"))?),
                "--seconds" => asked.seconds = value.parse().map_err(|_| format!("{flag} wants a number"))?,
                _ => return Err(format!("there is no flag {flag}")),
            }
        }
        asked.load.keys = asked.load.keys.max(1);
        if asked.etcd.is_empty() || asked.proxy.is_empty() || asked.process == 0 {
            return Err("--etcd, --proxy and --process are needed".to_owned());
        }
        Ok(asked)
    }
}

/// A line of tab-separated numbers: events in a second, CPU of the proxy in ns for each, cores that it used, those that
/// this program used, bytes of memory for each idle watch, events in each message.
fn measure(asked: &Asked) -> Result<String, String> {
    let text = |error: std::io::Error| error.to_string();
    let before = cost::resident(asked.process);
    let watches = asked.shape.watches();
    let totals =
        sink::start(&asked.proxy, asked.is_secure, asked.shape, asked.window, b"fan/", b"fan0").map_err(text)?;
    await_count(&totals, "watches", watches, || totals.created.load(Relaxed))?;
    thread::sleep(REST);
    let idle = cost::resident(asked.process).saturating_sub(before);

    let mut source = Source::connect(&asked.etcd, asked.load).map_err(text)?;
    let seen = || totals.events.load(Relaxed) / watches;
    source.write_until(Instant::now() + WARM_UP, seen).map_err(text)?;
    let start = Reading::take(asked, &totals);
    source.write_until(start.at + Duration::from_secs_f64(asked.seconds), seen).map_err(text)?;
    let end = Reading::take(asked, &totals);
    source.finish().map_err(text)?;
    let all = source.events() * watches;
    await_count(&totals, "events", all, || totals.events.load(Relaxed))?;
    thread::sleep(LOOK);
    let (events, ended) = (totals.events.load(Relaxed), totals.ended.load(Relaxed));
    if events != all || ended > 0 {
        return Err(format!("{events} events came instead of {all}, and {ended} watches ended"));
    }

    let seconds = (end.at - start.at).as_secs_f64();
    let events = (end.events - start.events).max(1) as f64;
    let used = end.proxy - start.proxy;
    Ok([
        format!("{:.0}", events / seconds),
        format!("{:.1}", used.as_nanos() as f64 / events),
        format!("{:.2}", used.as_secs_f64() / seconds),
        format!("{:.2}", (end.own - start.own).as_secs_f64() / seconds),
        format!("{:.0}", idle as f64 / watches as f64),
        format!("{:.1}", events / (end.messages - start.messages).max(1) as f64),
    ]
    .join("\t"))
}

struct Reading {
    at: Instant,
    events: u64,
    messages: u64,
    proxy: Duration,
    own: Duration,
}

impl Reading {
    fn take(asked: &Asked, totals: &Totals) -> Self {
        Self {
            at: Instant::now(),
            events: totals.events.load(Relaxed),
            messages: totals.messages.load(Relaxed),
            proxy: cost::cpu(asked.process),
            own: cost::cpu(std::process::id()),
        }
    }
}

fn await_count(totals: &Totals, what: &str, wanted: u64, count: impl Fn() -> u64) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    while count() < wanted {
        if Instant::now() > deadline || totals.ended.load(Relaxed) > 0 {
            return Err(format!("{} of {wanted} {what} came, and {:?}", count(), totals));
        }
        thread::sleep(LOOK);
    }
    Ok(())
}
