//! The document as lines of text. What others wrote (names, reasons) cannot move the cursor: control characters go.

use std::fmt::Write;

use crate::admin::status::Document;

const BOLD: &str = "\x1b[1m";
const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const GREEN: &str = "\x1b[32m";
const NORMAL: &str = "\x1b[0m";
/// Certificates with fewer days left are shown as trouble.
const WARN_DAYS: f64 = 14.0;

/// One line, with what kind of news it is.
struct Line {
    text: String,
    colour: &'static str,
}

/// Everything, without colours.
pub fn plain(document: &Document) -> String {
    lines(document, None).into_iter().fold(String::new(), |mut all, line| {
        all += line.text.trim_end();
        all.push('\n');
        all
    })
}

/// What fits on the screen, with the rates since the document before; or why there is none.
pub fn live(now: &Result<&Document, String>, before: &Document, rows: usize, columns: usize) -> String {
    let mut lines = match now {
        Ok(now) => lines(now, Some(before).filter(|before| before.started == now.started && before.now < now.now)),
        Err(error) => {
            let mut lines = lines(before, None);
            lines.insert(0, Line { text: clean(error), colour: RED });
            lines
        }
    };
    if lines.len() > rows.max(2) - 1 {
        let hidden = lines.len() - (rows.max(2) - 2);
        lines.truncate(rows.max(2) - 2);
        lines.push(Line { text: format!("... {hidden} more lines"), colour: "" });
    }
    let mut screen = "\x1b[H".to_owned();
    for line in lines {
        let text: String = line.text.chars().take(columns).collect();
        let _ = write!(screen, "{}{text}{NORMAL}\x1b[K\r\n", line.colour);
    }
    screen + "\x1b[J"
}

fn lines(now: &Document, before: Option<&Document>) -> Vec<Line> {
    let mut lines = Lines(Vec::new());
    let seconds = before.map_or(1.0, |before| now.now - before.now);
    // Without a document before, there is no rate.
    let rate = |value: fn(&Document) -> f64| match before {
        Some(before) => number((value(now) - value(before)).max(0.0) / seconds) + "/s",
        None => "-/s".to_owned(),
    };
    head(&mut lines, now);
    lines.add(
        "",
        format!(
            "calls {} ({} under way, {} failed)  events {} ({} from etcd)  reads from the cache {}  cpu {}  memory {}",
            rate(|document| document.clients.calls as f64),
            now.clients.calls_under_way,
            rate(|document| document.clients.calls_failed as f64),
            rate(|document| document.watches.events_delivered as f64),
            rate(|document| document.watches.events_received as f64),
            rate(|document| document.cache.hits as f64),
            before.map_or("-".to_owned(), |before| {
                format!("{:.1}%", 100.0 * (now.process.cpu_seconds - before.process.cpu_seconds).max(0.0) / seconds)
            }),
            of(now.process.resident_bytes, now.process.memory_limit_bytes.unwrap_or(0)),
        ),
    );
    endpoints(&mut lines, now, before, seconds);
    counts(&mut lines, now);
    tenants_and_certificates(&mut lines, now);
    refusals(&mut lines, now);
    lines.0
}

struct Lines(Vec<Line>);

impl Lines {
    fn add(&mut self, colour: &'static str, text: String) {
        self.0.push(Line { text: clean(&text), colour });
    }

    fn head(&mut self, text: String) {
        self.0.push(Line { text: String::new(), colour: "" });
        self.add(BOLD, text);
    }
}

fn head(lines: &mut Lines, now: &Document) {
    let (state, colour) = match (now.draining, now.ready) {
        (true, _) => ("draining", YELLOW),
        (false, true) => ("ready", GREEN),
        (false, false) => ("NOT READY", RED),
    };
    let up = span(now.now - now.started);
    let text = format!("etcd-proxy {}  {}  {}  up {up}  {state}", now.version, now.name, now.listen_address);
    lines.add(colour, text);
    for why in &now.not_ready_because {
        lines.add(RED, format!("  {why}"));
    }
}

fn endpoints(lines: &mut Lines, now: &Document, before: Option<&Document>, seconds: f64) {
    lines.head(format!(
        "{:<40} {:<12} {:>9} {:>10} {:>8} {:>9}",
        "ENDPOINT", "STATE", "CALLS", "ANSWER", "ERRORS", "NO ANSWER"
    ));
    for one in &now.endpoints {
        let old = before.and_then(|before| before.endpoints.iter().find(|old| old.address == one.address));
        let made = old.map(|old| one.answered.saturating_sub(old.answered));
        let calls = made.map_or(one.answered.to_string(), |made| number(made as f64 / seconds) + "/s");
        let (count, waited) = match (old, made) {
            (Some(old), Some(made)) => (made, one.seconds - old.seconds),
            _ => (one.answered, one.seconds),
        };
        let answer = if count > 0 { format!("{:.2} ms", 1000.0 * waited / count as f64) } else { "-".to_owned() };
        let colour = if one.state == "serving" { "" } else { RED };
        let (address, state) = (&one.address, &one.state);
        lines.add(
            colour,
            format!("{address:<40} {state:<12} {calls:>9} {answer:>10} {:>8} {:>9}", one.errors, one.failures),
        );
    }
}

fn counts(lines: &mut Lines, now: &Document) {
    let (watches, cache, leases) = (&now.watches, &now.cache, &now.leases);
    lines.head("WATCHES, CACHE, LEASES".to_owned());
    lines.add(
        if watches.own > 0 { YELLOW } else { "" },
        format!(
            "watches       {} of clients, {} shared on etcd, {} of their own to catch up, {} in a wider one, {} fallen, {} held",
            watches.clients,
            watches.shared,
            watches.own,
            watches.contained,
            watches.falls,
            of(bytes_of(watches.log_bytes), bytes_of(watches.log_max_bytes)),
        ),
    );
    lines.add(
        "",
        match cache.enabled {
            true => format!(
                "cache         {} ranges, {} keys, {} answered, {} sent to etcd, {} merged, {}",
                cache.ranges,
                cache.keys,
                cache.hits,
                cache.misses,
                cache.merged,
                of(bytes_of(cache.bytes), bytes_of(cache.max_bytes)),
            ),
            false => "cache         off".to_owned(),
        },
    );
    let (kept, streams, received, sent) = (leases.kept_alive, leases.streams, leases.received, leases.sent);
    lines.add(
        "",
        format!("leases        {kept} kept alive, {streams} streams, {received} renewals from clients, {sent} to etcd"),
    );
    let (connections, failed) = (now.clients.connections, now.clients.handshakes_failed);
    lines.add("", format!("connections   {connections} open, {failed} ended in the handshake"));
    let registration = &now.registration;
    let (colour, text) = match (registration.wanted, registration.held) {
        (0, _) => ("", "not wanted".to_owned()),
        (wanted, held) if held < wanted => (RED, format!("LOST, {} proxies known", registration.known)),
        _ => ("", format!("held, {} proxies known", registration.known)),
    };
    lines.add(colour, format!("registration  {text}"));
}

fn tenants_and_certificates(lines: &mut Lines, now: &Document) {
    lines.head(format!("{:<28} {:<12} {:<8} {:>9}", "TENANT", "PROFILE", "PREFIX", "REFUSED"));
    for one in &now.tenants {
        let prefix = if one.has_namespace { "yes" } else { "no" };
        lines.add("", format!("{:<28} {:<12} {prefix:<8} {:>9}", one.name, one.profile, one.refused));
    }
    if now.certificates.is_empty() {
        return;
    }
    lines.head(format!("{:<9} {:<6} {:>10}  {}", "TOWARDS", "KIND", "LEFT", "FILE"));
    for one in &now.certificates {
        let left = one
            .days_left
            .map_or("-".to_owned(), |days| if days < 0.0 { "RAN OUT".to_owned() } else { span(days * 86_400.0) });
        let colour = match (&one.error, one.days_left) {
            (Some(_), _) => RED,
            (None, Some(days)) if days < 0.0 => RED,
            (None, Some(days)) if days < WARN_DAYS => YELLOW,
            _ => "",
        };
        let error = one.error.as_ref().map(|error| format!(" ({error})")).unwrap_or_default();
        lines.add(colour, format!("{:<9} {:<6} {left:>10}  {}{error}", one.side, one.role, one.file));
    }
}

fn refusals(lines: &mut Lines, now: &Document) {
    if now.refusals.is_empty() {
        return;
    }
    lines.head(format!("{:<10} {:<28} {:<19} {:>6}  {}", "REFUSED", "TENANT", "REASON", "TIMES", "WHAT"));
    for one in &now.refusals {
        let ago = span(now.now - one.at);
        lines.add("", format!("{ago:<10} {:<28} {:<19} {:>6}  {}", one.tenant, one.reason, one.count, one.what));
    }
}

/// A line that does nothing to a terminal but be read.
fn clean(text: &str) -> String {
    text.chars().map(|one| if one.is_control() { ' ' } else { one }).collect()
}

fn number(value: f64) -> String {
    if value > 0.0 && value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

fn span(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn bytes_of(gauge: i64) -> u64 {
    u64::try_from(gauge).unwrap_or(0)
}

/// So many bytes, of so many where there is a bound.
fn of(used: u64, most: u64) -> String {
    if most > 0 { format!("{} of {}", bytes(used), bytes(most)) } else { bytes(used) }
}

fn bytes(value: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB"];
    let (mut amount, mut unit) = (value as f64, 0);
    while amount >= 1024.0 && unit + 1 < units.len() {
        amount /= 1024.0;
        unit += 1;
    }
    if unit > 0 && amount < 100.0 {
        format!("{amount:.1} {}", units[unit])
    } else {
        format!("{amount:.0} {}", units[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::status::{Endpoint, Refusal};

    fn document(now: f64, calls: u64) -> Document {
        let mut document = Document { now, started: 1.0, ready: true, ..Document::default() };
        document.clients.calls = calls;
        document.endpoints = vec![Endpoint {
            address: "http://a:1".into(),
            state: "serving".into(),
            answered: calls,
            seconds: 1.0,
            ..Endpoint::default()
        }];
        document
    }

    #[test]
    fn rates_are_those_between_two_looks_at_one_process() {
        let (before, now) = (document(10.0, 100), document(12.0, 300));
        assert!(live(&Ok(&now), &before, 50, 200).contains("calls 100/s "));
        let restarted = Document { started: 11.0, ..now.clone() };
        assert!(live(&Ok(&restarted), &before, 50, 200).contains("calls -/s "));
        assert!(plain(&now).contains("http://a:1") && !plain(&now).contains('\x1b'));
    }

    #[test]
    fn a_screen_has_no_more_lines_and_columns_than_fit() {
        let mut now = document(12.0, 1);
        now.refusals = (0..50).map(|number| Refusal { what: format!("{number}"), ..Refusal::default() }).collect();
        let screen = live(&Ok(&now), &now, 12, 30);
        assert_eq!(screen.matches("\r\n").count(), 11, "{screen}");
        assert!(screen.contains("more lines"), "{screen}");
        let longest =
            screen.split("\r\n").map(|line| line.split(NORMAL).next().unwrap_or_default().chars().count()).max();
        assert!(longest <= Some(30 + GREEN.len() + "\x1b[H".len()), "{longest:?}");
    }

    #[test]
    fn what_others_wrote_cannot_steer_the_terminal() {
        let mut now = document(12.0, 1);
        now.refusals = vec![Refusal { what: "\x1b[2J\u{9b}2J\r\n\x07x".into(), ..Refusal::default() }];
        let text = plain(&now);
        assert!(text.chars().all(|one| one == '\n' || !one.is_control()), "{text:?}");
    }

    #[test]
    fn amounts_are_short() {
        assert_eq!([bytes(5), bytes(2048), bytes(200 << 20)], ["5 B", "2.0 KiB", "200 MiB"]);
        assert_eq!([span(59.0), span(7200.0), span(200_000.0)], ["59 s", "2 h", "2 days"]);
        assert_eq!([number(0.0), number(1.25), number(12.6)], ["0", "1.2", "13"]);
    }
}
