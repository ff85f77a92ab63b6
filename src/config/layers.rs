//! The layers of the local configuration, lowest first: defaults, files (or `PATRONI_CONFIGURATION`), environment variables
//! (spec/configuration.md §2). figment holds them, so that every value knows which layer it came from.
//!
//! A later layer is *patched* onto the earlier ones: maps merge, null removes. Dynamic configuration is not a layer here:
//! `effective` lays local settings over it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Map as FigmentMap};
use figment::{Figment, Metadata, Profile, Provider};
use serde_json::{Map, Value};

use super::variables::{self, STORE_SECTIONS};
use super::{Fault, env, value, yaml};

/// One source of settings.
#[derive(Clone)]
struct Layer {
    /// How messages call it: a file's path, `PATRONI_CONFIGURATION`, `environment`, `defaults`.
    name: String,
    settings: Map<String, Value>,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> figment::Result<FigmentMap<Profile, Dict>> {
        let value = figment::value::Value::serialize(&self.settings)?;
        let dict = value.into_dict().unwrap_or_default();
        Ok(Profile::Default.collect(dict))
    }
}

/// The name of the environment's layer.
const ENVIRONMENT: &str = "environment";

/// What was read before any merging, kept so that a reload reads only the files again.
#[derive(Clone)]
pub(crate) struct Sources {
    /// The file or directory of the command line.
    pub path: Option<PathBuf>,
    /// The environment, read once.
    pub environment: env::Reading,
}

/// The merged layers.
pub(crate) struct Layers {
    /// Without defaults: what files and environment say.
    pub local: Map<String, Value>,
    /// With the defaults of the table below.
    pub full: Map<String, Value>,
    /// Whether a file or `PATRONI_CONFIGURATION` took part.
    pub from_file: bool,
    figment: Figment,
    origins: BTreeMap<String, String>,
}

impl Layers {
    /// How a fault calls a key: the variable that set it, else the key and its file.
    pub(crate) fn name_of(&self, key: &str) -> String {
        if let Some(variable) = self.variable_of(key) {
            return variable.to_owned();
        }
        match self.figment.find_metadata(key) {
            Some(layer) if layer.name != ENVIRONMENT && layer.name != "defaults" => {
                format!("{key} ({})", layer.name)
            }
            _ => key.to_owned(),
        }
    }

    /// The variable that set a key or a part of it.
    pub(crate) fn variable_of(&self, key: &str) -> Option<&str> {
        let mut key = key;
        loop {
            if let Some(name) = self.origins.get(key) {
                return Some(name);
            }
            key = key.rsplit_once('.')?.0;
        }
    }
}

/// Reads the files of `path`, in the order in which they are laid over each other.
fn files(path: &Path, faults: &mut Vec<Fault>) -> Vec<Layer> {
    let shown = path.display().to_string();
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => {
            faults.push(Fault::new(
                &shown,
                format!("cannot read the configuration: {error}"),
            ));
            return Vec::new();
        }
    };
    let paths = if metadata.is_file() {
        vec![path.to_owned()]
    } else if metadata.is_dir() {
        match std::fs::read_dir(path) {
            Ok(entries) => {
                let mut paths: Vec<PathBuf> = entries
                    .filter_map(Result::ok)
                    .map(|entry| entry.path())
                    .filter(|path| {
                        path.extension().is_some_and(|e| e == "yml" || e == "yaml")
                            && path.is_file()
                    })
                    .collect();
                paths.sort();
                paths
            }
            Err(error) => {
                faults.push(Fault::new(
                    &shown,
                    format!("cannot list the configuration directory: {error}"),
                ));
                return Vec::new();
            }
        }
    } else {
        faults.push(Fault::new(
            &shown,
            "config path is neither directory nor file",
        ));
        return Vec::new();
    };
    let mut layers = Vec::new();
    for path in paths {
        let name = path.display().to_string();
        match std::fs::read_to_string(&path) {
            Err(error) => faults.push(Fault::new(
                &name,
                format!("cannot read the configuration: {error}"),
            )),
            Ok(text) => match yaml::parse(&text) {
                Ok(Value::Object(settings)) => layers.push(Layer { name, settings }),
                Ok(_) => faults.push(Fault::new(
                    &name,
                    "invalid config file: it does not contain a map",
                )),
                Err(error) => faults.push(Fault::new(&name, error.to_string())),
            },
        }
    }
    layers
}

/// Reads the files again and merges everything.
pub(crate) fn merge(sources: &Sources, faults: &mut Vec<Fault>) -> Layers {
    let mut stack = Vec::new();
    if let Some(path) = &sources.path {
        stack.extend(files(path, faults));
    }
    // Patroni: a file on the command line hides the variable. With a warning here.
    if let (None, Some(document)) = (&sources.path, &sources.environment.document) {
        stack.push(Layer {
            name: "PATRONI_CONFIGURATION".to_owned(),
            settings: document.clone(),
        });
    }
    let from_file = !stack.is_empty();
    stack.push(Layer {
        name: ENVIRONMENT.to_owned(),
        settings: sources.environment.settings.clone(),
    });

    let mut figment = Figment::new();
    let mut local = Map::new();
    for (position, layer) in stack.into_iter().enumerate() {
        if position == 0 {
            local = layer.settings.clone();
        } else {
            value::patch(&mut local, &layer.settings);
        }
        figment = figment.merge(layer);
    }
    let defaults = defaults(&local);
    // Which layer is the highest is figment's business; what a null removes is the contract's: see `value::patch`.
    let figment = figment.join(Layer {
        name: "defaults".to_owned(),
        settings: defaults.clone(),
    });
    let mut full = defaults;
    value::patch(&mut full, &without_nulls(&local));
    Layers {
        local,
        full,
        from_file,
        figment,
        origins: sources.environment.origins.clone(),
    }
}

/// Defaults of the table; store sections only where the section is in use.
fn defaults(local: &Map<String, Value>) -> Map<String, Value> {
    let mut defaults = Map::new();
    for row in variables::table() {
        let section = row.key.split('.').next().unwrap_or_default();
        if row.alias.is_some()
            || row.is_dynamic()
            || (STORE_SECTIONS.contains(&section) && !local.contains_key(section))
        {
            continue;
        }
        if let Some(preset) = env::preset(row) {
            env::put(&mut defaults, &row.key, preset);
        }
    }
    defaults
}

/// A null in a file means "not given".
fn without_nulls(map: &Map<String, Value>) -> Map<String, Value> {
    map.iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(key, value)| match value {
            Value::Object(inner) => (key.clone(), Value::Object(without_nulls(inner))),
            other => (key.clone(), other.clone()),
        })
        .collect()
}
