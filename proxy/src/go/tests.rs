//! Go's own answers to the same texts.

use super::*;

#[test]
fn errors_of_the_system_are_worded_as_in_go() {
    let error = |number| io_error(&std::io::Error::from_raw_os_error(number));
    assert_eq!(error(libc::ENOENT), "no such file or directory");
    assert_eq!(error(libc::EADDRINUSE), "address already in use");
    assert_eq!(error(libc::EADDRNOTAVAIL), "cannot assign requested address");
    assert_eq!(io_error(&std::io::Error::other("its own words")), "its own words");
}
use proptest::prelude::*;

#[test]
fn booleans_are_read_as_go_reads_them() {
    for text in ["1", "t", "T", "true", "TRUE", "True"] {
        assert_eq!(parse_bool(text), Ok(true), "{text}");
    }
    for text in ["0", "f", "F", "false", "FALSE", "False"] {
        assert_eq!(parse_bool(text), Ok(false), "{text}");
    }
    assert_eq!(parse_bool("yes"), Err("strconv.ParseBool: parsing \"yes\": invalid syntax".into()));
    assert_eq!(parse_bool(""), Err("strconv.ParseBool: parsing \"\": invalid syntax".into()));
}

#[test]
fn integers_are_read_as_go_reads_them() {
    let good = [
        ("0", 0),
        ("-0", 0),
        ("+7", 7),
        ("0x1F", 31),
        ("0b101", 5),
        ("0o17", 15),
        ("017", 15),
        ("1_000", 1000),
        ("0x_f", 15),
        ("0_7", 7),
        ("9223372036854775807", i64::MAX),
        ("-9223372036854775808", i64::MIN),
    ];
    for (text, value) in good {
        assert_eq!(parse_int(text), Ok(value), "{text}");
    }
    for text in ["", "x", "-", "1.5", "08", "_1", "1_", "1__0", "0x", " 1", "1 ", "+-1", "\u{661}"] {
        let expected = format!("strconv.ParseInt: parsing {}: invalid syntax", quote(text));
        assert_eq!(parse_int(text), Err(expected), "{text}");
    }
    for text in ["9223372036854775808", "-9223372036854775809", "99999999999999999999"] {
        let expected = format!("strconv.ParseInt: parsing {}: value out of range", quote(text));
        assert_eq!(parse_int(text), Err(expected), "{text}");
    }
    assert_eq!(parse_uint("4294967295", Bits::B32), Ok(u64::from(u32::MAX)));
    assert_eq!(
        parse_uint("4294967296", Bits::B32),
        Err("strconv.ParseUint: parsing \"4294967296\": value out of range".into())
    );
    assert_eq!(parse_uint("-1", Bits::B64), Err("strconv.ParseUint: parsing \"-1\": invalid syntax".into()));
    assert_eq!(parse_uint("+1", Bits::B64), Err("strconv.ParseUint: parsing \"+1\": invalid syntax".into()));
}

#[test]
fn durations_are_read_as_go_reads_them() {
    let second = 1_000_000_000;
    let good = [
        ("0", 0),
        ("-0", 0),
        ("5s", 5 * second),
        ("1h2m3.5s", 3723 * second + second / 2),
        ("100ms", second / 10),
        (".5s", second / 2),
        ("1.s", second),
        ("-1.5h", -5400 * second),
        ("1us", 1000),
        ("1\u{b5}s", 1000),
        ("1\u{3bc}s", 1000),
        ("3ns", 3),
        ("0.0000000005s", 0),
        ("9223372036854775807ns", i64::MAX),
        ("-9223372036854775808ns", i64::MIN),
    ];
    for (text, nanos) in good {
        assert_eq!(parse_duration(text), Ok(nanos), "{text}");
    }
    let bad = [
        ("", "time: invalid duration \"\""),
        ("-", "time: invalid duration \"-\""),
        (".", "time: invalid duration \".\""),
        (".s", "time: invalid duration \".s\""),
        ("s", "time: invalid duration \"s\""),
        ("5", "time: missing unit in duration \"5\""),
        ("1h5", "time: missing unit in duration \"1h5\""),
        ("5d", "time: unknown unit \"d\" in duration \"5d\""),
        ("5 s", "time: unknown unit \" s\" in duration \"5 s\""),
        ("9223372036854775808ns", "time: invalid duration \"9223372036854775808ns\""),
        ("99999999999999999999s", "time: invalid duration \"99999999999999999999s\""),
        ("3000000h", "time: invalid duration \"3000000h\""),
    ];
    for (text, message) in bad {
        assert_eq!(parse_duration(text), Err(message.into()), "{text}");
    }
}

#[test]
fn durations_are_written_as_go_writes_them() {
    let written = [
        (0, "0s"),
        (1, "1ns"),
        (1_500, "1.5\u{b5}s"),
        (2_000_000, "2ms"),
        (1_500_000_000, "1.5s"),
        (20_000_000_000, "20s"),
        (60_000_000_000, "1m0s"),
        (7_200_000_000_000, "2h0m0s"),
        (3_723_500_000_000, "1h2m3.5s"),
    ];
    for (nanos, text) in written {
        assert_eq!(format_duration(Duration::from_nanos(nanos)), text);
    }
}

#[test]
fn texts_are_quoted_as_go_quotes_them() {
    assert_eq!(quote("a\"b\\c\n\u{0}\u{85}é"), "\"a\\\"b\\\\c\\n\\x00\\u0085é\"");
}

#[test]
fn slices_are_read_as_pflag_reads_them() {
    let good: [(&str, &[&str]); 10] = [
        ("", &[]),
        ("a", &["a"]),
        ("a,b", &["a", "b"]),
        (",", &["", ""]),
        ("a,", &["a", ""]),
        ("\"\"", &[""]),
        ("\"a,b\",c", &["a,b", "c"]),
        ("\"a\"\"b\"", &["a\"b"]),
        ("a, b", &["a", " b"]),
        ("a,b\n\nc\r\n", &["a", "b", "c"]),
    ];
    for (text, fields) in good {
        assert_eq!(read_csv(text).unwrap(), fields, "{text:?}");
    }
    let bad = [
        ("a\"b", "parse error on line 1, column 2: bare \" in non-quoted-field"),
        ("\"a", "parse error on line 1, column 3: extraneous or missing \" in quoted-field"),
        ("\"a\"b", "parse error on line 1, column 3: extraneous or missing \" in quoted-field"),
        ("x,\"a\"b", "parse error on line 1, column 5: extraneous or missing \" in quoted-field"),
        ("x\ny,a\"", "parse error on line 2, column 4: bare \" in non-quoted-field"),
    ];
    for (text, message) in bad {
        assert_eq!(read_csv(text), Err(message.into()), "{text:?}");
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(fields in prop::collection::vec("[a\",\n\r ]{0,4}", 0..4), nanos in 0u64..i64::MAX as u64) {
        prop_assert_eq!(read_csv(&write_csv(&fields)), Ok(fields));
        let text = format_duration(Duration::from_nanos(nanos));
        prop_assert_eq!(parse_duration(&text), Ok(i64::try_from(nanos).unwrap()), "{}", text);
    }

    #[test]
    fn no_text_makes_a_reader_panic(text in "[-+0-9._xbohmnusµ\",\n\r ]{0,12}|\\PC{0,8}") {
        let _ = (parse_bool(&text), parse_int(&text), parse_uint(&text, Bits::B32), parse_duration(&text));
        let _ = (read_csv(&text), quote(&text));
    }
}
