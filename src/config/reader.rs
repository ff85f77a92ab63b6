//! Typed access to a merged configuration that collects faults instead of stopping at the first one.
//!
//! A fault names the variable, or the key and its file. A value that is missing or wrong reads as `None`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde_json::{Map, Value};

use super::address::HostPort;
use super::layers::Layers;
use super::{Fault, Secret, value};

pub(crate) struct Reader<'a> {
    pub layers: &'a Layers,
    pub faults: Vec<Fault>,
    pub warnings: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(layers: &'a Layers) -> Self {
        Reader {
            layers,
            faults: Vec::new(),
            warnings: Vec::new(),
        }
    }

    pub(crate) fn fault(&mut self, key: &str, reason: impl Into<String>) {
        let name = self.layers.name_of(key);
        self.faults.push(Fault::new(&name, reason));
    }

    /// The value at a dotted key, defaults included.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        let mut map = &self.layers.full;
        let mut parts = key.split('.').peekable();
        while let Some(part) = parts.next() {
            let value = map.get(part)?;
            if parts.peek().is_none() {
                return (!value.is_null()).then_some(value);
            }
            map = value.as_object()?;
        }
        None
    }

    /// Whether files or environment say anything non-null about a key.
    pub(crate) fn is_given(&self, key: &str) -> bool {
        let mut map = &self.layers.local;
        let mut parts = key.split('.').peekable();
        while let Some(part) = parts.next() {
            match map.get(part) {
                Some(Value::Object(inner)) if parts.peek().is_some() => map = inner,
                Some(value) => return parts.peek().is_none() && !value.is_null(),
                None => return false,
            }
        }
        false
    }

    fn wrong<T>(&mut self, key: &str, what: &str) -> Option<T> {
        self.fault(key, format!("is not {what}"));
        None
    }

    /// Text; numbers are taken as their text. Empty text counts as absent.
    pub(crate) fn text(&mut self, key: &str) -> Option<String> {
        match self.get(key)? {
            Value::String(text) if text.is_empty() => None,
            scalar @ (Value::String(_) | Value::Number(_)) => Some(value::text(scalar)),
            _ => self.wrong(key, "a string"),
        }
    }

    pub(crate) fn secret(&mut self, key: &str) -> Option<Secret> {
        self.text(key).map(Secret::new)
    }

    pub(crate) fn path(&mut self, key: &str) -> Option<PathBuf> {
        self.text(key).map(PathBuf::from)
    }

    pub(crate) fn boolean(&mut self, key: &str) -> Option<bool> {
        let value = self.get(key)?;
        value::parse_bool(value).or_else(|| self.wrong(key, "a boolean"))
    }

    pub(crate) fn integer(&mut self, key: &str, least: i64, most: i64) -> Option<i64> {
        let given = self.get(key)?;
        match value::parse_int(given, None) {
            Some(number) if (least..=most).contains(&number) => Some(number),
            Some(number) if most == i64::MAX => {
                self.fault(key, format!("is {number}, and must be at least {least}"));
                None
            }
            Some(number) => {
                self.fault(
                    key,
                    format!("is {number}, and must be between {least} and {most}"),
                );
                None
            }
            None => self.wrong(key, "an integer"),
        }
    }

    pub(crate) fn unsigned<T: TryFrom<i64>>(&mut self, key: &str, most: i64) -> Option<T> {
        self.integer(key, 0, most)
            .and_then(|number| T::try_from(number).ok())
    }

    pub(crate) fn port(&mut self, key: &str) -> Option<u16> {
        self.integer(key, 1, 65_535)
            .and_then(|number| u16::try_from(number).ok())
    }

    /// A number of seconds, with fraction.
    pub(crate) fn seconds(&mut self, key: &str) -> Option<Duration> {
        let given = self.get(key)?;
        match value::parse_real(given, None).map(Duration::try_from_secs_f64) {
            Some(Ok(duration)) => Some(duration),
            _ => self.wrong(key, "a number of seconds"),
        }
    }

    /// A word of a closed list, any case.
    pub(crate) fn word<T: Copy>(&mut self, key: &str, words: &[(&str, T)]) -> Option<T> {
        let given = self.get(key)?;
        let text = value::text(given).to_lowercase();
        let found = words
            .iter()
            .find(|(word, _)| word.to_lowercase() == text)
            .map(|(_, meaning)| *meaning);
        found.or_else(|| {
            let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            self.wrong(key, &format!("one of {}", known.join(", ")))
        })
    }

    /// A list; a single text is split at commas, as `hosts` may be given (§3.7).
    pub(crate) fn texts(&mut self, key: &str) -> Option<Vec<String>> {
        match self.get(key)? {
            Value::String(text) => Some(
                text.split(',')
                    .map(|item| item.trim().trim_matches(['"', '\'']).to_owned())
                    .filter(|i| !i.is_empty())
                    .collect(),
            ),
            Value::Array(items)
                if items
                    .iter()
                    .all(|item| !item.is_array() && !item.is_object()) =>
            {
                Some(
                    items
                        .iter()
                        .filter(|item| !item.is_null())
                        .map(value::text)
                        .collect(),
                )
            }
            number @ Value::Number(_) => Some(vec![value::text(number)]),
            _ => self.wrong(key, "a list of texts"),
        }
    }

    /// Lines of a file; what is not text is skipped (§6.2).
    pub(crate) fn lines(&mut self, key: &str) -> Option<Vec<String>> {
        match self.get(key)? {
            Value::Array(items) => Some(
                items
                    .iter()
                    .filter_map(Value::as_str)
                    .map(str::to_owned)
                    .collect(),
            ),
            Value::String(text) => Some(text.lines().map(str::to_owned).collect()),
            _ => self.wrong(key, "a list of lines"),
        }
    }

    pub(crate) fn map(&mut self, key: &str) -> Option<Map<String, Value>> {
        match self.get(key)? {
            Value::Object(map) => Some(map.clone()),
            _ => self.wrong(key, "a dictionary"),
        }
    }

    pub(crate) fn text_map(&mut self, key: &str) -> Option<BTreeMap<String, String>> {
        self.map(key).map(|map| {
            map.iter()
                .map(|(name, value)| (name.clone(), value::text(value)))
                .collect()
        })
    }

    pub(crate) fn address(&mut self, key: &str) -> Option<HostPort> {
        let text = self.text(key)?;
        match HostPort::from_str(&text) {
            Ok(address) => Some(address),
            Err(error) => {
                self.fault(key, error.to_string());
                None
            }
        }
    }
}
