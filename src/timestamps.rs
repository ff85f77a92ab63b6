//! Times as people give them (spec/rest-api.md §12.6, spec/ctl.md §3) and as we print them.

use chrono::{DateTime, FixedOffset, NaiveDate, NaiveDateTime, NaiveTime};

use crate::node::PgTimestamp;
use crate::types::WallTime;

/// A time with, or still without, its zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// Complete.
    Zoned(DateTime<FixedOffset>),
    /// No zone was given.
    Local(NaiveDateTime),
}

/// `2026-03-01 12:00:00.25+00:00` the way PostgreSQL's Python driver prints it: six fraction digits, none when zero.
#[must_use]
pub fn of_postgres(at: PgTimestamp) -> String {
    let Some(time) = DateTime::from_timestamp_micros(at.0) else {
        return String::new();
    };
    let format = if at.0 % 1_000_000 == 0 {
        "%Y-%m-%d %H:%M:%S+00:00"
    } else {
        "%Y-%m-%d %H:%M:%S%.6f+00:00"
    };
    time.format(format).to_string()
}

/// Reads RFC 3339 and its relatives: `T` or blank, seconds optional, `Z`, `UTC`, `+HH`, `+HHMM`, `+HH:MM`.
#[must_use]
pub fn parse(text: &str) -> Option<Parsed> {
    let text = text.trim();
    let date = NaiveDate::parse_from_str(text.get(..10)?, "%Y-%m-%d").ok()?;
    let rest = text.get(10..)?;
    if rest.is_empty() {
        return Some(Parsed::Local(date.and_time(NaiveTime::MIN)));
    }
    let rest = rest.strip_prefix(['T', 't', ' '])?.trim_start();
    let clock_end = rest
        .find(|c: char| !matches!(c, '0'..='9' | ':' | '.'))
        .unwrap_or(rest.len());
    let (clock, zone) = (&rest[..clock_end], rest[clock_end..].trim());
    let time = ["%H:%M:%S%.f", "%H:%M", "%H%M%S", "%H%M"]
        .iter()
        .find_map(|format| NaiveTime::parse_from_str(clock, format).ok())?;
    let local = date.and_time(time);
    if zone.is_empty() {
        return Some(Parsed::Local(local));
    }
    let offset = parse_offset(zone)?;
    local.and_local_timezone(offset).single().map(Parsed::Zoned)
}

fn parse_offset(zone: &str) -> Option<FixedOffset> {
    if matches!(zone, "Z" | "z" | "UTC" | "GMT" | "utc") {
        return FixedOffset::east_opt(0);
    }
    let (sign, digits) = match zone.as_bytes().first()? {
        b'+' => (1, &zone[1..]),
        b'-' => (-1, &zone[1..]),
        _ => return None,
    };
    let digits: String = digits.chars().filter(|c| *c != ':').collect();
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let (hours, minutes): (i32, i32) = match digits.len() {
        1 | 2 => (digits.parse().ok()?, 0),
        4 => (digits[..2].parse().ok()?, digits[2..].parse().ok()?),
        _ => return None,
    };
    (minutes < 60).then_some(())?;
    FixedOffset::east_opt(sign * (hours * 3600 + minutes * 60))
}

/// ISO 8601 as upstream prints it: `2030-01-01T00:00:00+00:00`, six fraction digits unless zero.
#[must_use]
pub fn iso(time: DateTime<FixedOffset>) -> String {
    let format = if time.timestamp_subsec_micros() == 0 {
        "%Y-%m-%dT%H:%M:%S%:z"
    } else {
        "%Y-%m-%dT%H:%M:%S%.6f%:z"
    };
    time.format(format).to_string()
}

/// ISO 8601 in UTC.
#[must_use]
pub fn iso_utc(at: WallTime) -> String {
    DateTime::from_timestamp_millis(at.0).map_or_else(String::new, |time| iso(time.fixed_offset()))
}

/// Milliseconds since 1970.
#[must_use]
pub fn wall(time: DateTime<FixedOffset>) -> WallTime {
    WallTime(time.timestamp_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_forms() {
        for (text, want) in [
            ("2030-01-01T00:00Z", "2030-01-01T00:00:00+00:00"),
            ("2019-09-24T12:00+00", "2019-09-24T12:00:00+00:00"),
            (
                "2019-09-24 12:00:01.5 UTC",
                "2019-09-24T12:00:01.500000+00:00",
            ),
            ("2019-09-24T12:00:01-0330", "2019-09-24T12:00:01-03:30"),
            ("2019-09-24T12:00:01+05:45", "2019-09-24T12:00:01+05:45"),
        ] {
            let Some(Parsed::Zoned(time)) = parse(text) else {
                panic!("{text}")
            };
            assert_eq!(iso(time), want);
        }
        assert!(matches!(parse("2030-01-01T00:00"), Some(Parsed::Local(_))));
        for text in [
            "",
            "soon",
            "2030-13-01T00:00Z",
            "2030-01-01T25:00Z",
            "2030-01-01T00:00+9999",
            "2030-01-01T00:00 é",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
