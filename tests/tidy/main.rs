//! Rules about the source that the compiler does not know.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod documents;
mod sections;
mod text;

use std::path::{Path, PathBuf};

/// Every file below a folder of the repository: its path and text.
fn texts(folder: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = vec![root.join(folder)];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(
                std::fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else if let Ok(text) = std::fs::read_to_string(&path) {
            let name = path.strip_prefix(root).unwrap();
            found.push((name.to_string_lossy().into_owned(), text));
        }
    }
    found.sort();
    found
}

fn sources(folder: &str) -> Vec<(String, String)> {
    let mut found = texts(folder);
    found.retain(|(path, _)| path.ends_with(".rs"));
    found
}

/// The files of a module: `src/ha.rs` and everything below `src/ha/`.
fn module(name: &str) -> Vec<(String, String)> {
    let (file, folder) = (format!("src/{name}.rs"), format!("src/{name}/"));
    sources("src")
        .into_iter()
        .filter(|(path, _)| *path == file || path.starts_with(&folder))
        .collect()
}

/// Lines of code with a banned word; comments may say what they like.
fn offences(files: &[(String, String)], banned: &[&str]) -> Vec<String> {
    let mut offences = Vec::new();
    for (path, text) in files {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap();
            if let Some(word) = banned.iter().find(|word| code.contains(**word)) {
                offences.push(format!("{path}:{}: {word}", number + 1));
            }
        }
    }
    offences
}

#[test]
fn the_core_is_pure() {
    let core = module("ha");
    assert!(core.len() > 5, "the core was not found");
    let banned = [
        "tokio",
        "async fn",
        ".await",
        "std::fs",
        "std::net",
        "serde",
        "tracing",
        "clock::",
        "rand::",
        "SystemTime",
        "Instant",
    ];
    let offences = offences(&core, &banned);
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}

#[test]
fn no_module_is_called_mod() {
    let files = [sources("src"), sources("tests")].concat();
    let offences: Vec<_> = files
        .iter()
        .filter(|(path, _)| path.ends_with("/mod.rs"))
        .map(|(path, _)| path)
        .collect();
    assert!(offences.is_empty(), "{offences:?}");
}

/// Who may not use whom. `agent` knows all; these do not know each other.
#[test]
fn layers_point_one_way() {
    let rules: [(&str, &[&str]); 6] = [
        (
            "dcs",
            &["crate::postgres", "crate::api", "crate::agent", "crate::ha"],
        ),
        ("postgres", &["crate::dcs", "crate::api", "crate::agent"]),
        ("api", &["crate::postgres", "crate::agent", "crate::ha"]),
        (
            "ha",
            &[
                "crate::dcs",
                "crate::postgres",
                "crate::api",
                "crate::agent",
                "crate::node",
            ],
        ),
        (
            "cluster",
            &["crate::postgres", "crate::api", "crate::agent", "crate::ha"],
        ),
        (
            "init",
            &[
                "crate::dcs",
                "crate::postgres",
                "crate::api",
                "crate::agent",
                "crate::ha",
                "crate::cluster",
                "crate::config",
            ],
        ),
    ];
    let offences: Vec<String> = rules
        .iter()
        .flat_map(|(name, banned)| offences(&module(name), banned))
        .collect();
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}

/// One clock, one reader of the environment: what else is there comes as an argument.
#[test]
fn clocks_and_environment_have_one_reader() {
    let rules: [(&[&str], &[&str]); 2] = [
        (
            &["src/clock.rs"],
            &[
                "SystemTime::now",
                "Instant::now",
                "Utc::now",
                "Local::now",
                "clock_gettime",
            ],
        ),
        // init's guard leaves a private variable for its child.
        (
            &["src/config/env.rs", "src/init/guard.rs"],
            &["env::var", "env::set_var", "env::remove_var"],
        ),
    ];
    let mut found = Vec::new();
    for (readers, banned) in rules {
        let mut others = sources("src");
        let all = others.len();
        others.retain(|(path, _)| !readers.contains(&path.as_str()));
        assert_eq!(others.len() + readers.len(), all, "{readers:?} have moved");
        found.extend(offences(&others, banned));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// init stands alone: it must work when everything else does not.
#[test]
fn init_uses_types_and_the_clock_only() {
    let mut found = Vec::new();
    for (path, text) in module("init") {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap();
            for used in code.split("crate::").skip(1) {
                let name: String = used
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect();
                if !["init", "types", "clock"].contains(&name.as_str()) {
                    found.push(format!("{path}:{}: init uses crate::{name}", number + 1));
                }
            }
        }
    }
    found.extend(offences(&module("init"), &["tokio", "async fn"]));
    assert!(found.is_empty(), "{}", found.join("\n"));
}
