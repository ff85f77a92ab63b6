//! Writes YAML the way upstream's tools do: block style, keys sorted, lists not indented below their key, unicode kept.

use serde_json::{Map, Value};

/// A whole document, with a final newline.
pub(super) fn document(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => mapping(&mut out, map, 0),
        Value::Array(items) if !items.is_empty() => sequence(&mut out, items, 0),
        scalar => {
            out.push_str(&flow(scalar));
            out.push('\n');
        }
    }
    out
}

/// One line: `{a: 1, b: x}`.
pub(super) fn flow(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let pairs: Vec<String> = sorted(map)
                .into_iter()
                .map(|(key, value)| format!("{}: {}", text(key, true), flow(value)))
                .collect();
            format!("{{{}}}", pairs.join(", "))
        }
        Value::Array(items) => format!(
            "[{}]",
            items.iter().map(flow).collect::<Vec<_>>().join(", ")
        ),
        other => scalar(other, true),
    }
}

fn sorted(map: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut pairs: Vec<_> = map.iter().collect();
    pairs.sort_by_key(|(key, _)| *key);
    pairs
}

fn mapping(out: &mut String, map: &Map<String, Value>, indent: usize) {
    for (number, (key, value)) in sorted(map).into_iter().enumerate() {
        if number > 0 || !out.ends_with("- ") {
            out.push_str(&" ".repeat(indent));
        }
        out.push_str(&text(key, false));
        out.push(':');
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                out.push('\n');
                mapping(out, inner, indent + 2);
            }
            Value::Array(items) if !items.is_empty() => {
                out.push('\n');
                sequence(out, items, indent);
            }
            other => {
                out.push(' ');
                out.push_str(&block_scalar(other, indent));
                out.push('\n');
            }
        }
    }
}

fn sequence(out: &mut String, items: &[Value], indent: usize) {
    for (number, item) in items.iter().enumerate() {
        if number > 0 || !out.ends_with("- ") {
            out.push_str(&" ".repeat(indent));
        }
        out.push_str("- ");
        match item {
            Value::Object(inner) if !inner.is_empty() => mapping(out, inner, indent + 2),
            Value::Array(inner) if !inner.is_empty() => sequence(out, inner, indent + 2),
            other => {
                out.push_str(&block_scalar(other, indent));
                out.push('\n');
            }
        }
    }
}

fn block_scalar(value: &Value, indent: usize) -> String {
    match value {
        Value::String(string) if folds(string) => folded(string, indent + 2),
        Value::Object(_) => "{}".to_owned(),
        Value::Array(_) => "[]".to_owned(),
        other => scalar(other, false),
    }
}

/// Several lines that quotes can hold as they are: no blanks around the line breaks, nothing unprintable.
fn folds(string: &str) -> bool {
    string.contains('\n')
        && !string.contains("\n ")
        && !string.contains(" \n")
        && !string.chars().any(|c| c.is_control() && c != '\n')
}

/// Quoted, each run of line breaks one longer than it means.
fn folded(string: &str, indent: usize) -> String {
    let mut out = String::from("'");
    let mut after_break = false;
    for c in string.replace('\'', "''").chars() {
        if c == '\n' {
            if !after_break {
                out.push('\n');
            }
            out.push('\n');
        } else {
            if after_break {
                out.push_str(&" ".repeat(indent));
            }
            out.push(c);
        }
        after_break = c == '\n';
    }
    if after_break {
        out.push_str(&" ".repeat(indent));
    }
    out.push('\'');
    out
}

fn scalar(value: &Value, in_flow: bool) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        Value::String(string) => text(string, in_flow),
        other => other.to_string(),
    }
}

/// Plain if that reads back as the same text, else quoted.
fn text(string: &str, in_flow: bool) -> String {
    if string.chars().any(|c| c.is_control()) {
        let mut out = String::from("\"");
        for c in string.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\t' => out.push_str("\\t"),
                '\r' => out.push_str("\\r"),
                c if c.is_control() => out.push_str(&format!("\\x{:02X}", u32::from(c))),
                c => out.push(c),
            }
        }
        out.push('"');
        return out;
    }
    if is_plain(string, in_flow) {
        string.to_owned()
    } else {
        format!("'{}'", string.replace('\'', "''"))
    }
}

fn is_plain(string: &str, in_flow: bool) -> bool {
    let Some(first) = string.chars().next() else {
        return false;
    };
    let indicator = "!&*%@`'\"#|>,[]{}".contains(first)
        || ("-?:".contains(first)
            && string[1..]
                .chars()
                .next()
                .is_none_or(|c| c == ' ' || (in_flow && ",[]{}".contains(c))));
    !indicator
        && !string.starts_with(' ')
        && !string.ends_with([' ', ':'])
        && !string.contains(": ")
        && !string.contains(" #")
        && !string.starts_with("---")
        && !string.starts_with("...")
        && !(in_flow && string.contains([',', '[', ']', '{', '}', '?']))
        && !means_something_else(string)
}

/// Null, booleans, numbers and dates must be quoted to stay texts.
fn means_something_else(string: &str) -> bool {
    let lower = string.to_lowercase();
    if [
        "null", "~", "true", "false", "yes", "no", "on", "off", "<<", "=",
    ]
    .contains(&lower.as_str())
    {
        return true;
    }
    let body = string.strip_prefix(['+', '-']).unwrap_or(string);
    if [".inf", ".nan"].contains(&body.to_lowercase().as_str()) {
        return true;
    }
    let digits =
        |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    let integer = body.starts_with(|c: char| c.is_ascii_digit())
        && (digits(body)
            || body.strip_prefix("0x").is_some_and(|hex| {
                !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit() || b == b'_')
            })
            || body.strip_prefix("0b").is_some_and(|bits| {
                !bits.is_empty() && bits.bytes().all(|b| matches!(b, b'0' | b'1' | b'_'))
            }));
    // Base 60, as YAML 1.1 has it: 12:30 and 1:02:03.5.
    let sexagesimal = body.contains(':')
        && body.split(':').enumerate().all(|(number, part)| {
            let part = part.split_once('.').map_or(part, |(whole, _)| whole);
            digits(part)
                && (number == 0 || (part.len() <= 2 && part.parse::<u32>().is_ok_and(|n| n < 60)))
        });
    let float = body.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && body.contains('.')
        && body.bytes().any(|b| b.is_ascii_digit())
        && body.split_once('.').is_some_and(|(whole, rest)| {
            let (fraction, exponent) = rest
                .split_once(['e', 'E'])
                .map_or((rest, None), |(fraction, exponent)| {
                    (fraction, Some(exponent))
                });
            (whole.is_empty() || digits(whole))
                && (fraction.is_empty() || digits(fraction))
                && exponent
                    .is_none_or(|exponent| exponent.strip_prefix(['+', '-']).is_some_and(digits))
        });
    let date = crate::timestamps::parse(string).is_some();
    integer || sexagesimal || float || date
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn blocks() {
        let value = json!({
            "ttl": 30,
            "b": {"y": "on", "x": ["a", {"k": 1, "j": []}], "z": {}},
            "a": null,
            "text": "64MB",
            "odd": "a: b",
            "quote": "it's",
            "empty": "",
            "number": "12",
            "star": "*",
            "command": "cp /a/%f \"%p\"",
            "two": "x\ny",
            "f": 0.5
        });
        let want = "a: null\nb:\n  x:\n  - a\n  - j: []\n    k: 1\n  y: 'on'\n  z: {}\ncommand: cp /a/%f \"%p\"\nempty: ''\nf: 0.5\n\
                    number: '12'\nodd: 'a: b'\nquote: it's\nstar: '*'\ntext: 64MB\nttl: 30\ntwo: 'x\n\n  y'\n";
        assert_eq!(document(&value), want);
        assert_eq!(crate::config::yaml::parse(want).unwrap(), value);
        assert_eq!(document(&json!({})), "{}\n");
        let lines =
            json!({"two": "x\ny\n\nz\n", "l": ["a\nb"], "m": {"k": "it's\nb"}, "t": "a \nb"});
        let want = "l:\n- 'a\n\n  b'\nm:\n  k: 'it''s\n\n    b'\nt: \"a \\nb\"\ntwo: 'x\n\n  y\n\n\n  z\n\n  '\n";
        assert_eq!(document(&lines), want);
    }

    #[test]
    fn texts_that_look_like_something_else_are_quoted() {
        for text in [
            "1",
            "-1",
            "0x1f",
            "1.5",
            "1.",
            ".5",
            "1.5e+3",
            "12:30",
            "2030-01-01",
            "2030-01-01T00:00:00+00:00",
            "~",
            "No",
            "a:",
            "- a",
            "a #b",
            "@x",
        ] {
            assert_eq!(super::text(text, false), format!("'{text}'"));
        }
        for text in [
            "0/5000148",
            "1.2.3",
            "10.0.0.1",
            "a-b",
            "a:b",
            "-a",
            "1e3",
            "host:5432",
        ] {
            assert_eq!(super::text(text, false), text);
        }
        assert_eq!(flow(&json!({"b": "x, y", "a": 1})), "{a: 1, b: 'x, y'}");
    }
}
