//! `tests/sections.md`: where each section of the specification lives in the code, and which test covers it. The table is held to the
//! source: whoever moves a function or drops a test has to say where the section lives now.

use std::collections::BTreeSet;
use std::path::Path;

const TABLE: &str = "tests/sections.md";

/// What the row of a heading without text of its own says, twice.
const CHAPTER: &str = "its subsections";

/// What a cell without any name begins with; the reason follows.
const NOTHING: &str = "none: ";

/// The chapters of each part of the table, with the number of their subsections.
const PARTS: [(&str, &[(&str, u32)]); 3] = [
    (
        "ha.md",
        &[
            ("1", 3),
            ("2", 5),
            ("3", 3),
            ("4", 0),
            ("5", 14),
            ("6", 7),
            ("7", 4),
            ("8", 0),
            ("9", 4),
            ("10", 3),
            ("11", 0),
            ("12", 9),
            ("13", 5),
            ("14", 0),
            ("15", 0),
            ("16", 3),
            ("17", 0),
            ("18", 0),
            ("19", 0),
            ("20", 0),
            ("21", 0),
            ("22", 3),
            ("23", 6),
            ("24", 0),
            ("25", 0),
        ],
    ),
    ("ha.md §24", &[("W", 23)]),
    (
        "postgres-management.md",
        &[
            ("1", 3),
            ("2", 2),
            ("3", 4),
            ("4", 4),
            ("5", 0),
            ("6", 4),
            ("7", 5),
            ("8", 2),
            ("9", 4),
            ("10", 6),
            ("11", 6),
            ("12", 7),
            ("13", 0),
            ("14", 0),
            ("15", 0),
            ("16", 0),
            ("17", 0),
            ("A", 0),
        ],
    ),
];

struct Row {
    line: usize,
    part: String,
    number: String,
    code: String,
    test: String,
}

impl Row {
    fn section(&self) -> String {
        format!("{} {}", self.part, self.number)
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(root().join(path)).ok()
}

/// The rows, and what is wrong with their form.
fn rows(text: &str) -> (Vec<Row>, Vec<String>) {
    let (mut rows, mut wrong) = (Vec::new(), Vec::new());
    let mut part = String::new();
    for (index, text) in text.lines().enumerate() {
        let line = index + 1;
        if let Some(heading) = text.strip_prefix("## ") {
            part = heading.to_owned();
        }
        let Some(cells) = text.strip_prefix('|').and_then(|it| it.strip_suffix('|')) else {
            continue;
        };
        let cells: Vec<&str> = cells.split('|').map(str::trim).collect();
        if cells.iter().all(|cell| cell.starts_with("---")) || cells.first() == Some(&"section") {
            continue;
        }
        let [section, code, test] = cells[..] else {
            wrong.push(format!("{TABLE}:{line}: {} cells, not 3", cells.len()));
            continue;
        };
        let Some((number, title)) = section.split_once(' ') else {
            wrong.push(format!("{TABLE}:{line}: a number and a title are wanted"));
            continue;
        };
        if [title, code, test]
            .iter()
            .any(|cell| cell.trim().is_empty())
        {
            wrong.push(format!("{TABLE}:{line}: an empty cell"));
        }
        rows.push(Row {
            line,
            part: part.clone(),
            number: number.to_owned(),
            code: code.to_owned(),
            test: test.to_owned(),
        });
    }
    (rows, wrong)
}

/// Every section that the specification has.
fn sections() -> Vec<String> {
    let mut all = Vec::new();
    for (part, chapters) in PARTS {
        for (chapter, subsections) in chapters {
            if *chapter != "W" {
                all.push(format!("{part} {chapter}"));
            }
            let prefix = if *chapter == "W" {
                String::new()
            } else {
                format!("{chapter}.")
            };
            all.extend((1..=*subsections).map(|number| format!("{part} {prefix}{number}")));
        }
    }
    all
}

fn has_subsections(row: &Row) -> bool {
    PARTS
        .iter()
        .filter(|(part, _)| *part == row.part)
        .flat_map(|(_, chapters)| chapters.iter())
        .any(|(chapter, subsections)| *chapter == row.number && *subsections > 0)
}

/// The names of a cell: file and name. `::name` alone is in the file that was named before it.
fn names(cell: &str) -> Vec<(String, String)> {
    let mut file = String::new();
    let mut names = Vec::new();
    for quoted in cell.split('`').skip(1).step_by(2) {
        if let Some((path, name)) = quoted.split_once("::") {
            if !path.is_empty() {
                file = if path.starts_with("tests/") {
                    path.to_owned()
                } else {
                    format!("src/{path}")
                };
            }
            names.push((file.clone(), name.to_owned()));
        }
    }
    names
}

fn is_word_at(text: &str, at: usize, length: usize) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    !text[..at].ends_with(is_part) && !text[at + length..].starts_with(is_part)
}

/// Whether the source defines something of this name.
fn defines(source: &str, name: &str) -> bool {
    ["fn", "struct", "enum", "trait", "const", "static", "type"]
        .iter()
        .map(|keyword| format!("{keyword} {name}"))
        .any(|wanted| {
            source
                .match_indices(&wanted)
                .any(|(at, _)| is_word_at(source, at, wanted.len()))
        })
}

/// Whether it is a test that runs: a function with the attribute, a story, or a case of a tier that has a list of its own.
fn is_test(path: &str, source: &str, name: &str) -> bool {
    if path.ends_with(".txt") {
        let title = format!("== {name}");
        return source.lines().any(|line| line == title);
    }
    match path {
        "tests/pid1/stories.rs" => {
            return source.contains(&format!("\"{name}\"")) && defines(source, name);
        }
        "tests/dcs/suite.rs" => {
            return source.contains(&format!("\n        {name},\n")) && defines(source, name);
        }
        _ => {}
    }
    let wanted = format!("fn {name}(");
    let mut attributed = false;
    for line in source.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            attributed = true;
        } else if line.contains(&wanted) && attributed {
            return true;
        } else if !line.starts_with("#[") && !line.starts_with("//") {
            attributed = false;
        }
    }
    false
}

/// What is wrong with a cell.
fn judge(row: &Row, cell: &str, are_tests: bool) -> Vec<String> {
    let place = format!("{TABLE}:{}: {}", row.line, row.section());
    if cell == CHAPTER {
        return if has_subsections(row) && row.code == row.test {
            Vec::new()
        } else {
            vec![format!("{place} has text of its own")]
        };
    }
    let names = names(cell);
    if let Some(reason) = cell.strip_prefix(NOTHING) {
        let stands = names.is_empty() && reason.len() >= 20;
        return (!stands)
            .then(|| format!("{place}: a reason is wanted instead of names: {cell}"))
            .into_iter()
            .collect();
    }
    if names.is_empty() {
        return vec![format!("{place}: no name in {cell:?}")];
    }
    names
        .iter()
        .filter_map(|(path, name)| {
            let Some(source) = read(path) else {
                return Some(format!("{place}: {path} does not exist"));
            };
            let found = if are_tests {
                is_test(path, &source, name)
            } else {
                path.starts_with("src/") && defines(&source, name)
            };
            let what = if are_tests { "test" } else { "definition" };
            (!found).then(|| format!("{place}: there is no {what} {name} in {path}"))
        })
        .collect()
}

#[test]
fn every_section_of_the_specification_has_code_and_a_test() {
    let text = read(TABLE).unwrap_or_default();
    let (rows, mut wrong) = rows(&text);
    let all = sections();
    let mut seen = BTreeSet::new();
    for row in &rows {
        let section = row.section();
        if !all.contains(&section) {
            wrong.push(format!(
                "{TABLE}:{}: there is no section {section}",
                row.line
            ));
        }
        if !seen.insert(section.clone()) {
            wrong.push(format!("{TABLE}:{}: {section} again", row.line));
        }
        if row.code.starts_with(NOTHING) != row.test.starts_with(NOTHING) {
            wrong.push(format!(
                "{TABLE}:{}: {section}: code without a test, or the reverse",
                row.line
            ));
        }
        wrong.extend(judge(row, &row.code, false));
        wrong.extend(judge(row, &row.test, true));
    }
    for section in &all {
        if !seen.contains(section) {
            wrong.push(format!("{section} has no row"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
