//! A restart of PostgreSQL that people ask for: of which servers, and when (spec/rest-api.md §12.3, spec/ha.md §10.2).

use std::time::Duration;

use serde_json::{Map, Value};

use crate::config::value;
use crate::node::PgTimestamp;
use crate::timestamps::{self, Parsed};
use crate::types::{PgVersion, Role, WallTime};

/// Which servers a restart is for (spec/rest-api.md §12.3); all given conditions must hold.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RestartConditions {
    /// The remembered role equals this.
    pub role: Option<Role>,
    /// The server is older than this; the text as given, and its number.
    pub below_version: Option<(String, PgVersion)>,
    /// Only if a restart is pending.
    pub only_pending: bool,
    /// Patience for the start; `None` = `primary_start_timeout`.
    pub timeout: Option<Duration>,
}

impl RestartConditions {
    /// Adds the condition that a request spells so.
    ///
    /// # Errors
    /// What is wrong with it, for the person who asked.
    pub fn add(&mut self, key: &str, value: &Value) -> Result<(), String> {
        match key {
            "role" => self.role = Some(parse_role(value)?),
            "postgres_version" => self.below_version = Some(parse_version(value)?),
            "timeout" => {
                let timeout = value::parse_seconds(value)
                    .ok_or("Timeout should be a positive number of seconds")?;
                self.timeout = Some(timeout);
            }
            "restart_pending" => {
                self.only_pending =
                    value::parse_bool(value).ok_or("restart_pending should be a boolean")?;
            }
            other => {
                return Err(format!("Unknown filter for the scheduled restart: {other}"));
            }
        }
        Ok(())
    }

    /// Whether a restart is wanted now.
    #[must_use]
    pub fn hold(&self, role: Role, server: Option<PgVersion>, pending: bool) -> bool {
        self.role.is_none_or(|wanted| wanted == role)
            && self
                .below_version
                .as_ref()
                .is_none_or(|(_, limit)| server.is_some_and(|server| server < *limit))
            && (!self.only_pending || pending)
    }
}

/// A restart accepted for later.
#[derive(Debug, Clone, PartialEq)]
pub struct ScheduledRestart {
    /// When.
    pub at: WallTime,
    /// For which servers.
    pub conditions: RestartConditions,
    /// Start time of the postmaster at scheduling; a later start cancels it.
    pub postmaster_start_time: Option<PgTimestamp>,
    /// The document as accepted (`schedule` and the filters, verbatim), without `postmaster_start_time`.
    pub document: Map<String, Value>,
}

/// In a published document: the server that is meant.
const STARTED: &str = "postmaster_start_time";

impl ScheduledRestart {
    /// As the member's document tells it.
    #[must_use]
    pub fn published(&self) -> Map<String, Value> {
        let mut document = self.document.clone();
        if let Some(started) = self.postmaster_start_time {
            let text = timestamps::of_postgres(started);
            document.insert(STARTED.to_owned(), text.into());
        }
        document
    }

    /// What [`Self::published`] told: an agent that is started again goes on with it. `None` if it cannot be understood.
    #[must_use]
    pub fn read(mut document: Map<String, Value>) -> Option<Self> {
        let time = |value: &Value| match value.as_str().and_then(timestamps::parse)? {
            Parsed::Zoned(time) => Some(time),
            Parsed::Local(_) => None,
        };
        let postmaster_start_time = match document.remove(STARTED) {
            Some(started) => Some(PgTimestamp(time(&started)?.timestamp_micros())),
            None => None,
        };
        let at = timestamps::wall(time(document.get("schedule")?)?);
        let mut conditions = RestartConditions::default();
        for (key, value) in document.iter().filter(|(key, _)| *key != "schedule") {
            conditions.add(key, value).ok()?;
        }
        Some(ScheduledRestart {
            at,
            conditions,
            postmaster_start_time,
            document,
        })
    }
}

fn parse_role(value: &Value) -> Result<Role, String> {
    match value.as_str() {
        Some("primary") => Ok(Role::Primary),
        Some("standby_leader") => Ok(Role::StandbyLeader),
        Some("replica") => Ok(Role::Replica),
        _ => Err("PostgreSQL role should be either primary, standby_leader, or replica".to_owned()),
    }
}

/// `X.Y` (10 and later) or `X.Y.Z`, as PostgreSQL numbers it.
///
/// # Errors
/// What is wrong with it, for the person who wrote it.
pub fn parse_version(value: &Value) -> Result<(String, PgVersion), String> {
    let format_error =
        |text: &str| format!("Invalid PostgreSQL version format: X.Y or X.Y.Z is accepted: {text}");
    let Some(text) = value.as_str() else {
        return Err(format_error(&value.to_string()));
    };
    let parts: Vec<&str> = text.split('.').collect();
    if !(2..=3).contains(&parts.len()) {
        return Err(format_error(text));
    }
    let invalid = || format!("Invalid PostgreSQL version: {text}");
    let numbers: Vec<u32> = parts
        .iter()
        .map(|part| part.parse().ok().filter(|n: &u32| *n < 1000))
        .collect::<Option<_>>()
        .ok_or_else(invalid)?;
    let number = match numbers.as_slice() {
        [major, minor] if *major >= 10 => major * 10_000 + minor,
        [major, minor, patch] if *major < 10 => major * 10_000 + minor * 100 + patch,
        [major, minor, patch] if *minor == 0 => major * 10_000 + patch,
        _ => return Err(invalid()),
    };
    Ok((text.to_owned(), PgVersion(number)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn document(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(map) => map,
            other => panic!("{other} is no object"),
        }
    }

    #[test]
    fn what_was_published_is_read_back() {
        let mut conditions = RestartConditions::default();
        let filters = json!({"role": "replica", "postgres_version": "17.3", "timeout": "2min", "restart_pending": true});
        for (key, value) in &document(filters.clone()) {
            conditions.add(key, value).unwrap();
        }
        let mut asked = document(filters);
        asked.insert("schedule".to_owned(), "2030-01-01T12:00:00+02:00".into());
        let restart = ScheduledRestart {
            at: WallTime(1_893_492_000_000),
            conditions,
            postmaster_start_time: Some(PgTimestamp(1_790_000_000_250_000)),
            document: asked,
        };
        assert_eq!(ScheduledRestart::read(restart.published()), Some(restart));
    }

    #[test]
    fn what_cannot_be_understood_is_no_restart() {
        for broken in [
            json!({}),
            json!({"role": "replica"}),
            json!({"schedule": "tomorrow"}),
            json!({"schedule": "2030-01-01T12:00:00"}),
            json!({"schedule": "2030-01-01T12:00:00Z", "role": "king"}),
            json!({"schedule": "2030-01-01T12:00:00Z", "weather": "fine"}),
            json!({"schedule": "2030-01-01T12:00:00Z", "postmaster_start_time": 5}),
        ] {
            assert_eq!(
                ScheduledRestart::read(document(broken.clone())),
                None,
                "{broken}"
            );
        }
    }
}
