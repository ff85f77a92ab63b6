//! Long options for PostgreSQL's tools from a configuration section (`bootstrap.initdb`, `postgresql.basebackup`, `postgresql.rewind`):
//! a list of `opt` and `{opt: value}`, or a map (spec/postgres-management.md §7.2, §9.2, §10.5).
//!
//! Pure. Options that would break the caller's own are refused, by name.

use serde_json::Value;

/// Options that `initdb` gets from us or must not have.
pub const FORBIDDEN_INITDB: [&str; 5] = ["pgdata", "nosync", "pwfile", "sync-only", "version"];
/// The same for `pg_basebackup`.
pub const FORBIDDEN_BASEBACKUP: [&str; 11] = [
    "pgdata",
    "format",
    "wal-method",
    "xlog-method",
    "gzip",
    "version",
    "dbname",
    "host",
    "port",
    "username",
    "password",
];
/// The same for `pg_rewind`.
pub const FORBIDDEN_REWIND: [&str; 10] = [
    "target-pgdata",
    "source-pgdata",
    "source-server",
    "write-recovery-conf",
    "dry-run",
    "restore-target-wal",
    "config-file",
    "no-ensure-shutdown",
    "version",
    "help",
];

/// An option that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionProblem {
    /// It belongs to us.
    #[error("{option} option for {tool} is not allowed")]
    NotAllowed {
        /// The tool.
        tool: &'static str,
        /// Option without dashes.
        option: String,
    },
    /// Neither a name nor a one-key map with a text or number.
    #[error(
        "Error when parsing {tool} key {item}: value should be string value or a single key-value pair"
    )]
    Malformed {
        /// The tool.
        tool: &'static str,
        /// What was found.
        item: String,
    },
    /// The section is neither.
    #[error("{tool} options must be list or dict")]
    NotOptions {
        /// The tool.
        tool: &'static str,
    },
}

/// `--opt[=value]` arguments, and the items that were left out. `Null` is no options.
///
/// initdb's caller treats any problem as fatal, the others log it.
#[must_use]
pub fn parse(
    tool: &'static str,
    section: &Value,
    forbidden: &[&str],
) -> (Vec<String>, Vec<OptionProblem>) {
    let (mut arguments, mut problems) = (Vec::new(), Vec::new());
    let mut add = |name: &str, value: Option<&Value>| match argument(tool, name, value, forbidden) {
        Ok(text) => arguments.push(text),
        Err(problem) => problems.push(problem),
    };
    match section {
        Value::Null => {}
        Value::Array(items) => {
            for item in items {
                match item {
                    Value::String(name) => add(name, None),
                    Value::Object(pair) if pair.len() == 1 => {
                        pair.iter().for_each(|(name, value)| add(name, Some(value)))
                    }
                    other => add("", Some(other)),
                }
            }
        }
        Value::Object(map) => {
            let is_falsy = |value: &Value| {
                matches!(value, Value::Null | Value::Bool(false)) || value == "" || value == 0
            };
            for (name, value) in map.iter().filter(|(_, value)| !is_falsy(value)) {
                add(name, Some(value));
            }
        }
        _ => problems.push(OptionProblem::NotOptions { tool }),
    }
    (arguments, problems)
}

fn argument(
    tool: &'static str,
    name: &str,
    value: Option<&Value>,
    forbidden: &[&str],
) -> Result<String, OptionProblem> {
    let malformed = |item: String| OptionProblem::Malformed { tool, item };
    let text = match value {
        None => None,
        Some(Value::String(text)) => Some(unquoted(text).to_owned()),
        // Patroni fails on a number in the map form; its text is what was meant.
        Some(Value::Number(number)) => Some(number.to_string()),
        // `verbose: true` in the map form.
        Some(Value::Bool(true)) => None,
        Some(other) => {
            return Err(malformed(if name.is_empty() {
                other.to_string()
            } else {
                format!("{name}: {other}")
            }));
        }
    };
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(malformed(name.to_owned()));
    }
    // A name may carry its value ("opt=value"); that must not smuggle a refused one in.
    let bare = name
        .trim_start_matches('-')
        .split('=')
        .next()
        .unwrap_or_default();
    if forbidden.contains(&bare) {
        return Err(OptionProblem::NotAllowed {
            tool,
            option: bare.to_owned(),
        });
    }
    let name = name.trim_start_matches('-');
    Ok(text.map_or_else(|| format!("--{name}"), |value| format!("--{name}={value}")))
}

/// Without a pair of shell quotes around the whole value.
fn unquoted(text: &str) -> &str {
    let inner = |quote: char| {
        text.strip_prefix(quote)
            .and_then(|rest| rest.strip_suffix(quote))
    };
    inner('\'').or_else(|| inner('"')).unwrap_or(text)
}

/// Splits a configured command as a POSIX shell would: blanks, single and double quotes, backslash. No expansion.
///
/// # Errors
/// An unclosed quote, or a backslash at the end.
pub fn shell_split(command: &str) -> Result<Vec<String>, crate::types::Malformed> {
    let err = || crate::types::Malformed {
        kind: "command",
        text: command.to_owned(),
    };
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = command.chars();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => words.extend(word.take()),
            '\\' => word
                .get_or_insert_default()
                .push(chars.next().ok_or_else(err)?),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next().ok_or_else(err)? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next().ok_or_else(err)? {
                        '"' => break,
                        '\\' => match chars.next().ok_or_else(err)? {
                            c @ ('"' | '\\' | '$' | '`') => word.push(c),
                            c => word.extend(['\\', c]),
                        },
                        c => word.push(c),
                    }
                }
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_forms_are_understood() {
        let (arguments, problems) = parse(
            "initdb",
            &json!(["data-checksums", {"encoding": "UTF8"}, {"locale": "'C'"}]),
            &FORBIDDEN_INITDB,
        );
        assert_eq!(
            arguments,
            ["--data-checksums", "--encoding=UTF8", "--locale=C"]
        );
        assert_eq!(problems, []);
        let (arguments, _) = parse(
            "pg_basebackup",
            &json!({"max-rate": "100M", "verbose": true, "progress": false}),
            &FORBIDDEN_BASEBACKUP,
        );
        assert_eq!(arguments, ["--max-rate=100M", "--verbose"]);
        assert_eq!(parse("initdb", &Value::Null, &[]), (vec![], vec![]));
    }

    #[test]
    fn options_that_belong_to_us_are_refused() {
        let (arguments, problems) = parse(
            "initdb",
            &json!(["--pgdata=/x", {"pwfile": "y"}, {"a": "1", "b": "2"}, {"wal-segsize": 64}, ["x"]]),
            &FORBIDDEN_INITDB,
        );
        assert_eq!(arguments, ["--wal-segsize=64"]);
        let texts: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(texts[0], "pgdata option for initdb is not allowed");
        assert_eq!(texts[1], "pwfile option for initdb is not allowed");
        assert!(
            texts[2].starts_with("Error when parsing initdb key"),
            "{texts:?}"
        );
        assert_eq!(texts.len(), 4);
        assert_eq!(
            parse("initdb", &json!("x"), &[]).1,
            [OptionProblem::NotOptions { tool: "initdb" }]
        );
    }

    #[test]
    fn commands_are_split_as_a_shell_would() {
        let split = |text| shell_split(text).ok();
        let words = |list: &[&str]| Some(list.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(
            split("  /a b\t'c d' \"e\\\" \\n\" f\\ g ''"),
            words(&["/a", "b", "c d", "e\" \\n", "f g", ""])
        );
        assert_eq!(split("a'b'\"c\""), words(&["abc"]));
        assert_eq!(split("a 'b"), None);
        assert_eq!(split("a \\"), None);
        assert_eq!(split(""), words(&[]));
    }
}
