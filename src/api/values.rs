//! Values as requests spell them (spec/rest-api.md §18), on top of the rules for settings.

use std::time::Duration;

use serde_json::Value;

use crate::config::value;

/// Bytes: a bare number, or one with `B kB MB GB TB`.
#[must_use]
pub fn parse_bytes(text: &str) -> Option<i64> {
    value::parse_int(&text.into(), Some("B"))
}

/// A positive duration: a JSON number of seconds, or text with `us ms s min h d`. Rounded to whole seconds, as upstream does.
#[must_use]
pub fn parse_seconds(value: &Value) -> Option<Duration> {
    let seconds = value::parse_int(value, Some("s"))?;
    u64::try_from(seconds)
        .ok()
        .filter(|seconds| *seconds > 0)
        .map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sizes() {
        for (text, want) in [
            ("0", Some(0)),
            ("16MB", Some(16 << 20)),
            (" 1.5 kB ", Some(1536)),
            ("0x10", Some(16)),
            ("010", Some(8)),
            ("3.5", Some(4)),
            ("-1", Some(-1)),
            ("1mb", None),
            ("1s", None),
            ("MB", None),
            ("", None),
            ("++5", None),
            ("é", None),
        ] {
            assert_eq!(parse_bytes(text), want, "{text:?}");
        }
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
