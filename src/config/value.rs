//! Rules about one value: booleans, numbers with units, text forms, comparing and patching maps (spec/configuration.md §1).
//!
//! Pure. Knows no key names.

use std::time::Duration;

use serde_json::{Map, Value};

/// Patroni's boolean words, any case; `None` = unparsable (§1.2).
#[must_use]
pub fn parse_bool(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(b) => Some(*b),
        Value::Number(n) => match n.as_i64() {
            Some(1) => Some(true),
            Some(0) => Some(false),
            _ => None,
        },
        Value::String(text) => parse_bool_text(text),
        _ => None,
    }
}

/// As [`parse_bool`], for text.
#[must_use]
pub fn parse_bool_text(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" | "1" => Some(true),
        "off" | "false" | "no" | "0" => Some(false),
        _ => None,
    }
}

/// The plain text form that ends in PostgreSQL's files: booleans `True`/`False`, null `None`, lists and maps as JSON (§1.1).
#[must_use]
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Python's truth: null, false, 0, "", [] and {} are false.
#[must_use]
pub fn is_truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// A whole number without unit from a number or a numeric text; floats are truncated (§2.4 for `ttl` and friends).
#[must_use]
pub fn to_integer(value: &Value) -> Option<i64> {
    match value {
        Value::Number(n) => n.as_i64().or_else(|| n.as_f64().and_then(truncate)),
        Value::String(text) => text.trim().replace('_', "").parse().ok(),
        Value::Bool(b) => Some(i64::from(*b)),
        _ => None,
    }
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "the range is checked first"
)]
fn truncate(number: f64) -> Option<i64> {
    (number.is_finite() && number.abs() < 9.0e18).then_some(number.trunc() as i64)
}

/// An integer as PostgreSQL reads a setting: hex, octal, decimal or float text, an optional unit of `base_unit`'s family;
/// the result counts `base_unit`s, rounded half to even (§1.3). `None` = invalid.
#[must_use]
pub fn parse_int(value: &Value, base_unit: Option<&str>) -> Option<i64> {
    let number = match value {
        Value::Number(n) if n.is_i64() => return n.as_i64(),
        Value::Number(n) => n.as_f64()?,
        Value::String(text) => parse_number(text, base_unit)?,
        _ => return None,
    };
    truncate(number.round_ties_even())
}

/// A real number as PostgreSQL reads a setting (§1.3).
#[must_use]
pub fn parse_real(value: &Value, base_unit: Option<&str>) -> Option<f64> {
    match value {
        Value::Number(n) => n.as_f64(),
        Value::String(text) => parse_number(text, base_unit),
        _ => None,
    }
}

#[allow(
    clippy::cast_precision_loss,
    reason = "settings beyond 2^53 do not exist"
)]
fn parse_number(text: &str, base_unit: Option<&str>) -> Option<f64> {
    let text = text.trim();
    let (number, rest) = match integer_prefix(text) {
        Some((number, rest)) if !rest.starts_with(['.', 'e', 'E']) => (number as f64, rest),
        _ => float_prefix(text)?,
    };
    let unit = rest.trim();
    if unit.is_empty() {
        Some(number)
    } else {
        convert(number, unit, base_unit?)
    }
}

/// `[+-]?0x…`, octal with a leading 0, or decimal.
fn integer_prefix(text: &str) -> Option<(i64, &str)> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (radix, digits) = if let Some(hex) = digits.strip_prefix("0x").or(digits.strip_prefix("0X"))
    {
        (16, hex)
    } else if digits.starts_with('0') {
        (8, digits)
    } else {
        (10, digits)
    };
    let end = digits
        .find(|c: char| !c.is_digit(radix))
        .unwrap_or(digits.len());
    let number = i64::from_str_radix(&digits[..end], radix).ok()?;
    Some((if negative { -number } else { number }, &digits[end..]))
}

fn float_prefix(text: &str) -> Option<(f64, &str)> {
    let bytes = text.as_bytes();
    let digits_from = |mut at: usize| {
        while bytes.get(at).is_some_and(u8::is_ascii_digit) {
            at += 1;
        }
        at
    };
    let start = usize::from(matches!(bytes.first(), Some(b'+' | b'-')));
    let mut end = digits_from(start);
    if bytes.get(end) == Some(&b'.') {
        end = digits_from(end + 1);
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = end + 1 + usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        let exponent = digits_from(sign);
        if exponent > sign {
            end = exponent;
        }
    }
    Some((text[..end].parse().ok()?, &text[end..]))
}

/// Units of one family, largest first, in its smallest unit.
const MEMORY: &[(&str, f64)] = &[
    ("TB", 1_099_511_627_776.0),
    ("GB", 1_073_741_824.0),
    ("MB", 1_048_576.0),
    ("kB", 1024.0),
    ("B", 1.0),
];
const TIME: &[(&str, f64)] = &[
    ("d", 86_400e6),
    ("h", 3_600e6),
    ("min", 60e6),
    ("s", 1e6),
    ("ms", 1e3),
    ("us", 1.0),
];

fn convert(number: f64, unit: &str, base_unit: &str) -> Option<f64> {
    let split = base_unit.find(|c: char| !c.is_ascii_digit())?;
    let (multiplier, base) = base_unit.split_at(split);
    let multiplier: f64 = if multiplier.is_empty() {
        1.0
    } else {
        multiplier.parse().ok()?
    };
    let family = [MEMORY, TIME]
        .into_iter()
        .find(|family| family.iter().any(|(name, _)| *name == base))?;
    let size = |wanted: &str| {
        family
            .iter()
            .find(|(name, _)| *name == wanted)
            .map(|(_, size)| *size)
    };
    let base_size = size(base)? * multiplier;
    let position = family.iter().position(|(name, _)| *name == unit)?;
    let mut converted = number * family[position].1 / base_size;
    // PostgreSQL rounds a fraction such as 30.1GB to a multiple of the next smaller unit.
    if let Some((_, smaller)) = family.get(position + 1) {
        let step = smaller / base_size;
        converted = (converted / step).round_ties_even() * step;
    }
    Some(converted)
}

/// Deep comparison of §1.4: maps by keys and the text form of their values; lists by their printed form.
#[must_use]
pub fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Object(left), Value::Object(right)) => same_map(left, right),
        _ => text(left) == text(right),
    }
}

/// As [`same`], for maps.
#[must_use]
pub fn same_map(left: &Map<String, Value>, right: &Map<String, Value>) -> bool {
    left.len() == right.len()
        && left
            .iter()
            .all(|(key, value)| right.get(key).is_some_and(|other| same(value, other)))
}

/// Lays `changes` over `target` (§1.4): null removes, maps recurse, everything else replaces unless its text form is equal.
/// Returns whether anything changed.
pub fn patch(target: &mut Map<String, Value>, changes: &Map<String, Value>) -> bool {
    let mut changed = false;
    for (key, value) in changes {
        match (target.get_mut(key), value) {
            (None, Value::Null) => {}
            (Some(_), Value::Null) => {
                target.shift_remove(key);
                changed = true;
            }
            (Some(Value::Object(inner)), Value::Object(changes)) => {
                changed |= patch(inner, changes)
            }
            (Some(old), new) if text(old) == text(new) && old.is_object() == new.is_object() => {}
            (_, new) => {
                target.insert(key.clone(), new.clone());
                changed = true;
            }
        }
    }
    changed
}

/// A positive duration: a JSON number of seconds, or text with `us ms s min h d`. Rounded to whole seconds, as upstream does.
#[must_use]
pub fn parse_seconds(value: &Value) -> Option<Duration> {
    let seconds = parse_int(value, Some("s"))?;
    u64::try_from(seconds)
        .ok()
        .filter(|seconds| *seconds > 0)
        .map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn booleans() {
        for (text, expected) in [
            ("on", Some(true)),
            ("FALSE", Some(false)),
            ("1", Some(true)),
            ("no", Some(false)),
            ("maybe", None),
        ] {
            assert_eq!(parse_bool(&json!(text)), expected, "{text}");
        }
        assert_eq!(parse_bool(&json!(1)), Some(true));
        assert_eq!(parse_bool(&json!(2)), None);
    }

    #[test]
    fn numbers_and_units() {
        let int = |text: &str, unit: Option<&str>| parse_int(&json!(text), unit);
        assert_eq!(int("0x20", None), Some(32));
        assert_eq!(int("010", None), Some(8));
        assert_eq!(int("08", None), None);
        assert_eq!(int("1.5", None), Some(2));
        assert_eq!(int(".5", None), Some(0));
        assert_eq!(int("2.5", None), Some(2));
        assert_eq!(int("-12", None), Some(-12));
        assert_eq!(int("1e3", None), Some(1000));
        assert_eq!(int("30min", Some("s")), Some(1800));
        assert_eq!(int("30 min", Some("s")), Some(1800));
        assert_eq!(int("30min", None), None);
        assert_eq!(int("1s", Some("kB")), None);
        assert_eq!(int("512kB", Some("B")), Some(524_288));
        assert_eq!(int("128MB", Some("8kB")), Some(16_384));
        assert_eq!(int("1GB", Some("16MB")), Some(64));
        assert_eq!(int("1gb", Some("MB")), None);
        assert_eq!(int("1500us", Some("ms")), Some(2));
        assert_eq!(int("0.1h", Some("min")), Some(6));
        assert_eq!(parse_real(&json!("0.5s"), Some("ms")), Some(500.0));
        assert_eq!(int("", None), None);
        assert_eq!(int("é", Some("s")), None);
    }

    #[test]
    fn patch_removes_recurses_and_keeps_the_existing_type() {
        let mut target = json!({"a": 2, "b": {"c": 1, "d": 1}, "e": 1})
            .as_object()
            .cloned()
            .unwrap();
        let changes = json!({"a": "2", "b": {"c": null, "x": 5}, "e": null, "gone": null});
        assert!(patch(&mut target, changes.as_object().unwrap()));
        assert_eq!(
            Value::Object(target.clone()),
            json!({"a": 2, "b": {"d": 1, "x": 5}})
        );
        assert!(!patch(&mut target, json!({"a": "2"}).as_object().unwrap()));
    }

    #[test]
    fn deep_compare_by_text() {
        assert!(same(
            &json!({"a": 2, "b": {"c": true}}),
            &json!({"b": {"c": "True"}, "a": "2"})
        ));
        assert!(!same(&json!({"a": 2}), &json!({"a": 2, "b": null})));
    }

    #[test]
    fn durations() {
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
    }
}
