//! Whole numbers as protojson takes them: also `1.0`, `5e3` and `10e-1`, as long as nothing is left behind the point.

/// A number from `least` to `most`.
pub fn signed(text: &str, least: i64, most: i64) -> Option<i64> {
    let number: i64 = whole(text)?.parse().ok()?;
    (least..=most).contains(&number).then_some(number)
}

/// A number from zero to `most`.
pub fn unsigned(text: &str, most: u64) -> Option<u64> {
    // Go's ParseUint takes no sign, not even that of "-0".
    let number: u64 = whole(text)?.parse().ok()?;
    (number <= most).then_some(number)
}

/// The digits of a whole number without its exponent.
fn whole(text: &str) -> Option<String> {
    let (negative, rest) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (mantissa, exponent) = rest.split_once(['e', 'E']).map_or((rest, None), |(one, two)| (one, Some(two)));
    let (integer, fraction) = mantissa.split_once('.').map_or((mantissa, None), |(one, two)| (one, Some(two)));
    let only_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !only_digits(integer) || (integer.len() > 1 && integer.starts_with('0')) || !fraction.is_none_or(only_digits) {
        return None;
    }
    let exponent: i32 = match exponent {
        Some(text) if only_digits(text.strip_prefix(['+', '-']).unwrap_or(text)) => text.parse().ok()?,
        Some(_) => return None,
        None => 0,
    };
    let integer = if integer == "0" { "" } else { integer };
    let fraction = fraction.unwrap_or_default().trim_end_matches('0');
    let digits = match usize::try_from(exponent) {
        _ if integer.is_empty() && fraction.is_empty() => return Some("0".to_owned()),
        Ok(shift) if fraction.len() > shift || integer.len() + shift > MAX_DIGITS => return None,
        Ok(shift) => format!("{integer}{fraction}{}", "0".repeat(shift - fraction.len())),
        Err(_) if !fraction.is_empty() => return None,
        Err(_) => {
            let shift = usize::try_from(exponent.unsigned_abs()).ok()?;
            let kept = integer.len().checked_sub(shift)?;
            let (kept, dropped) = integer.split_at(kept);
            if dropped.bytes().any(|digit| digit != b'0') {
                return None;
            }
            kept.to_owned()
        }
    };
    Some(if negative { format!("-{digits}") } else { digits })
}

/// What the largest number of 64 bits has.
const MAX_DIGITS: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_are_taken_however_they_are_spelled() {
        for (text, expected) in [
            ("0", Some(0)),
            ("-0", Some(0)),
            ("0.0e9", Some(0)),
            ("12", Some(12)),
            ("-12", Some(-12)),
            ("1.0", Some(1)),
            ("1.5", None),
            ("1.5e1", Some(15)),
            ("0.5e1", Some(5)),
            ("10e-1", Some(1)),
            ("15e-1", None),
            ("5E+3", Some(5000)),
            ("1e19", None),
            ("1e999999999", None),
            ("1e99999999999", None),
            ("1e-999999999", None),
            ("9223372036854775807", Some(i64::MAX)),
            ("9223372036854775808", None),
            ("-9223372036854775808", Some(i64::MIN)),
            ("01", None),
            ("", None),
            ("-", None),
            ("1.", None),
            (".5", None),
            ("1e", None),
            ("1e+", None),
            ("1e+-1", None),
            ("+1", None),
            (" 1", None),
            ("0x1", None),
            ("NaN", None),
        ] {
            assert_eq!(signed(text, i64::MIN, i64::MAX), expected, "{text}");
        }
        assert_eq!(signed("2147483648", i64::from(i32::MIN), i64::from(i32::MAX)), None);
        assert_eq!(unsigned("18446744073709551615", u64::MAX), Some(u64::MAX));
        assert_eq!(unsigned("4294967296", u64::from(u32::MAX)), None);
        assert_eq!(unsigned("-1", u64::MAX), None);
    }
}
