//! Times that people give: what a lenient ISO 8601 reader accepts (spec/dcs.md §2.7, spec/rest-api.md §12.6).

use chrono::{DateTime, FixedOffset, NaiveDate, NaiveDateTime, NaiveTime, TimeZone, Utc};

use crate::types::WallTime;

/// Why a text is not a time that something can be scheduled at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// A time of day without a zone would mean something else on each node.
    #[error("the time has no time zone")]
    NoZone,
    /// Not a time.
    #[error("not an unambiguous time, such as 2030-01-01T00:00Z")]
    Unreadable,
}

/// Reads a time with a zone: `2030-01-01T00:00Z`, `2019-09-24 12:00+00`, with or without seconds, fractions, a space before the
/// zone; `Z`, `UTC`, `GMT` or an offset of hours, hours and minutes; RFC 2822 too.
///
/// # Errors
/// A time without a zone, or no time at all.
pub fn parse_schedule(text: &str) -> Result<WallTime, ScheduleError> {
    let text = text.trim();
    if let Ok(time) = DateTime::parse_from_rfc2822(text) {
        return Ok(WallTime(time.timestamp_millis()));
    }
    let (date, rest) = split_date(text).ok_or(ScheduleError::Unreadable)?;
    let (time, zone) = split_zone(rest);
    let time = parse_time(time).ok_or(ScheduleError::Unreadable)?;
    let zone = zone.ok_or(ScheduleError::NoZone)?;
    let offset = parse_zone(zone).ok_or(ScheduleError::Unreadable)?;
    offset
        .from_local_datetime(&NaiveDateTime::new(date, time))
        .single()
        .map(|time| WallTime(time.timestamp_millis()))
        .ok_or(ScheduleError::Unreadable)
}

/// Writes a time as Patroni does: `2026-03-01T12:00:00+00:00`, microseconds only when there are any.
#[must_use]
pub fn schedule_text(time: WallTime) -> String {
    let Some(time) = DateTime::<Utc>::from_timestamp_millis(time.0) else {
        return String::new();
    };
    let format = if time.timestamp_subsec_micros() == 0 {
        "%Y-%m-%dT%H:%M:%S+00:00"
    } else {
        "%Y-%m-%dT%H:%M:%S%.6f+00:00"
    };
    time.format(format).to_string()
}

/// The date and everything behind its separator.
fn split_date(text: &str) -> Option<(NaiveDate, &str)> {
    for (format, length) in [("%Y-%m-%d", 10), ("%Y%m%d", 8), ("%Y/%m/%d", 10)] {
        let Some((date, rest)) = text.split_at_checked(length) else {
            continue;
        };
        if let Ok(date) = NaiveDate::parse_from_str(date, format) {
            return match rest.chars().next() {
                None | Some('T' | 't' | ' ') => {
                    Some((date, rest.get(1..).unwrap_or_default().trim()))
                }
                Some(_) => None,
            };
        }
    }
    None
}

/// The time of day and the zone behind it, if any.
fn split_zone(rest: &str) -> (&str, Option<&str>) {
    let zone_at =
        rest.find(|c: char| c == '+' || c == '-' || c == '\u{2212}' || c.is_ascii_alphabetic());
    match zone_at {
        Some(at) => (rest[..at].trim(), Some(rest[at..].trim())),
        None => (rest, None),
    }
}

fn parse_time(text: &str) -> Option<NaiveTime> {
    if text.is_empty() {
        return Some(NaiveTime::MIN);
    }
    let text = text.replace(',', ".");
    ["%H:%M:%S%.f", "%H:%M", "%H%M%S", "%H%M"]
        .iter()
        .find_map(|format| NaiveTime::parse_from_str(&text, format).ok())
}

fn parse_zone(text: &str) -> Option<FixedOffset> {
    if ["z", "utc", "gmt"].contains(&text.to_ascii_lowercase().as_str()) {
        return FixedOffset::east_opt(0);
    }
    let (sign, digits) = match text.strip_prefix('+') {
        Some(digits) => (1, digits),
        None => (-1, text.strip_prefix(['-', '\u{2212}'])?),
    };
    let digits: String = digits.chars().filter(|c| *c != ':').collect();
    let number = |range: std::ops::Range<usize>| digits.get(range)?.parse::<i32>().ok();
    let (hours, minutes) = match digits.len() {
        1 | 2 => (digits.parse().ok()?, 0),
        4 => (number(0..2)?, number(2..4)?),
        _ => return None,
    };
    (minutes < 60)
        .then(|| FixedOffset::east_opt(sign * (hours * 3600 + minutes * 60)))
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-03-01T12:00:00Z.
    const NOON: WallTime = WallTime(1_772_366_400_000);

    #[test]
    fn accepts_what_people_write() {
        for text in [
            "2026-03-01T12:00:00+00:00",
            "2026-03-01T12:00Z",
            "2026-03-01T12:00+00",
            "2026-03-01 12:00:00 UTC",
            "2026-03-01 14:00:00.000+0200",
            "2026-03-01t07:00:00,000-05:00",
            "20260301T120000Z",
            "Sun, 01 Mar 2026 12:00:00 +0000",
        ] {
            assert_eq!(parse_schedule(text), Ok(NOON), "{text}");
        }
    }

    #[test]
    fn a_time_without_a_zone_is_refused() {
        for text in ["2026-03-01T12:00:00", "2026-03-01 12:00", "2026-03-01"] {
            assert_eq!(parse_schedule(text), Err(ScheduleError::NoZone), "{text}");
        }
    }

    #[test]
    fn everything_else_is_unreadable() {
        for text in [
            "",
            "now",
            "12:00",
            "2026-13-01T00:00Z",
            "2026-03-01T25:00Z",
            "2026-03-01T12:00+99:99",
            "2026-03-01T12:00 Mars",
            "ä026-03-01T12:00Z",
            "2026-03-01ä12:00Z",
        ] {
            assert_eq!(
                parse_schedule(text),
                Err(ScheduleError::Unreadable),
                "{text}"
            );
        }
    }

    #[test]
    fn writes_like_the_reference() {
        assert_eq!(schedule_text(NOON), "2026-03-01T12:00:00+00:00");
        assert_eq!(
            schedule_text(WallTime(NOON.0 + 250)),
            "2026-03-01T12:00:00.250000+00:00"
        );
    }
}
