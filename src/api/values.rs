//! Values as requests spell them (spec/rest-api.md §18): booleans, sizes, durations.

use std::time::Duration;

use serde_json::Value;

/// A JSON boolean, or one of `on true yes 1` / `off false no 0` in any case.
#[must_use]
pub fn parse_bool(value: &Value) -> Option<bool> {
    let text = match value {
        Value::Bool(flag) => return Some(*flag),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.trim().to_lowercase(),
        _ => return None,
    };
    match text.as_str() {
        "on" | "true" | "yes" | "1" => Some(true),
        "off" | "false" | "no" | "0" => Some(false),
        _ => None,
    }
}

/// Bytes: a bare number, or one with `B kB MB GB TB`.
#[must_use]
pub fn parse_bytes(text: &str) -> Option<i64> {
    let (number, unit) = parse_number(text)?;
    let factor: f64 = match unit {
        "" | "B" => 1.0,
        "kB" => 1024.0,
        "MB" => 1024.0 * 1024.0,
        "GB" => 1024.0 * 1024.0 * 1024.0,
        "TB" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    to_integer(number * factor)
}

/// A positive duration: a JSON number of seconds, or text with `us ms s min h d`. Rounded to whole seconds, as upstream does.
#[must_use]
pub fn parse_seconds(value: &Value) -> Option<Duration> {
    let seconds = match value {
        Value::Number(number) => to_integer(number.as_f64()?)?,
        Value::String(text) => {
            let (number, unit) = parse_number(text)?;
            let factor = match unit {
                "us" => 1e-6,
                "ms" => 1e-3,
                "" | "s" => 1.0,
                "min" => 60.0,
                "h" => 3600.0,
                "d" => 86400.0,
                _ => return None,
            };
            to_integer(number * factor)?
        }
        _ => return None,
    };
    u64::try_from(seconds)
        .ok()
        .filter(|seconds| *seconds > 0)
        .map(Duration::from_secs)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "checked against the range first"
)]
fn to_integer(number: f64) -> Option<i64> {
    let rounded = number.round_ties_even();
    (rounded.is_finite() && rounded.abs() < 9.0e18).then_some(rounded as i64)
}

/// Splits `12.5 MB` into number and unit. Decimal, `0x` hexadecimal, leading-`0` octal, or a real number.
#[expect(
    clippy::cast_precision_loss,
    reason = "sizes beyond 2^53 bytes are approximate on purpose"
)]
fn parse_number(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => (-1.0, &text[1..]),
        b'+' => (1.0, &text[1..]),
        _ => (1.0, text),
    };
    let whole = |prefix: usize, radix: u32| {
        let body = &digits[prefix..];
        let end = body
            .find(|c: char| !c.is_digit(radix))
            .unwrap_or(body.len());
        let number = i64::from_str_radix(&body[..end], radix).ok()?;
        Some((sign * number as f64, body[end..].trim()))
    };
    if digits.starts_with("0x") || digits.starts_with("0X") {
        return whole(2, 16);
    }
    let mut end = 0;
    let bytes = digits.as_bytes();
    while end < bytes.len() {
        let exponent_sign =
            end > 0 && matches!(bytes[end], b'+' | b'-') && matches!(bytes[end - 1], b'e' | b'E');
        let exponent = matches!(bytes[end], b'e' | b'E')
            && bytes
                .get(end + 1)
                .is_some_and(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-'));
        if bytes[end].is_ascii_digit()
            || bytes[end] == b'.'
            || (end > 0 && (exponent_sign || exponent))
        {
            end += 1;
        } else {
            break;
        }
    }
    let number = &digits[..end];
    if number.len() > 1
        && number.starts_with('0')
        && number.bytes().all(|b| (b'0'..=b'7').contains(&b))
    {
        return whole(1, 8);
    }
    let parsed: f64 = number.parse().ok()?;
    Some((sign * parsed, digits[end..].trim()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sizes() {
        for (text, want) in [
            ("0", Some(0)),
            ("100", Some(100)),
            ("16MB", Some(16 << 20)),
            (" 1.5 kB ", Some(1536)),
            ("0x10", Some(16)),
            ("010", Some(8)),
            ("2.5", Some(2)),
            ("3.5", Some(4)),
            ("-1", Some(-1)),
            ("1e3", Some(1000)),
            ("1TB", Some(1 << 40)),
            ("1mb", None),
            ("MB", None),
            ("", None),
            ("++5", None),
            ("é", None),
        ] {
            assert_eq!(parse_bytes(text), want, "{text:?}");
        }
    }

    #[test]
    fn durations_and_booleans() {
        for (value, want) in [
            (json!(5), Some(5)),
            (json!("5"), Some(5)),
            (json!("2min"), Some(120)),
            (json!("1500ms"), Some(2)),
            (json!(0), None),
            (json!("-1"), None),
            (json!("soon"), None),
            (json!([1]), None),
        ] {
            assert_eq!(
                parse_seconds(&value),
                want.map(Duration::from_secs),
                "{value}"
            );
        }
        assert_eq!(parse_bool(&json!("On")), Some(true));
        assert_eq!(parse_bool(&json!(0)), Some(false));
        assert_eq!(parse_bool(&json!("maybe")), None);
    }
}
