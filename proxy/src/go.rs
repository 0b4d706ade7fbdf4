//! Values as Go spells them: etcd's flags, logs and error texts are written in these spellings, and scripts match on them.

use std::time::Duration;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// The bits of the integer that a text must fit into; Go's `int` and `uint` have 64 on every platform that etcd supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    B32,
    B64,
}

/// `strconv.ParseBool`.
pub fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(syntax_error("ParseBool", text)),
    }
}

/// `strconv.ParseInt(text, 0, 64)`: a sign, a base prefix and underscores are allowed.
pub fn parse_int(text: &str) -> Result<i64, String> {
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let magnitude = match magnitude(digits) {
        Ok(magnitude) => magnitude,
        Err(Malformed::Syntax) => return Err(syntax_error("ParseInt", text)),
        Err(Malformed::Range) => return Err(range_error("ParseInt", text)),
    };
    let signed = if negative { 0i64.checked_sub_unsigned(magnitude) } else { i64::try_from(magnitude).ok() };
    signed.ok_or_else(|| range_error("ParseInt", text))
}

/// `strconv.ParseUint(text, 0, bits)`: no sign, a base prefix and underscores are allowed.
pub fn parse_uint(text: &str, bits: Bits) -> Result<u64, String> {
    match magnitude(text) {
        Ok(value) if bits == Bits::B32 && value > u64::from(u32::MAX) => Err(range_error("ParseUint", text)),
        Ok(value) => Ok(value),
        Err(Malformed::Syntax) => Err(syntax_error("ParseUint", text)),
        Err(Malformed::Range) => Err(range_error("ParseUint", text)),
    }
}

enum Malformed {
    Syntax,
    Range,
}

fn magnitude(text: &str) -> Result<u64, Malformed> {
    let lower = text.to_ascii_lowercase();
    let (base, digits) = if let Some(rest) = lower.strip_prefix("0x") {
        (16, rest)
    } else if let Some(rest) = lower.strip_prefix("0b") {
        (2, rest)
    } else if let Some(rest) = lower.strip_prefix("0o") {
        (8, rest)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (8, &lower[1..])
    } else {
        (10, lower.as_str())
    };
    // An underscore may stand between digits, or between the prefix and the first digit, and nowhere else.
    let prefixed = base != 10;
    if digits.is_empty() || digits.ends_with('_') || digits.contains("__") || (!prefixed && digits.starts_with('_')) {
        return Err(Malformed::Syntax);
    }
    let mut value: u64 = 0;
    let mut overflowed = false;
    for byte in digits.bytes().filter(|byte| *byte != b'_') {
        let digit = char::from(byte).to_digit(base).ok_or(Malformed::Syntax)?;
        match value.checked_mul(u64::from(base)).and_then(|value| value.checked_add(u64::from(digit))) {
            Some(next) => value = next,
            None => overflowed = true,
        }
    }
    if overflowed { Err(Malformed::Range) } else { Ok(value) }
}

fn syntax_error(function: &str, text: &str) -> String {
    format!("strconv.{function}: parsing {}: invalid syntax", quote(text))
}

fn range_error(function: &str, text: &str) -> String {
    format!("strconv.{function}: parsing {}: value out of range", quote(text))
}

/// `time.ParseDuration`, in nanoseconds, for Go's durations may be negative.
pub fn parse_duration(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {}", quote(text));
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    // One more than the greatest positive duration: the magnitude of the smallest negative one.
    const LIMIT: u64 = 1 << 63;
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let whole_length = digits_length(rest);
        let whole: u64 = match &rest[..whole_length] {
            "" => 0,
            digits => digits.parse().ok().filter(|whole| *whole <= LIMIT).ok_or_else(invalid)?,
        };
        rest = &rest[whole_length..];
        let mut fraction = "";
        let mut dotted = false;
        if let Some(after) = rest.strip_prefix('.') {
            dotted = true;
            let length = digits_length(after);
            (fraction, rest) = after.split_at(length);
        }
        if whole_length == 0 && (!dotted || fraction.is_empty()) {
            return Err(invalid());
        }
        let unit_length = rest.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(rest.len());
        let (unit_name, after) = rest.split_at(unit_length);
        rest = after;
        if unit_name.is_empty() {
            return Err(format!("time: missing unit in duration {}", quote(text)));
        }
        let unit = unit_nanos(unit_name)
            .ok_or_else(|| format!("time: unknown unit {} in duration {}", quote(unit_name), quote(text)))?;
        let whole_nanos = whole.checked_mul(unit).filter(|nanos| *nanos <= LIMIT).ok_or_else(invalid)?;
        total = total
            .checked_add(whole_nanos)
            .and_then(|total| total.checked_add(fraction_nanos(fraction, unit)))
            .filter(|total| *total <= LIMIT)
            .ok_or_else(invalid)?;
    }
    let signed = if negative { 0i64.checked_sub_unsigned(total) } else { i64::try_from(total).ok() };
    signed.ok_or_else(invalid)
}

fn digits_length(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

fn fraction_nanos(fraction: &str, unit: u64) -> u64 {
    // Digits beyond these are worth less than a nanosecond even of an hour.
    const DIGITS_THAT_COUNT: usize = 15;
    let mut value: u128 = 0;
    let mut scale: u128 = 1;
    for digit in fraction.bytes().take(DIGITS_THAT_COUNT) {
        value = value * 10 + u128::from(digit - b'0');
        scale *= 10;
    }
    u64::try_from(value * u128::from(unit) / scale).unwrap_or(u64::MAX)
}

fn unit_nanos(name: &str) -> Option<u64> {
    Some(match name {
        "ns" => 1,
        // The micro sign, and the Greek letter that looks like it.
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => NANOS_PER_SECOND,
        "m" => 60 * NANOS_PER_SECOND,
        "h" => 3_600 * NANOS_PER_SECOND,
        _ => return None,
    })
}

/// `time.Duration.String`: `2h0m0s`, `1.5s`, `100ms`, `0s`.
pub fn format_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let second = u128::from(NANOS_PER_SECOND);
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => format!("{}\u{b5}s", decimal(nanos, 1_000)),
        1_000_000..1_000_000_000 => format!("{}ms", decimal(nanos, 1_000_000)),
        _ => {
            let minutes = nanos / (60 * second);
            let seconds = decimal(nanos % (60 * second), second);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, minutes) => format!("{minutes}m{seconds}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

fn decimal(value: u128, unit: u128) -> String {
    let (whole, part) = (value / unit, value % unit);
    if part == 0 {
        return whole.to_string();
    }
    let width = usize::try_from(unit.ilog10()).expect("the logarithm of a u128 is below 39");
    format!("{whole}.{}", format!("{part:0width$}").trim_end_matches('0'))
}

/// `strconv.Quote`, the `%q` of Go's error texts.
pub fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{b}' => quoted.push_str("\\v"),
            c if u32::from(c) < 0x80 && c.is_control() => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                quoted.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// The fields of one pflag `StringSlice` value: comma separated, with quotes as `encoding/csv` reads them.
///
/// Unlike pflag, which drops what follows the first line without a word, further lines add further fields.
pub fn read_csv(text: &str) -> Result<Vec<String>, String> {
    let mut fields = Vec::new();
    let mut rest = text;
    let mut line = 1;
    let mut line_start = 0;
    while !rest.is_empty() {
        let offset = text.len() - rest.len();
        // Between records an empty line is no field.
        if let Some(after) = rest.strip_prefix('\n').or_else(|| rest.strip_prefix("\r\n"))
            && offset == line_start
        {
            line += 1;
            line_start = text.len() - after.len();
            rest = after;
            continue;
        }
        let (field, after) = if let Some(quoted) = rest.strip_prefix('"') {
            read_quoted(quoted).map_err(|at| {
                let at = offset + 1 + at;
                let lines_before = text[..at].matches('\n').count() + 1;
                let column = at - text[..at].rfind('\n').map_or(0, |newline| newline + 1) + 1;
                format!("parse error on line {lines_before}, column {column}: extraneous or missing \" in quoted-field")
            })?
        } else {
            let end = rest.find([',', '\n']).unwrap_or(rest.len());
            let field =
                rest[..end].strip_suffix('\r').filter(|_| rest[end..].starts_with('\n')).unwrap_or(&rest[..end]);
            if let Some(at) = field.find('"') {
                let column = offset - line_start + at + 1;
                return Err(format!("parse error on line {line}, column {column}: bare \" in non-quoted-field"));
            }
            (field.to_owned(), &rest[end..])
        };
        fields.push(field);
        match after.as_bytes().first() {
            Some(b',') => {
                rest = &after[1..];
                if rest.is_empty() || rest.starts_with('\n') || rest.starts_with("\r\n") {
                    fields.push(String::new());
                    rest = rest.strip_prefix("\r\n").or_else(|| rest.strip_prefix('\n')).unwrap_or(rest);
                    line_start = text.len() - rest.len();
                }
            }
            _ => {
                rest = after.strip_prefix("\r\n").or_else(|| after.strip_prefix('\n')).unwrap_or(after);
                line_start = text.len() - rest.len();
            }
        }
        line = text[..text.len() - rest.len()].matches('\n').count() + 1;
    }
    Ok(fields)
}

/// The field after its opening quote, and what follows it; or where the quoting went wrong, from the opening quote on.
fn read_quoted(text: &str) -> Result<(String, &str), usize> {
    let mut field = String::new();
    let mut position = 0;
    loop {
        let Some(end) = text[position..].find('"') else {
            return Err(text.len());
        };
        field.push_str(&text[position..position + end]);
        let quote_at = position + end;
        let after = &text[quote_at + 1..];
        if after.starts_with('"') {
            field.push('"');
            position = quote_at + 2;
        } else if after.is_empty() || after.starts_with([',', '\n']) || after.starts_with("\r\n") {
            return Ok((field, after));
        } else {
            return Err(quote_at);
        }
    }
}

/// One text that `read_csv` reads back as these fields.
pub fn write_csv(fields: &[String]) -> String {
    fields.iter().map(|field| format!("\"{}\"", field.replace('"', "\"\""))).collect::<Vec<_>>().join(",")
}

/// An error of the system as Go words it: `no such file or directory`.
pub fn io_error(error: &std::io::Error) -> String {
    let text = error.to_string();
    let words = match error.raw_os_error() {
        Some(_) => text.rsplit_once(" (os error").map_or(text.as_str(), |(words, _)| words),
        None => &text,
    };
    let mut letters = words.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

#[cfg(test)]
mod tests;
