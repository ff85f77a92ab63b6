//! What must not stand in any file.

use crate::texts;

/// Files that people read or run, without what others generate.
fn everything() -> Vec<(String, String)> {
    let mut all = Vec::new();
    for place in [
        "src",
        "tests",
        "docker",
        "compose",
        "Makefile",
        "Cargo.toml",
        "README.md",
        "ARCHITECTURE.md",
    ] {
        let found = texts(place);
        assert!(!found.is_empty(), "{place} is not there");
        all.extend(found);
    }
    all
}

fn check(rule: &str, is_wrong: impl Fn(&str, &str) -> bool) {
    let mut found = Vec::new();
    for (path, text) in everything() {
        for (number, line) in text.lines().enumerate() {
            if is_wrong(&path, line) {
                found.push(format!("{path}:{}: {rule}: {}", number + 1, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Split, so that this file does not name what it forbids. Patroni's samples say `#FIXME`, which is no comment of ours.
#[test]
fn nothing_is_left_for_later() {
    let words = [["TO", "DO"].concat(), ["FIX", "ME"].concat()];
    let macros = [["to", "do!("].concat(), ["unimple", "mented!("].concat()];
    check("do it or drop it", |path, line| {
        let remark = if path.ends_with(".rs") {
            line.split_once("//").map_or("", |(_, remark)| remark)
        } else {
            line
        };
        words.iter().any(|word| {
            remark
                .replace(&format!("#{word}"), "")
                .contains(word.as_str())
        }) || macros.iter().any(|word| line.contains(word.as_str()))
    });
}

/// The tree builds anywhere: no path of the machine it was written on, no host that only that machine knows.
#[test]
fn no_path_of_one_machine() {
    let mut paths: Vec<String> = ["work", "root"]
        .map(|folder| format!("/{folder}/"))
        .to_vec();
    let here = env!("CARGO_MANIFEST_DIR");
    if here.matches('/').count() > 1 {
        paths.push(here.to_owned());
    }
    check("a path of one machine", |_, line| {
        paths.iter().any(|path| line.contains(path.as_str()))
    });
}

#[test]
fn only_hosts_of_examples() {
    const EXAMPLES: [&str; 4] = ["example.org", "example.com", "example", "localhost"];
    check("a host on the network", |_, line| {
        line.split("://").skip(1).any(|rest| {
            let rest = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
            let host: String = rest
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-'))
                .collect();
            let top = host.rsplit('.').next().unwrap_or_default();
            let is_domain =
                host.contains('.') && top.len() > 1 && top.chars().all(|c| c.is_ascii_alphabetic());
            is_domain && !EXAMPLES.iter().any(|known| host.ends_with(known))
        })
    });
}

/// Images come from the names that everybody's Docker resolves, or are built here.
#[test]
fn no_registry_is_named() {
    check("an image of a particular registry", |path, line| {
        let image = line.trim().strip_prefix("image:").or_else(|| {
            let is_recipe = path.ends_with("Dockerfile");
            line.strip_prefix("FROM ").filter(|_| is_recipe)
        });
        (path.starts_with("compose") || path.starts_with("docker"))
            && image.is_some_and(|image| image.contains('/'))
    });
}
