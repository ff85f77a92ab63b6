//! YAML 1.1, safe subset, into JSON values: the scalar rules of PyYAML's safe loader on the events of `saphyr-parser`
//! (spec/configuration.md §1.1). Anchors, aliases and merge keys work; tags other than YAML's own scalars are faults.
//!
//! Never reads files, never constructs anything but plain values, and bounds what it builds (aliases cannot explode).

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};
use serde_json::{Map, Number, Value};

/// Deepest nesting accepted.
const MAX_DEPTH: usize = 100;
/// Most nodes accepted, aliases expanded.
const MAX_NODES: usize = 200_000;

/// Why a text is not YAML, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {reason}")]
pub struct YamlError {
    /// From 1.
    pub line: usize,
    /// From 1.
    pub column: usize,
    /// What is wrong.
    pub reason: String,
}

/// Parses one document; an empty text is null.
///
/// # Errors
/// Anything PyYAML's `safe_load` refuses, with line and column.
pub fn parse(text: &str) -> Result<Value, YamlError> {
    let mut builder = Builder {
        parser: Parser::new_from_str(text),
        anchors: HashMap::new(),
        nodes: 0,
    };
    let mut document = None;
    loop {
        let (event, span) = builder.next()?;
        match event {
            Event::StreamEnd => return Ok(document.unwrap_or(Value::Null)),
            Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
            other => {
                if document.is_some() {
                    return Err(at(&span, "expected a single document, found another one"));
                }
                document = Some(builder.node(other, &span, 0)?);
            }
        }
    }
}

fn at(span: &Span, reason: impl Into<String>) -> YamlError {
    YamlError {
        line: span.start.line(),
        column: span.start.col() + 1,
        reason: reason.into(),
    }
}

struct Builder<'input> {
    parser: Parser<'input, saphyr_parser::StrInput<'input>>,
    anchors: HashMap<usize, (Value, usize)>,
    nodes: usize,
}

impl<'input> Builder<'input> {
    fn next(&mut self) -> Result<(Event<'input>, Span), YamlError> {
        match self.parser.next() {
            Some(Ok(pair)) => Ok(pair),
            Some(Err(error)) => {
                let mark = error.marker();
                Err(YamlError {
                    line: mark.line(),
                    column: mark.col() + 1,
                    reason: error.info().to_owned(),
                })
            }
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn node(
        &mut self,
        event: Event<'input>,
        span: &Span,
        depth: usize,
    ) -> Result<Value, YamlError> {
        let before = self.nodes;
        self.nodes += 1;
        if depth > MAX_DEPTH {
            return Err(at(span, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                (scalar(&text, style, tag.as_deref(), span)?, anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                only_own_tag(tag.as_deref(), "seq", span)?;
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => break,
                        (event, span) => items.push(self.node(event, &span, depth + 1)?),
                    }
                }
                (Value::Array(items), anchor)
            }
            Event::MappingStart(anchor, tag) => {
                only_own_tag(tag.as_deref(), "map", span)?;
                (Value::Object(self.mapping(depth)?), anchor)
            }
            Event::Alias(id) => {
                let (value, size) = self.anchors.get(&id).cloned().ok_or_else(|| {
                    at(span, "an alias inside its own anchor, or of an unknown one")
                })?;
                self.nodes += size;
                (value, 0)
            }
            _ => return Err(at(span, "unexpected end of the document")),
        };
        if self.nodes > MAX_NODES {
            return Err(at(span, "the document is too large"));
        }
        if anchor != 0 {
            self.anchors
                .insert(anchor, (value.clone(), self.nodes - before));
        }
        Ok(value)
    }

    fn mapping(&mut self, depth: usize) -> Result<Map<String, Value>, YamlError> {
        let mut map = Map::new();
        let mut merged = Map::new();
        loop {
            let (event, span) = self.next()?;
            let (key, merges) = match event {
                Event::MappingEnd => break,
                // The key keeps its spelling: `on:` stays "on", `1:` stays "1".
                Event::Scalar(text, style, _, _) => {
                    let merges = style == ScalarStyle::Plain && text == "<<";
                    (text.into_owned(), merges)
                }
                Event::Alias(_) => match self.node(event, &span, depth + 1)? {
                    Value::String(text) => (text, false),
                    Value::Number(number) => (number.to_string(), false),
                    _ => return Err(at(&span, "a key must be a plain word")),
                },
                _ => return Err(at(&span, "a key must be a plain word")),
            };
            let (event, span) = self.next()?;
            let value = self.node(event, &span, depth + 1)?;
            if !merges {
                map.insert(key, value);
                continue;
            }
            let sources = match value {
                Value::Object(_) => vec![value],
                Value::Array(items) => items,
                _ => return Err(at(&span, "`<<` needs a mapping or a list of mappings")),
            };
            // The first mapping of a list wins; explicit keys win over all.
            for source in sources {
                let Value::Object(source) = source else {
                    return Err(at(&span, "`<<` needs a mapping or a list of mappings"));
                };
                for (key, value) in source {
                    merged.entry(key).or_insert(value);
                }
            }
        }
        for (key, value) in merged {
            map.entry(key).or_insert(value);
        }
        Ok(map)
    }
}

fn only_own_tag(tag: Option<&Tag>, own: &str, span: &Span) -> Result<(), YamlError> {
    let Some(tag) = tag else { return Ok(()) };
    let is_own = tag.is_yaml_core_schema() && tag.suffix == own;
    let is_non_specific = tag.handle.is_empty() && tag.suffix == "!";
    if is_own || is_non_specific {
        Ok(())
    } else {
        Err(at(span, format!("the tag {tag} is not supported")))
    }
}

fn scalar(
    text: &str,
    style: ScalarStyle,
    tag: Option<&Tag>,
    span: &Span,
) -> Result<Value, YamlError> {
    let Some(tag) = tag else {
        return Ok(if style == ScalarStyle::Plain {
            plain(text)
        } else {
            Value::String(text.to_owned())
        });
    };
    if !tag.is_yaml_core_schema() {
        return if tag.suffix == "!" || (tag.handle == "!" && tag.suffix.is_empty()) {
            Ok(Value::String(text.to_owned()))
        } else {
            Err(at(span, format!("the tag {tag} is not supported")))
        };
    }
    let wrong = || at(span, format!("{text:?} is not a valid !!{}", tag.suffix));
    match tag.suffix.as_str() {
        "str" => Ok(Value::String(text.to_owned())),
        "null" => Ok(Value::Null),
        "bool" => boolean(text).map(Value::Bool).ok_or_else(wrong),
        "int" => integer(text).ok_or_else(wrong),
        "float" => float(text)
            .or_else(|| integer(text))
            .or_else(|| Number::from_f64(text.parse().ok()?).map(Value::Number))
            .ok_or_else(wrong),
        "timestamp" => Ok(Value::String(text.to_owned())),
        _ => Err(at(
            span,
            format!("the tag !!{} is not supported", tag.suffix),
        )),
    }
}

/// What PyYAML's implicit resolvers make of an unquoted scalar. Dates and infinities stay text: JSON has neither.
fn plain(text: &str) -> Value {
    if matches!(text, "" | "~" | "null" | "Null" | "NULL") {
        return Value::Null;
    }
    boolean(text)
        .map(Value::Bool)
        .or_else(|| integer(text))
        .or_else(|| float(text))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

fn boolean(text: &str) -> Option<bool> {
    match text {
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => Some(true),
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => Some(false),
        _ => None,
    }
}

fn signed(text: &str) -> (bool, &str) {
    match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    }
}

fn integer(text: &str) -> Option<Value> {
    let (negative, digits) = signed(text);
    let radix = |digits: &str, radix: u32| -> Option<i128> {
        let bare: String = digits.chars().filter(|c| *c != '_').collect();
        let valid = !bare.is_empty() && bare.chars().all(|c| c.is_digit(radix));
        valid
            .then(|| i128::from_str_radix(&bare, radix).ok())
            .flatten()
    };
    let first = digits.chars().next()?;
    let magnitude = if let Some(binary) = digits.strip_prefix("0b") {
        radix(binary, 2)?
    } else if let Some(hex) = digits.strip_prefix("0x") {
        radix(hex, 16)?
    } else if digits == "0" {
        0
    } else if first == '0' {
        radix(&digits[1..], 8)?
    } else if !('1'..='9').contains(&first) {
        return None;
    } else if digits.contains(':') {
        sexagesimal(digits)?
    } else {
        radix(digits, 10)?
    };
    let number = if negative { -magnitude } else { magnitude };
    let number = i64::try_from(number)
        .map(Number::from)
        .ok()
        .or_else(|| u64::try_from(number).map(Number::from).ok())?;
    Some(Value::Number(number))
}

fn sexagesimal(digits: &str) -> Option<i128> {
    let mut total: i128 = 0;
    for (position, part) in digits.split(':').enumerate() {
        let bare: String = part.chars().filter(|c| *c != '_').collect();
        let valid = !bare.is_empty() && bare.bytes().all(|b| b.is_ascii_digit());
        if !valid
            || (position > 0
                && (part.len() > 2 || part.contains('_') || bare.parse::<u8>().ok()? > 59))
        {
            return None;
        }
        total = total.checked_mul(60)?.checked_add(bare.parse().ok()?)?;
    }
    Some(total)
}

fn float(text: &str) -> Option<Value> {
    let (negative, digits) = signed(text);
    let (mantissa, exponent) = match digits.find(['e', 'E']) {
        Some(position) => (&digits[..position], Some(&digits[position + 1..])),
        None => (digits, None),
    };
    // PyYAML wants a point always, and a sign in the exponent: `1e5` and `1.5e5` are text.
    let (whole, fraction) = mantissa.split_once('.')?;
    let is_digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    let starts_with_digit = |part: &str| part.bytes().next().is_some_and(|b| b.is_ascii_digit());
    if !is_digits(fraction)
        || (whole.is_empty() && (!starts_with_digit(fraction) || text.starts_with(['-', '+'])))
    {
        return None;
    }
    if let Some(exponent) = exponent {
        let unsigned = exponent.strip_prefix(['+', '-'])?;
        if unsigned.is_empty()
            || !unsigned.bytes().all(|b| b.is_ascii_digit())
            || whole.contains(':')
        {
            return None;
        }
    }
    let whole = if whole.contains(':') {
        sexagesimal(whole)?.to_string()
    } else if whole.is_empty() || (starts_with_digit(whole) && is_digits(whole)) {
        whole.replace('_', "")
    } else {
        return None;
    };
    let exponent = exponent.map(|e| format!("e{e}")).unwrap_or_default();
    let number: f64 = format!("0{whole}.{}0{exponent}", fraction.replace('_', ""))
        .parse()
        .ok()?;
    Number::from_f64(if negative { -number } else { number }).map(Value::Number)
}

/// Block-style text of a value, ready to be parsed again; lists start at their key's column, as PyYAML writes them.
#[must_use]
pub fn emit(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => emit_map(map, 0, &mut text),
        Value::Array(items) if !items.is_empty() => emit_list(items, 0, &mut text),
        scalar => {
            text.push_str(&emit_scalar(scalar));
            text.push('\n');
        }
    }
    text
}

fn emit_map(map: &Map<String, Value>, indent: usize, text: &mut String) {
    for (position, (key, value)) in map.iter().enumerate() {
        if position > 0 || indent == 0 {
            text.push_str(&" ".repeat(indent));
        }
        text.push_str(&emit_text(key));
        text.push(':');
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                text.push('\n');
                text.push_str(&" ".repeat(indent + 2));
                emit_map(inner, indent + 2, text);
            }
            Value::Array(items) if !items.is_empty() => {
                text.push('\n');
                text.push_str(&" ".repeat(indent));
                emit_list(items, indent, text);
            }
            scalar => {
                text.push(' ');
                text.push_str(&emit_scalar(scalar));
                text.push('\n');
            }
        }
    }
}

fn emit_list(items: &[Value], indent: usize, text: &mut String) {
    for (position, item) in items.iter().enumerate() {
        if position > 0 {
            text.push_str(&" ".repeat(indent));
        }
        text.push_str("- ");
        match item {
            Value::Object(inner) if !inner.is_empty() => emit_map(inner, indent + 2, text),
            Value::Array(inner) if !inner.is_empty() => emit_list(inner, indent + 2, text),
            scalar => {
                text.push_str(&emit_scalar(scalar));
                text.push('\n');
            }
        }
    }
}

fn emit_scalar(value: &Value) -> String {
    match value {
        Value::String(text) => emit_text(text),
        // A float keeps its point, or it would come back as text or as an integer.
        Value::Number(number) if number.is_f64() && !number.to_string().contains('.') => {
            format!("!!float '{number}'")
        }
        // Empty collections are the same in JSON.
        other => other.to_string(),
    }
}

/// Plain where it comes back as the same text, else in quotes.
fn emit_text(text: &str) -> String {
    let control = text.chars().any(char::is_control);
    let safe_start = text.starts_with(|c: char| c.is_alphanumeric() || "/._".contains(c));
    let plain = !control
        && safe_start
        && !text.ends_with([' ', ':'])
        && !text.contains(": ")
        && !text.contains(" #")
        && plain(text) == Value::String(text.to_owned())
        && !text.starts_with("...")
        && !looks_like_date(text);
    if plain {
        text.to_owned()
    } else if control {
        // JSON's quoting is valid in a double-quoted scalar.
        Value::String(text.to_owned()).to_string()
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}

/// Other YAML 1.1 readers would take it for a timestamp.
fn looks_like_date(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() >= 8 && bytes[..4].iter().all(u8::is_ascii_digit) && bytes[4] == b'-'
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn scalars_follow_pyyaml() {
        for (text, expected) in [
            ("on", json!(true)),
            ("Off", json!(false)),
            ("yes", json!(true)),
            ("oN", json!("oN")),
            ("y", json!("y")),
            ("0644", json!(420)),
            ("-010", json!(-8)),
            ("0o644", json!("0o644")),
            ("08", json!("08")),
            ("0x10", json!(16)),
            ("0b101", json!(5)),
            ("1_000", json!(1000)),
            ("1:30", json!(90)),
            ("1:99", json!("1:99")),
            ("h1:2379", json!("h1:2379")),
            ("127.0.0.1:5432", json!("127.0.0.1:5432")),
            ("1.5", json!(1.5)),
            ("1.", json!(1.0)),
            (".5", json!(0.5)),
            ("1e5", json!("1e5")),
            ("1.0e+5", json!(100_000.0)),
            ("1.5e5", json!("1.5e5")),
            ("1:30.5", json!(90.5)),
            ("~", json!(null)),
            ("null", json!(null)),
            ("", json!(null)),
            ("'on'", json!("on")),
            ("\"1\"", json!("1")),
            ("!!str 1", json!("1")),
            ("!!int '7'", json!(7)),
            ("2024-01-01", json!("2024-01-01")),
            ("1.2.3", json!("1.2.3")),
            ("-", json!([null])),
            ("+", json!("+")),
            (
                "18446744073709551615",
                json!(18_446_744_073_709_551_615_u64),
            ),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn collections_anchors_and_merge_keys() {
        let text = "base: &b {a: 1, c: 3}\nuse:\n  <<: *b\n  a: 2\nboth:\n  <<: [{a: 9}, *b]\nlist:\n- &x 5\n- *x\n1: one\non: x\n";
        assert_eq!(
            parse(text).unwrap(),
            json!({"base": {"a": 1, "c": 3}, "use": {"a": 2, "c": 3}, "both": {"a": 9, "c": 3}, "list": [5, 5], "1": "one", "on": "x"})
        );
        assert_eq!(
            parse("{app: patroni, k: v}").unwrap(),
            json!({"app": "patroni", "k": "v"})
        );
        assert_eq!(
            parse("[h1:2379,'h2:2379']").unwrap(),
            json!(["h1:2379", "h2:2379"])
        );
        assert_eq!(
            parse("a: |\n  x\n  y\nb: >-\n  p\n  q\n").unwrap(),
            json!({"a": "x\ny\n", "b": "p q"})
        );
        assert_eq!(parse("a: 1\na: 2\n").unwrap(), json!({"a": 2}));
    }

    #[test]
    fn faults_say_where() {
        let error = parse("a: 1\nb: [1, 2\nc: 3\n").unwrap_err();
        assert!(error.line >= 2, "{error}");
        assert_eq!(parse("a: !!python/object:os.system x").unwrap_err().line, 1);
        assert!(
            parse("a: 1\n---\nb: 2\n")
                .unwrap_err()
                .reason
                .contains("single document")
        );
        assert!(parse("a: *nowhere").is_err());
        assert!(parse("[1, 2]: x").is_err());
    }

    #[test]
    fn what_is_emitted_comes_back() {
        let value = json!({
            "a": {"b": [1, 2.5, {"c": "on", "d": {"e": null}}, ["x", "0644"], {}, []], "f": "it's: so"},
            "on": "-", "plain": "some text, with # not a comment#", "date": "2024-01-01", "lines": "a\nb\t", "empty": "",
            "hash": "#FIXME", "format": "%(asctime)s %(levelname)s", "star": "*", "addr": "[::1]:5432", "t": true, "big": 1e300,
        });
        let text = emit(&value);
        assert_eq!(parse(&text).unwrap(), value, "{text}");
        assert!(
            text.starts_with("a:\n  b:\n  - 1\n  - 2.5\n  - c: 'on'\n    d:\n      e: null\n"),
            "{text}"
        );
        assert_eq!(
            parse(&emit(&json!([["a"], "b"]))).unwrap(),
            json!([["a"], "b"])
        );
    }

    #[test]
    fn aliases_cannot_explode() {
        let mut text = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for level in 1..12 {
            let below = format!("*a{}", level - 1);
            text.push_str(&format!(
                "a{level}: &a{level} [{}]\n",
                vec![below; 10].join(",")
            ));
        }
        assert_eq!(
            parse(&text).unwrap_err().reason,
            "the document is too large"
        );
        assert!(parse(&"[".repeat(5000)).is_err());
    }
}
