//! Values as requests spell them (spec/rest-api.md §18), on top of the rules for settings.

use crate::config::value;

/// Bytes: a bare number, or one with `B kB MB GB TB`.
#[must_use]
pub fn parse_bytes(text: &str) -> Option<i64> {
    value::parse_int(&text.into(), Some("B"))
}

#[cfg(test)]
mod tests {
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
}
