//! A profile as `go tool pprof` reads it: the messages of its `profile.proto` that we fill, and how.
//!
//! The profiler could write it too, but brings a second protobuf library for it.

use std::collections::HashMap;

use pprof::{Report, Symbol};
use prost::Message;

#[derive(Clone, PartialEq, Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    time_nanos: i64,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    period: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    r#type: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    label: Vec<Label>,
}

#[derive(Clone, PartialEq, Message)]
struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    str: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<Line>,
}

#[derive(Clone, PartialEq, Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function_id: u64,
    #[prost(int64, tag = "2")]
    line: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "3")]
    system_name: i64,
    #[prost(int64, tag = "4")]
    filename: i64,
}

/// The report in protobuf.
pub fn encode(report: &Report) -> Vec<u8> {
    let timing = &report.timing;
    let period = 1_000_000_000 / i64::from(timing.frequency.max(1));
    let mut tables = Tables::new();
    let samples = ValueType { r#type: tables.text("samples"), unit: tables.text("count") };
    let cpu = ValueType { r#type: tables.text("cpu"), unit: tables.text("nanoseconds") };
    let thread = tables.text("thread");
    let mut sample = Vec::with_capacity(report.data.len());
    for (frames, count) in &report.data {
        let count = i64::try_from(*count).unwrap_or(i64::MAX);
        let label = Label { key: thread, str: tables.text(&frames.thread_name_or_id()) };
        let location_id = interrupted(&frames.frames).iter().map(|symbols| tables.location(symbols)).collect();
        sample.push(Sample { location_id, value: vec![count, count.saturating_mul(period)], label: vec![label] });
    }
    let since_1970 = timing.start_time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let nanos = |duration: std::time::Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
    let profile = Profile {
        sample_type: vec![samples, cpu.clone()],
        sample,
        location: tables.locations,
        function: tables.functions,
        string_table: tables.texts,
        time_nanos: nanos(since_1970),
        duration_nanos: nanos(timing.duration),
        period_type: Some(cpu),
        period,
    };
    profile.encode_to_vec()
}

/// Without the profiler's own innermost frames. It takes its signal handler out by itself, but not what that calls.
fn interrupted(frames: &[Vec<Symbol>]) -> &[Vec<Symbol>] {
    let is_own = |symbols: &Vec<Symbol>| symbols.iter().any(|symbol| symbol.name().contains("backtrace::"));
    let own = frames.iter().take_while(|symbols| is_own(symbols)).count();
    &frames[own..]
}

/// What samples refer to by number, each once. Numbers begin with one; the text of number zero is empty.
struct Tables {
    texts: Vec<String>,
    text_numbers: HashMap<String, i64>,
    functions: Vec<Function>,
    function_numbers: HashMap<(i64, i64), u64>,
    locations: Vec<Location>,
    location_numbers: HashMap<Vec<(u64, i64)>, u64>,
}

impl Tables {
    fn new() -> Self {
        Self {
            texts: vec![String::new()],
            text_numbers: HashMap::from([(String::new(), 0)]),
            functions: Vec::new(),
            function_numbers: HashMap::new(),
            locations: Vec::new(),
            location_numbers: HashMap::new(),
        }
    }

    fn text(&mut self, text: &str) -> i64 {
        if let Some(number) = self.text_numbers.get(text) {
            return *number;
        }
        let number = i64::try_from(self.texts.len()).unwrap_or(i64::MAX);
        self.texts.push(text.to_owned());
        self.text_numbers.insert(text.to_owned(), number);
        number
    }

    fn function(&mut self, symbol: &Symbol) -> u64 {
        let (name, filename) = (self.text(&symbol.name()), self.text(&symbol.filename()));
        let system_name = self.text(&symbol.sys_name());
        let next = self.functions.len() as u64 + 1;
        let id = *self.function_numbers.entry((system_name, filename)).or_insert(next);
        if id == next {
            self.functions.push(Function { id, name, system_name, filename });
        }
        id
    }

    /// A place in the code with what was inlined there, innermost first.
    fn location(&mut self, symbols: &[Symbol]) -> u64 {
        let lines: Vec<(u64, i64)> =
            symbols.iter().map(|symbol| (self.function(symbol), i64::from(symbol.lineno()))).collect();
        let next = self.locations.len() as u64 + 1;
        let id = *self.location_numbers.entry(lines.clone()).or_insert(next);
        if id == next {
            let line = lines.into_iter().map(|(function_id, line)| Line { function_id, line }).collect();
            self.locations.push(Location { id, line });
        }
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbol(name: &str, line: u32) -> Symbol {
        Symbol { name: Some(name.into()), addr: None, lineno: Some(line), filename: Some("a.rs".into()) }
    }

    #[test]
    fn the_profilers_own_frames_are_left_out() {
        let frames = |names: &[&str]| -> Vec<Vec<Symbol>> { names.iter().map(|name| vec![symbol(name, 1)]).collect() };
        let names = |frames: &[Vec<Symbol>]| frames.iter().map(|symbols| symbols[0].name()).collect::<Vec<_>>();
        let trace = "<pprof::backtrace::backtrace_rs::Trace as pprof::backtrace::Trace>::trace";
        for own in [&["backtrace::backtrace::trace_unsynchronized", trace][..], &[trace], &[]] {
            let all = frames(&[own, &["leaf", "main"]].concat());
            assert_eq!(names(interrupted(&all)), ["leaf", "main"], "{own:?}");
        }
    }

    #[test]
    fn functions_and_places_are_written_once() {
        let mut tables = Tables::new();
        let inlined = [symbol("inner", 1), symbol("outer", 9)];
        assert_eq!(tables.location(&inlined), 1);
        assert_eq!(tables.location(&[symbol("outer", 9)]), 2);
        assert_eq!(tables.location(&[symbol("outer", 10)]), 3);
        assert_eq!(tables.location(&inlined), 1);
        assert_eq!((tables.functions.len(), tables.locations.len()), (2, 3));
        assert_eq!(tables.locations[0].line[0], Line { function_id: 1, line: 1 });
        assert_eq!(tables.texts, ["", "inner", "a.rs", "outer"]);
    }
}
