//! Numbers with units, booleans: how PostgreSQL reads the text of a setting (spec/configuration.md §1.2, §1.3).
//!
//! Pure; knows nothing of single settings. Reading is `config::value`'s; here it is offered for texts, and the way back is added.

use serde_json::Value;

use crate::config::value;

/// Memory units, largest first, in bytes.
const MEMORY: [(&str, f64); 5] = [
    ("TB", 1_099_511_627_776.0),
    ("GB", 1_073_741_824.0),
    ("MB", 1_048_576.0),
    ("kB", 1024.0),
    ("B", 1.0),
];

/// Time units, largest first, in microseconds.
const TIME: [(&str, f64); 6] = [
    ("d", 86_400_000_000.0),
    ("h", 3_600_000_000.0),
    ("min", 60_000_000.0),
    ("s", 1_000_000.0),
    ("ms", 1000.0),
    ("us", 1.0),
];

/// `on/true/yes/1` and `off/false/no/0`, any case; `None` for anything else.
#[must_use]
pub fn parse_bool(text: &str) -> Option<bool> {
    value::parse_bool_text(text)
}

/// An integer in `base` units (`None`: no unit is allowed; a base may have a multiplier: `8kB`, `16MB`). Half rounds to even.
#[must_use]
pub fn parse_integer(text: &str, base: Option<&str>) -> Option<i64> {
    value::parse_int(&Value::String(text.to_owned()), base)
}

/// A real number in `base` units.
#[must_use]
pub fn parse_real(text: &str, base: Option<&str>) -> Option<f64> {
    value::parse_real(&Value::String(text.to_owned()), base)
}

/// The value in the largest unit that expresses it exactly: (16384, `8kB`) → `128MB`. Without a unit the plain number.
///
/// Negative values ("off", "use the default") and zero stay plain, as PostgreSQL's SHOW prints them.
#[must_use]
pub fn with_largest_unit(value: i64, base: Option<&str>) -> String {
    let Some((table, base_size)) = base.and_then(base_of) else {
        return value.to_string();
    };
    if value <= 0 {
        return value.to_string();
    }
    #[expect(clippy::cast_precision_loss, reason = "settings are far below 2^53")]
    let total = value as f64 * base_size;
    for (unit, size) in table {
        if total % size == 0.0 {
            return format!("{}{unit}", total / size);
        }
    }
    value.to_string()
}

/// The unit family and the size of a base unit such as `8kB`.
fn base_of(base: &str) -> Option<(&'static [(&'static str, f64)], f64)> {
    let digits = base.bytes().take_while(u8::is_ascii_digit).count();
    let multiplier = if digits == 0 {
        1.0
    } else {
        base[..digits].parse().ok()?
    };
    let unit = &base[digits..];
    [&MEMORY[..], &TIME[..]].into_iter().find_map(|table| {
        let (_, size) = table.iter().find(|(name, _)| *name == unit)?;
        Some((table, multiplier * size))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_read_as_postgresql_reads_them() {
        let cases = [
            ("100", None, Some(100)),
            (" -1 ", None, Some(-1)),
            ("0x20", None, Some(32)),
            ("010", None, Some(8)),
            ("08", None, None),
            ("1.5", None, Some(2)),
            ("2.5", None, Some(2)),
            (".5", None, Some(0)),
            ("1e3", None, Some(1000)),
            ("", None, None),
            ("MB", Some("MB"), None),
            ("16MB", None, None),
            ("16MB", Some("MB"), Some(16)),
            ("1 GB", Some("MB"), Some(1024)),
            ("128MB", Some("8kB"), Some(16384)),
            ("1GB", Some("16MB"), Some(64)),
            ("30.1GB", Some("kB"), Some(31_561_728)),
            ("30min", Some("s"), Some(1800)),
            ("5s", Some("MB"), None),
            ("16mb", Some("MB"), None),
            ("500us", Some("ms"), Some(0)),
            ("12x", Some("ms"), None),
        ];
        for (text, base, expected) in cases {
            assert_eq!(parse_integer(text, base), expected, "{text:?} in {base:?}");
        }
    }

    #[test]
    fn reals_keep_their_fraction() {
        assert_eq!(parse_real("0.9", None), Some(0.9));
        assert_eq!(parse_real("2s", Some("ms")), Some(2000.0));
        assert_eq!(parse_real("1.5e2x", None), None);
        assert_eq!(parse_real("-", None), None);
        assert_eq!(parse_real("1e", Some("ms")), None);
    }

    #[test]
    fn values_are_shown_in_the_largest_exact_unit() {
        assert_eq!(with_largest_unit(16384, Some("8kB")), "128MB");
        assert_eq!(with_largest_unit(60, Some("s")), "1min");
        assert_eq!(with_largest_unit(1500, Some("ms")), "1500ms");
        assert_eq!(with_largest_unit(100, None), "100");
        assert_eq!(with_largest_unit(-1, Some("8kB")), "-1");
    }
}
