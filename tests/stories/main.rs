//! Stories about the decision core: a cluster in a few lines of facts, and what the core does with it.
//!
//! A story starts from a calm cluster of three (I am `a`, a standby of the leader `b`; see [`Picture::calm`]). Each line changes one
//! fact; a line that begins with `->` asks the core and holds its answer: step, reason, text. The memory goes on through a story.
//! A line that begins with `=>` and a member's name holds how that member is explained to people: mine by the last answer, the others'
//! by the snapshot and what they answered.
//! `HOWDAH_UPDATE=1` writes the answers; read the difference before committing it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::panic,
    reason = "tests"
)]

mod picture;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;

use howdah::ha::{Decision, Memory, Step, Why, decide, explain};
use picture::Picture;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/stories")
}

fn files() -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    files
}

/// Runs every story of one file; returns the file with the present answers and the names of the reasons seen.
fn tell(text: &str, file: &str) -> (String, BTreeSet<String>) {
    let mut out = String::new();
    let mut seen = BTreeSet::new();
    let (mut picture, mut memory) = (Picture::calm(), Memory::default());
    let mut last = Why::NotDecidedYet;
    for (number, line) in text.lines().enumerate() {
        if line.starts_with("==") {
            (picture, memory) = (Picture::calm(), Memory::default());
            last = Why::NotDecidedYet;
        } else if let Some(who) = line.strip_prefix("=>") {
            let who = who.split_whitespace().next().expect("whom to explain");
            writeln!(out, "=> {}", explained(&picture, &last, who)).unwrap();
            continue;
        } else if line.starts_with("->") {
            let decision = decide(&picture.obs, &memory);
            memory = decision.memory.clone();
            seen.insert(reason(&decision));
            last = decision.why.clone();
            writeln!(out, "-> {}", answer(&decision)).unwrap();
            continue;
        } else if !line.trim().is_empty() && !line.starts_with('#') {
            picture
                .change(line)
                .unwrap_or_else(|error| panic!("{file}:{}: {error}: {line}", number + 1));
        }
        writeln!(out, "{line}").unwrap();
    }
    (out, seen)
}

fn explained(picture: &Picture, last: &Why, who: &str) -> String {
    let obs = &picture.obs;
    let explanation = if obs.me.as_str() == who {
        explain::own(obs, last)
    } else {
        let cluster = obs.cluster().expect("the store answers");
        let (name, member) = cluster
            .members
            .iter()
            .find(|(name, _)| name.as_str() == who)
            .expect("a member");
        let peers = obs.peers.as_deref().unwrap_or_default();
        let answer = peers
            .iter()
            .find(|peer| peer.name == *name)
            .map(|peer| peer.answer.as_ref());
        explain::of_other(cluster, member, answer)
    };
    match explanation.waits_for {
        Some(what) => format!("{} | waits for {what}", explanation.sentence),
        None => explanation.sentence,
    }
}

fn answer(decision: &Decision) -> String {
    format!(
        "{} | {} | {}",
        step(&decision.step),
        reason(decision),
        decision.why
    )
}

/// The step without the noise of addresses.
fn step(step: &Step) -> String {
    if let Step::AskPeers { whom } | Step::AskFailsafe { whom } = step {
        let verb = match step {
            Step::AskPeers { .. } => "AskPeers",
            _ => "AskFailsafe",
        };
        let names: Vec<String> = whom
            .iter()
            .map(|asked| format!("{}:{}ms", asked.name, asked.patience.as_millis()))
            .collect();
        return format!("{verb} {}", names.join(" "));
    }
    let mut text = format!("{step:?}");
    for name in ["a", "b", "c"] {
        text = text.replace(
            &format!("Member {{ name: MemberName(\"{name}\"), conn_url: \"postgres://{name}\" }}"),
            name,
        );
        text = text.replace(&format!("MemberName(\"{name}\")"), name);
    }
    text
}

fn reason(decision: &Decision) -> String {
    let text = format!("{:?}", decision.why);
    text.split([' ', '{', '(']).next().unwrap().to_owned()
}

#[test]
fn stories_have_their_endings() {
    let update = std::env::var("HOWDAH_UPDATE").is_ok_and(|value| value == "1");
    let mut wrong = String::new();
    for path in files() {
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let (now, _) = tell(&text, &file);
        if update {
            std::fs::write(&path, now).unwrap();
            continue;
        }
        for (number, (old, new)) in text.lines().zip(now.lines()).enumerate() {
            if old != new {
                writeln!(
                    wrong,
                    "{file}:{}\n  expected {old}\n  got      {new}",
                    number + 1
                )
                .unwrap();
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{wrong}\nHOWDAH_UPDATE=1 rewrites the answers"
    );
}

/// A branch without a story is a branch nobody has thought through.
#[test]
fn every_reason_has_a_story() {
    let source = include_str!("../../src/ha/decision.rs");
    let body = source
        .split("pub enum Why {")
        .nth(1)
        .unwrap()
        .split("\n}")
        .next()
        .unwrap();
    let all: BTreeSet<String> = body
        .lines()
        .filter(|line| {
            line.starts_with("    ") && line.chars().nth(4).is_some_and(char::is_uppercase)
        })
        .map(|line| {
            line.trim()
                .split([' ', ',', '{'])
                .next()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert!(
        all.len() > 50,
        "the reasons could not be read from the source"
    );
    let mut seen: BTreeSet<String> = ["NotDecidedYet".to_owned()].into();
    for path in files() {
        let text = std::fs::read_to_string(&path).unwrap();
        seen.extend(tell(&text, &path.to_string_lossy()).1);
    }
    let missing: Vec<&String> = all.difference(&seen).collect();
    assert!(missing.is_empty(), "reasons without a story: {missing:?}");
}
