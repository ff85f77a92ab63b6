//! Which settings a PostgreSQL version knows and which values it takes (spec/configuration.md §5.5, Appendices A and B).
//!
//! The rules are data (`parameter_rules.txt`). This module reads them and judges one value; it never writes or logs anything.

use std::collections::HashMap;
use std::fmt;
use std::sync::OnceLock;

use super::quantity;
use crate::types::PgVersion;

/// The kind of value a setting takes, with its limits.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// Any boolean spelling.
    Bool,
    /// A number that is rounded to an integer, in `unit`.
    Integer(Range),
    /// A number, in `unit`.
    Real(Range),
    /// One of the words, any case.
    Enum(Vec<&'static str>),
    /// A boolean or one of the words.
    EnumBool(Vec<&'static str>),
    /// Anything.
    Text,
}

/// Inclusive limits and the unit of a bare number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    /// Smallest allowed value.
    pub min: f64,
    /// Largest allowed value.
    pub max: f64,
    /// `kB`, `8kB`, `ms` …; `None`: no unit is accepted.
    pub unit: Option<&'static str>,
}

#[derive(Debug)]
struct Rule {
    kind: Kind,
    from: PgVersion,
    till: Option<PgVersion>,
}

type Rules = HashMap<String, Vec<Rule>>;

/// What became of a value.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Write it as it is.
    Keep,
    /// Write this bare number (in the rule's unit) instead.
    Clamp {
        /// The text to write.
        value: String,
        /// Why, for the log.
        problem: Problem,
    },
    /// The setting exists, the value is useless: leave the setting out.
    Drop(Problem),
    /// No rule covers this setting in this version.
    NoRule,
}

/// What was wrong with a setting; `Display` gives Patroni's log line.
#[derive(Debug, Clone, PartialEq)]
pub enum Problem {
    /// Not a value of that kind (`bool`, `enum`, `integer`, `real`).
    Invalid {
        /// Setting.
        name: String,
        /// Its value.
        value: String,
        /// Kind, in Patroni's words.
        kind: &'static str,
    },
    /// Out of range.
    OutOfRange {
        /// Setting.
        name: String,
        /// Its value.
        value: String,
        /// Whether it was below the minimum.
        too_low: bool,
        /// The bound that is used, with its unit.
        bound: String,
    },
    /// The server does not know the setting.
    Unexpected {
        /// Setting.
        name: String,
        /// Its value.
        value: String,
    },
    /// A setting that the cluster controls has a value it must not have.
    Controlled {
        /// Setting.
        name: String,
        /// Its value.
        value: String,
        /// What is used instead.
        default: String,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Invalid { name, value, kind } => {
                write!(
                    f,
                    "Removing {kind} parameter={name} from the config due to the invalid value={value}"
                )
            }
            Problem::OutOfRange {
                name,
                value,
                too_low,
                bound,
            } => {
                let direction = if *too_low {
                    "too low, increasing"
                } else {
                    "too big, decreasing"
                };
                write!(
                    f,
                    "Value={value} of parameter={name} is {direction} to {bound}"
                )
            }
            Problem::Unexpected { name, value } => write!(
                f,
                "Removing unexpected parameter={name} value={value} from the config"
            ),
            Problem::Controlled {
                name,
                value,
                default,
            } => {
                write!(
                    f,
                    "postgresql parameter {name}={value} failed validation, defaulting to {default}"
                )
            }
        }
    }
}

/// Judges one ordinary setting.
#[must_use]
pub fn check(name: &str, value: &str, version: PgVersion) -> Verdict {
    judge(&tables().0, name, value, version)
}

/// Judges one recovery setting; `version` is the data directory's major.
#[must_use]
pub fn check_recovery(name: &str, value: &str, version: PgVersion) -> Verdict {
    judge(&tables().1, name, value, version)
}

/// Whether the name is that of a recovery setting of any version (any case).
#[must_use]
pub fn is_recovery(name: &str) -> bool {
    tables().1.contains_key(&name.to_ascii_lowercase())
}

/// Names of all recovery settings that ever existed, lower case.
pub fn recovery_names() -> impl Iterator<Item = &'static str> {
    tables().1.keys().map(String::as_str)
}

fn judge(rules: &Rules, name: &str, value: &str, version: PgVersion) -> Verdict {
    let applicable = rules.get(&name.to_ascii_lowercase()).and_then(|rules| {
        rules
            .iter()
            .find(|rule| rule.from <= version && rule.till.is_none_or(|till| version < till))
    });
    let Some(rule) = applicable else {
        return Verdict::NoRule;
    };
    let invalid = |kind| {
        Verdict::Drop(Problem::Invalid {
            name: name.to_owned(),
            value: value.to_owned(),
            kind,
        })
    };
    let is_word = |words: &[&str]| words.iter().any(|word| word.eq_ignore_ascii_case(value));
    match &rule.kind {
        Kind::Text => Verdict::Keep,
        Kind::Bool if quantity::parse_bool(value).is_some() => Verdict::Keep,
        Kind::Bool => invalid("bool"),
        Kind::Enum(words) if is_word(words) => Verdict::Keep,
        Kind::EnumBool(words) if is_word(words) || quantity::parse_bool(value).is_some() => {
            Verdict::Keep
        }
        Kind::Enum(_) | Kind::EnumBool(_) => invalid("enum"),
        Kind::Integer(range) => match quantity::parse_integer(value, range.unit) {
            #[expect(
                clippy::cast_precision_loss,
                reason = "compared with bounds below 2^53"
            )]
            Some(number) => within(name, value, number as f64, *range),
            None => invalid("integer"),
        },
        Kind::Real(range) => match quantity::parse_real(value, range.unit) {
            Some(number) => within(name, value, number, *range),
            None => invalid("real"),
        },
    }
}

fn within(name: &str, value: &str, number: f64, range: Range) -> Verdict {
    let too_low = number < range.min;
    if !too_low && number <= range.max {
        return Verdict::Keep;
    }
    let bound = if too_low { range.min } else { range.max };
    Verdict::Clamp {
        value: bound.to_string(),
        problem: Problem::OutOfRange {
            name: name.to_owned(),
            value: value.to_owned(),
            too_low,
            bound: format!("{bound}{}", range.unit.unwrap_or_default()),
        },
    }
}

fn tables() -> &'static (Rules, Rules) {
    static TABLES: OnceLock<(Rules, Rules)> = OnceLock::new();
    TABLES.get_or_init(|| parse_tables(include_str!("parameter_rules.txt")))
}

/// Lines that cannot be read are left out; a unit test proves that the embedded table has none.
fn parse_tables(text: &'static str) -> (Rules, Rules) {
    let mut tables = (Rules::new(), Rules::new());
    let mut recovery = false;
    for line in text.lines() {
        if line == "[recovery_parameters]" {
            recovery = true;
        }
        let Some((rules, names)) = parse_line(line) else {
            continue;
        };
        let table = if recovery {
            &mut tables.1
        } else {
            &mut tables.0
        };
        for name in names.split_whitespace() {
            let rules = rules.split("; ").filter_map(parse_rule).collect();
            table.insert(name.to_ascii_lowercase(), rules);
        }
    }
    tables
}

fn parse_line(line: &'static str) -> Option<(&'static str, &'static str)> {
    if line.starts_with(['#', '[']) {
        return None;
    }
    line.rsplit_once(" = ")
}

fn parse_rule(text: &'static str) -> Option<Rule> {
    let (what, versions) = text.trim().rsplit_once(' ')?;
    let (from, till) = versions.split_once("..")?;
    Some(Rule {
        kind: parse_kind(what)?,
        from: parse_version(from)?,
        till: if till.is_empty() {
            None
        } else {
            Some(parse_version(till)?)
        },
    })
}

fn parse_kind(text: &'static str) -> Option<Kind> {
    let words = |list: &'static str| -> Option<Vec<&'static str>> {
        let list = list.strip_suffix('}')?;
        Some(
            list.split('|')
                .map(|word| if word == "\"\"" { "" } else { word })
                .collect(),
        )
    };
    if let Some(list) = text.strip_prefix("enum{") {
        return words(list).map(Kind::Enum);
    }
    if let Some(list) = text.strip_prefix("enumbool{") {
        return words(list).map(Kind::EnumBool);
    }
    if let Some(range) = text.strip_prefix("int[") {
        return parse_range(range).map(Kind::Integer);
    }
    if let Some(range) = text.strip_prefix("real[") {
        return parse_range(range).map(Kind::Real);
    }
    match text {
        "bool" => Some(Kind::Bool),
        "str" => Some(Kind::Text),
        _ => None,
    }
}

fn parse_range(text: &'static str) -> Option<Range> {
    let (limits, unit) = text.split_once(']')?;
    let (min, max) = limits.split_once(',')?;
    let bound = |text: &str| match text {
        "IMIN" => Some(-2_147_483_648.0),
        "IMAX" => Some(2_147_483_647.0),
        "DMAX" => Some(f64::MAX),
        number => number.parse().ok(),
    };
    let unit = unit.trim();
    Some(Range {
        min: bound(min)?,
        max: bound(max)?,
        unit: (!unit.is_empty()).then_some(unit),
    })
}

/// `9.6` → 90600, `14.5` → 140005, `15` → 150000.
fn parse_version(text: &str) -> Option<PgVersion> {
    let (first, second) = match text.split_once('.') {
        Some((first, second)) => (first.parse::<u32>().ok()?, second.parse::<u32>().ok()?),
        None => (text.parse().ok()?, 0),
    };
    Some(PgVersion(
        first * 10_000 + if first < 10 { second * 100 } else { second },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PG15: PgVersion = PgVersion(150_010);

    #[test]
    fn every_line_of_the_embedded_table_is_understood() {
        let mut rules = 0;
        for line in include_str!("parameter_rules.txt").lines() {
            if line.is_empty() || line.starts_with(['#', '[']) {
                continue;
            }
            let (left, names) = parse_line(line).unwrap_or_else(|| panic!("{line}"));
            assert!(!names.trim().is_empty(), "{line}");
            for rule in left.split("; ") {
                assert!(parse_rule(rule).is_some(), "{rule}");
                rules += 1;
            }
        }
        assert!(rules > 240, "{rules}");
        assert_eq!(tables().1.len(), 18);
        assert!(tables().0.len() > 350, "{}", tables().0.len());
    }

    #[test]
    fn a_rule_is_chosen_by_version() {
        assert_eq!(
            check("password_encryption", "on", PgVersion(90_624)),
            Verdict::Keep
        );
        assert!(matches!(
            check("password_encryption", "on", PG15),
            Verdict::Drop(_)
        ));
        assert_eq!(
            check("Password_Encryption", "SCRAM-sha-256", PG15),
            Verdict::Keep
        );
        assert_eq!(
            check("checkpoint_segments", "8", PgVersion(90_400)),
            Verdict::Keep
        );
        assert_eq!(check("checkpoint_segments", "8", PG15), Verdict::NoRule);
        assert_eq!(
            check("allow_in_place_tablespaces", "on", PgVersion(140_004)),
            Verdict::NoRule
        );
        assert_eq!(
            check("allow_in_place_tablespaces", "on", PgVersion(140_005)),
            Verdict::Keep
        );
        assert_eq!(check("ssl_max_protocol_version", "", PG15), Verdict::Keep);
        assert_eq!(
            check("default_transaction_isolation", "repeatable read", PG15),
            Verdict::Keep
        );
    }

    #[test]
    fn numbers_are_clamped_to_the_bound_in_the_rules_unit() {
        let Verdict::Clamp { value, problem } = check("shared_buffers", "1kB", PG15) else {
            panic!("not clamped")
        };
        assert_eq!(value, "16");
        assert_eq!(
            problem.to_string(),
            "Value=1kB of parameter=shared_buffers is too low, increasing to 168kB"
        );
        assert!(matches!(check("work_mem", "many", PG15), Verdict::Drop(_)));
        assert!(
            matches!(check("checkpoint_completion_target", "1.2", PG15), Verdict::Clamp { value, .. } if value == "1")
        );
        assert_eq!(check("random_page_cost", "1.1", PG15), Verdict::Keep);
        assert_eq!(
            check("fsync", "maybe", PG15),
            Verdict::Drop(Problem::Invalid {
                name: "fsync".into(),
                value: "maybe".into(),
                kind: "bool"
            })
        );
    }

    #[test]
    fn recovery_settings_have_their_own_table() {
        assert!(is_recovery("Restore_Command"));
        assert!(!is_recovery("work_mem"));
        assert_eq!(
            check_recovery("trigger_file", "/x", PgVersion(110_000)),
            Verdict::Keep
        );
        assert_eq!(
            check_recovery("trigger_file", "/x", PgVersion(120_000)),
            Verdict::NoRule
        );
        assert_eq!(
            check_recovery("recovery_min_apply_delay", "5min", PG15),
            Verdict::Keep
        );
    }
}
