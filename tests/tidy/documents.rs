//! What README.md and ARCHITECTURE.md say is so: variables, files, tests.

use std::path::Path;

use howdah::config::variables::{self, PARAMETER_PREFIX};

use crate::texts;

const BEGIN: &str = "<!-- variables: begin -->\n";
const END: &str = "<!-- variables: end -->\n";

fn readme() -> String {
    texts("README.md").remove(0).1
}

/// `HOWDAH_UPDATE=1` (`make readme`) writes the table.
#[test]
fn the_readme_has_the_table_of_variables() {
    let text = readme();
    let (before, rest) = text
        .split_once(BEGIN)
        .expect("README.md has the mark where the table begins");
    let (table, after) = rest
        .split_once(END)
        .expect("README.md has the mark where the table ends");
    let wanted = variables::reference();
    if std::env::var_os("HOWDAH_UPDATE").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
        std::fs::write(path, format!("{before}{BEGIN}{wanted}{END}{after}")).unwrap();
        return;
    }
    let first = table
        .lines()
        .zip(wanted.lines())
        .find(|(is, should)| is != should);
    assert!(
        table == wanted,
        "the table in README.md is not what `howdah --print-variables` prints; `make readme` writes it. First difference: {first:?}"
    );
}

/// Variables of the contract that some text names: the name and whether only its beginning is given.
fn named(text: &str) -> Vec<(String, bool)> {
    text.match_indices("PATRONI_")
        .filter(|(at, _)| !text[..*at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_'))
        .map(|(at, _)| {
            let rest = &text[at..];
            let end = rest
                .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
                .unwrap_or(rest.len());
            (
                rest[..end].to_owned(),
                rest[end..].starts_with(['*', '<']) || end == "PATRONI_".len(),
            )
        })
        .collect()
}

fn exists(name: &str, is_beginning: bool) -> bool {
    let rows = variables::table();
    if is_beginning {
        return rows.iter().any(|row| row.name.starts_with(name))
            || PARAMETER_PREFIX.starts_with(name);
    }
    name.starts_with(PARAMETER_PREFIX)
        || rows.iter().any(|row| {
            row.name == name
                || (row.secret && name.strip_suffix("_FILE") == Some(row.name.as_str()))
        })
}

/// A misspelt variable in an example is a warning nobody reads.
#[test]
fn every_variable_that_is_named_exists() {
    let mut found = Vec::new();
    let mut seen = 0;
    for place in [
        "README.md",
        "ARCHITECTURE.md",
        "Makefile",
        "compose",
        "docker",
        "tests/chaos",
        "tests/containers",
        "tests/e2e",
        "tests/bench",
    ] {
        for (path, text) in texts(place) {
            for (number, line) in text.lines().enumerate() {
                for (name, is_beginning) in named(line) {
                    seen += 1;
                    if !exists(&name, is_beginning) {
                        found.push(format!(
                            "{path}:{}: there is no variable {name}",
                            number + 1
                        ));
                    }
                }
            }
        }
    }
    assert!(seen > 100, "only {seen} were found");
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// What stands between backticks, with its line.
fn quoted(text: &str) -> Vec<(usize, &str)> {
    text.lines()
        .enumerate()
        .flat_map(|(number, line)| {
            line.split('`')
                .skip(1)
                .step_by(2)
                .map(move |part| (number + 1, part))
        })
        .collect()
}

/// A guarantee names the test that holds it: `tests/folder/file.rs::name`.
#[test]
fn tests_that_are_named_exist() {
    let text = readme();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    for (line, part) in quoted(&text) {
        let Some((file, name)) = part.split_once(".rs::") else {
            continue;
        };
        seen += 1;
        let source = std::fs::read_to_string(root.join(format!("{file}.rs"))).unwrap_or_default();
        assert!(
            source.contains(&format!("fn {name}(")),
            "README.md:{line}: there is no test {part}"
        );
    }
    assert!(seen > 10, "only {seen} were found");
}

/// The map must not name what has moved. Names may leave out `src/`, and the folder when the line before gives it.
#[test]
fn files_that_are_named_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for document in ["README.md", "ARCHITECTURE.md"] {
        let text = texts(document).remove(0).1;
        for (line, part) in quoted(&text) {
            let is_file = [".rs", ".yml", ".sh", ".cfg"]
                .iter()
                .any(|ending| part.ends_with(ending))
                && part
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "./_-".contains(c));
            let is_folder =
                part.ends_with('/') && part.starts_with(|c: char| c.is_ascii_alphabetic());
            if !is_file && !is_folder {
                continue;
            }
            assert!(
                ["", "src"]
                    .iter()
                    .any(|base| root.join(base).join(part).exists()),
                "{document}:{line}: {part} does not exist"
            );
        }
    }
}
