//! `edit-config`, `pause`, `resume`, `demote-cluster`, `promote-cluster`: the dynamic configuration from the command line.

use std::time::Duration;

use clap::Args;
use hyper::Method;
use serde_json::{Map, Value, json};

use crate::clock;
use crate::cluster::{Cluster, Member, wire};
use crate::config::{self, value};
use crate::dcs::{Document, Expect, Write};
use crate::peers::{Answer, CallError};
use crate::topology;
use crate::types::{PgState, Role};

use super::leader::leader_role;
use super::members::local_time;
use super::{ClusterArgument, Done, Failure, Session, Target, error, yaml};

const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub(super) struct Pause {
    #[command(flatten)]
    cluster: ClusterArgument,
    /// Wait until all members know.
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, Args)]
pub(super) struct EditConfig {
    #[command(flatten)]
    cluster: ClusterArgument,
    /// Do not show the changes.
    #[arg(short, long)]
    quiet: bool,
    /// Set a.b.c=value; null removes.
    #[arg(short, long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Set a PostgreSQL parameter.
    #[arg(short, long = "pg", value_name = "PARAMETER=VALUE")]
    pg: Vec<String>,
    /// Merge a YAML file; - for standard input.
    #[arg(long, value_name = "FILE")]
    apply: Option<String>,
    /// Replace everything by a YAML file; - for standard input.
    #[arg(long, value_name = "FILE")]
    replace: Option<String>,
    /// Do not ask.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
pub(super) struct DemoteCluster {
    /// Name of the cluster.
    cluster: Option<String>,
    /// Address of the remote primary.
    #[arg(long)]
    host: Option<String>,
    /// Its port.
    #[arg(long)]
    port: Option<u16>,
    /// Command that restores WAL.
    #[arg(long)]
    restore_command: Option<String>,
    /// Slot on the remote primary.
    #[arg(long)]
    primary_slot_name: Option<String>,
    /// Do not ask.
    #[arg(long)]
    force: bool,
    /// Seconds to wait for the end of it; without it, for ever.
    #[arg(long)]
    timeout: Option<u64>,
}

#[derive(Debug, Args)]
pub(super) struct PromoteCluster {
    /// Name of the cluster.
    cluster: Option<String>,
    /// Do not ask.
    #[arg(long)]
    force: bool,
    /// Seconds to wait for the end of it; without it, for ever.
    #[arg(long)]
    timeout: Option<u64>,
}

/// PATCH on the first member that answers, leader first.
async fn patch_config(target: &Target, cluster: &Cluster, patch: &Value) -> Option<Answer> {
    let leader = cluster.leader_member();
    let others = cluster
        .members
        .values()
        .filter(|member| leader.is_none_or(|leader| leader.name != member.name));
    for member in leader.into_iter().chain(others) {
        match patch_member(target, member, patch).await {
            Ok(answer) => return Some(answer),
            Err(error) => tracing::warn!("{}: {error}", member.name),
        }
    }
    None
}

async fn patch_member(
    target: &Target,
    member: &Member,
    patch: &Value,
) -> Result<Answer, CallError> {
    let Some(api_url) = &member.api_url else {
        return Err(CallError::NotSent(
            "no REST address in its member document".to_owned(),
        ));
    };
    target
        .client
        .call(
            Method::PATCH,
            api_url,
            "config",
            Some(&patch.to_string()),
            PATIENCE,
        )
        .await
}

impl Session<'_> {
    pub(super) async fn pause(&mut self, arguments: Pause, pause: bool) -> Done {
        let target = self.open_default(&arguments.cluster).await?;
        let cluster = target.load().await?;
        if topology::is_paused(&cluster) == pause {
            return error(if pause {
                "Cluster is already paused"
            } else {
                "Cluster is not paused"
            });
        }
        let patch = json!({"pause": if pause { json!(true) } else { Value::Null }});
        let Some(answer) = patch_config(&target, &cluster, &patch).await else {
            return error("Can not find accessible cluster member");
        };
        if answer.status != 200 {
            let verb = if pause { "pause" } else { "resume" };
            self.screen.line(&format!(
                "Failed: {verb} cluster management status code={}, ({})",
                answer.status, answer.body
            ))?;
            return Err(Failure::Refused);
        }
        if arguments.wait {
            self.await_pause(&target, pause).await?;
        }
        self.screen.line(&format!(
            "Success: cluster management is {}",
            if pause { "paused" } else { "resumed" }
        ))
    }

    async fn await_pause(&mut self, target: &Target, pause: bool) -> Done {
        let verb = if pause { "pause" } else { "resume" };
        self.screen.line(&format!(
            "'{verb}' request sent, waiting until it is recognized by all nodes"
        ))?;
        let mut loop_wait = 10;
        let mut stragglers = Vec::new();
        let mut waited = 0;
        while waited <= loop_wait {
            let cluster = target.load().await?;
            loop_wait = Target::loop_wait(&cluster);
            stragglers = cluster
                .members
                .values()
                .filter(|member| member.pause != pause)
                .map(|member| member.name.to_string())
                .collect();
            if stragglers.is_empty() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            waited += 1;
        }
        self.screen.line(&format!(
            "{} members didn't recognized {verb} state after {loop_wait} seconds",
            stragglers.join(", ")
        ))
    }

    pub(super) async fn edit_config(&mut self, arguments: EditConfig) -> Done {
        let target = self.open_default(&arguments.cluster).await?;
        let cluster = target.load().await?;
        let Some(current) = cluster.config else {
            return error(format!(
                "The config key does not exist in the cluster {}",
                target.name
            ));
        };
        let before = yaml::document(&current.data.clone().into());
        let mut data = current.data.clone();
        let untouched = arguments.replace.is_none()
            && arguments.apply.is_none()
            && arguments.set.is_empty()
            && arguments.pg.is_empty();
        if untouched {
            data = self.edit(&target.name, &before)?;
        }
        if let Some(file) = &arguments.replace {
            let text = self.read_source(file)?;
            data = Map::new();
            value::patch(&mut data, &mapping(&text, file)?);
        }
        if let Some(file) = &arguments.apply {
            let text = self.read_source(file)?;
            value::patch(&mut data, &mapping(&text, file)?);
        }
        for setting in &arguments.set {
            set(&mut data, setting)?;
        }
        for setting in &arguments.pg {
            set(&mut data, &format!("postgresql.parameters.{setting}"))?;
        }
        if value::same_map(&current.data, &data) {
            return self.screen.line("Not changed");
        }
        if !arguments.quiet {
            let diff = unified_diff(&before, &yaml::document(&data.clone().into()));
            let diff = if self.screen.colours {
                coloured(&diff)
            } else {
                diff
            };
            self.screen.text(&diff)?;
        }
        let from_stdin = [&arguments.apply, &arguments.replace]
            .iter()
            .any(|source| source.as_deref() == Some("-"));
        if !arguments.force {
            if from_stdin {
                return self.screen.line("Use --force option to apply changes");
            }
            if !self.screen.confirm("Apply these changes?")? {
                return Ok(());
            }
        }
        match target
            .store
            .put(
                Document::Config,
                &wire::config_text(&data),
                Expect::At(current.revision),
            )
            .await
        {
            Write::Done(_) => self.screen.line("Configuration changed"),
            Write::Refused(_) => error("Config modification aborted due to concurrent changes"),
            Write::Unknown(why) => Err(Failure::from(why)),
        }
    }

    fn read_source(&mut self, file: &str) -> Result<String, Failure> {
        if file == "-" {
            return self.screen.read_all();
        }
        std::fs::read_to_string(file).or_else(|why| error(format!("can not read {file}: {why}")))
    }

    /// Lets the user edit the text in `$EDITOR`, `editor` or `vi`.
    fn edit(&mut self, cluster: &str, text: &str) -> Result<Map<String, Value>, Failure> {
        let variables = self.environment.variables();
        let chosen = variables
            .get("EDITOR")
            .filter(|editor| !editor.trim().is_empty())
            .cloned();
        let in_path = |name: &&str| {
            let path = variables.get("PATH").cloned().unwrap_or_default();
            std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
        };
        let Some(editor) = chosen.or_else(|| {
            ["editor", "vi"]
                .iter()
                .find(|name| in_path(name))
                .map(|name| (*name).to_owned())
        }) else {
            return error("EDITOR environment variable is not set. editor or vi are not available");
        };
        let folder = variables.get("TMPDIR").map_or("/tmp", String::as_str);
        let name = format!(
            "{}-config-{:08x}.yaml",
            cluster.replace('/', "_"),
            rand::random::<u32>()
        );
        let file = std::path::Path::new(folder).join(name);
        let trouble =
            |why: std::io::Error| Failure::Error(format!("can not edit {}: {why}", file.display()));
        {
            use std::io::Write as _;
            use std::os::unix::fs::OpenOptionsExt as _;
            // The configuration may hold passwords, and the folder is everybody's.
            let mut new = std::fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&file)
                .map_err(trouble)?;
            new.write_all(text.as_bytes()).map_err(trouble)?;
        }
        let mut words = split_words(&editor).into_iter();
        let program = words.next().unwrap_or_default();
        let status = std::process::Command::new(program)
            .args(words)
            .arg(&file)
            .status();
        let edited = std::fs::read_to_string(&file);
        let _ = std::fs::remove_file(&file);
        match status {
            Ok(status) if status.success() => {
                mapping(&edited.map_err(trouble)?, "the edited configuration")
            }
            Ok(status) => error(format!(
                "Editor exited with return code {}",
                status.code().unwrap_or(-1)
            )),
            Err(why) => error(format!("can not start the editor {editor}: {why}")),
        }
    }

    pub(super) async fn demote_cluster(&mut self, arguments: DemoteCluster) -> Done {
        if arguments.host.is_none()
            && arguments.port.is_none()
            && arguments.restore_command.is_none()
        {
            return error("At least --host, --port or --restore-command should be specified");
        }
        let mut section = Map::new();
        for (key, value) in [
            ("host", arguments.host.map(Value::from)),
            ("port", arguments.port.map(Value::from)),
            (
                "primary_slot_name",
                arguments.primary_slot_name.map(Value::from),
            ),
            (
                "restore_command",
                arguments.restore_command.map(Value::from),
            ),
        ] {
            if let Some(value) = value {
                section.insert(key.to_owned(), value);
            }
        }
        self.change_kind(
            arguments.cluster,
            section.into(),
            arguments.force,
            Kind {
                verb: "demote",
                noun: "demotion",
                past: "demoted",
                role: Role::StandbyLeader,
                timeout: arguments.timeout,
            },
        )
        .await
    }

    pub(super) async fn promote_cluster(&mut self, arguments: PromoteCluster) -> Done {
        let kind = Kind {
            verb: "promote",
            noun: "promotion",
            past: "promoted",
            role: Role::Primary,
            timeout: arguments.timeout,
        };
        self.change_kind(arguments.cluster, Value::Null, arguments.force, kind)
            .await
    }

    async fn change_kind(
        &mut self,
        name: Option<String>,
        section: Value,
        force: bool,
        kind: Kind,
    ) -> Done {
        let Kind {
            verb,
            noun,
            past,
            role,
            timeout,
        } = kind;
        let target = self.open(name.as_deref(), None).await?;
        let cluster = target.load().await?;
        let Some(leader) = cluster.leader_member() else {
            return error(format!("Cluster has no leader, {noun} is not possible"));
        };
        if leader.role == Some(role) {
            return error("Cluster is already in the required state");
        }
        self.screen.line("Current cluster topology")?;
        self.print_members(&target, &cluster)?;
        if !force
            && !self.screen.confirm(&format!(
                "Are you sure you want to {verb} {} cluster?",
                target.name
            ))?
        {
            return error(format!("Aborted cluster {noun}"));
        }
        let failed = match patch_member(&target, leader, &json!({"standby_cluster": section})).await
        {
            Ok(answer) if answer.status == 200 => None,
            Ok(answer) => Some(format!("status code={}, ({})", answer.status, answer.body)),
            Err(why) => Some(why.to_string()),
        };
        if let Some(why) = failed {
            return error(format!("Failed to {verb} {} cluster: {why}", target.name));
        }
        let old = leader.name.clone();
        let begin = clock::now();
        loop {
            if let Some(limit) = timeout
                && clock::now().since(begin) > Duration::from_secs(limit)
            {
                return error(format!(
                    "the {noun} of {} is not over after {limit} seconds; it may still be under way",
                    target.name
                ));
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            let cluster = target.load().await?;
            let now = cluster.leader_member();
            let state = |member: Option<&Member>| {
                member
                    .and_then(|member| member.state)
                    .map_or("", wire::state_text)
            };
            let old_member = cluster.members.get(&old);
            let others = cluster
                .leader
                .as_ref()
                .is_some_and(|leader| leader.name != old);
            let previous = if others {
                format!(", previous leader state: '{}'", state(old_member))
            } else {
                String::new()
            };
            let text = |flag: bool| if flag { "True" } else { "False" };
            let role_text = leader_role(&cluster).map_or("", wire::role_text);
            self.screen.line(&format!(
                "{} cluster is unlocked: {}, leader role: {role_text}, leader state: {}{previous}",
                local_time(0),
                text(cluster.is_unlocked()),
                state(now)
            ))?;
            let runs = |member: Option<&Member>| {
                member.and_then(|member| member.state) == Some(PgState::Running)
            };
            if leader_role(&cluster) == Some(role)
                && runs(now)
                && (role == Role::Primary || runs(old_member))
            {
                self.screen
                    .line(&format!("{} cluster is successfully {past}", local_time(0)))?;
                return self.print_members(&target, &cluster);
            }
        }
    }
}

/// Words and goal of `demote-cluster` and `promote-cluster`.
struct Kind {
    verb: &'static str,
    noun: &'static str,
    past: &'static str,
    role: Role,
    /// Seconds.
    timeout: Option<u64>,
}

fn mapping(text: &str, source: &str) -> Result<Map<String, Value>, Failure> {
    match config::yaml::parse(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => error(format!(
            "{source} must be a YAML mapping; nothing was changed"
        )),
        Err(why) => error(format!(
            "{source} is not valid YAML: line {}, column {}: {}",
            why.line, why.column, why.reason
        )),
    }
}

/// Applies `a.b.c=value`; below `postgresql.parameters` the rest of the path is one key.
fn set(data: &mut Map<String, Value>, setting: &str) -> Done {
    let invalid = || Failure::Error(format!("Invalid parameter setting {setting}"));
    let (path, text) = setting.split_once('=').ok_or_else(invalid)?;
    let new = config::yaml::parse(text).map_err(|_| invalid())?;
    let keys: Vec<&str> = match path.strip_prefix("postgresql.parameters.") {
        Some(parameter) => vec!["postgresql", "parameters", parameter],
        None => path.split('.').collect(),
    };
    if keys.iter().any(|key| key.trim().is_empty()) {
        return Err(invalid());
    }
    set_path(data, &keys, new);
    Ok(())
}

/// Missing parents are made, empty ones pruned.
fn set_path(data: &mut Map<String, Value>, keys: &[&str], new: Value) {
    let [key, rest @ ..] = keys else { return };
    let key = key.trim();
    if rest.is_empty() {
        if new.is_null() {
            data.shift_remove(key);
        } else {
            data.insert(key.to_owned(), new);
        }
        return;
    }
    let child = data
        .entry(key.to_owned())
        .or_insert_with(|| Value::Object(Map::new()));
    if !child.is_object() {
        *child = Value::Object(Map::new());
    }
    if let Value::Object(map) = child {
        set_path(map, rest, new);
        if map.is_empty() {
            data.shift_remove(key);
        }
    }
}

/// Splits like a shell: blanks, quotes, backslashes.
fn split_words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some('\''), c) => word.get_or_insert_default().push(c),
            (_, '\\') => word.get_or_insert_default().extend(chars.next()),
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// Removed lines red, added ones green, positions cyan.
fn coloured(diff: &str) -> String {
    let colour = |line: &str| match line.as_bytes().first() {
        Some(b'-') => format!("\x1b[31m{line}\x1b[0m\n"),
        Some(b'+') => format!("\x1b[32m{line}\x1b[0m\n"),
        Some(b'@') => format!("\x1b[36m{line}\x1b[0m\n"),
        _ => format!("{line}\n"),
    };
    diff.lines().map(colour).collect()
}

/// Lines with three lines of context, headers without names.
fn unified_diff(old: &str, new: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    // Longest common subsequence, from the end.
    let mut common = vec![vec![0_usize; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] = if old[i] == new[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    // (mark, text, old line, new line)
    let mut lines: Vec<(char, &str, usize, usize)> = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            lines.push((' ', old[i], i, j));
            (i, j) = (i + 1, j + 1);
        } else if i < old.len() && (j == new.len() || common[i + 1][j] >= common[i][j + 1]) {
            lines.push(('-', old[i], i, j));
            i += 1;
        } else {
            lines.push(('+', new[j], i, j));
            j += 1;
        }
    }
    let changed: Vec<usize> = lines
        .iter()
        .enumerate()
        .filter(|(_, line)| line.0 != ' ')
        .map(|(number, _)| number)
        .collect();
    let mut out = String::from("--- \n+++ \n");
    let mut at = 0;
    while at < changed.len() {
        let first = changed[at].saturating_sub(3);
        let mut last = changed[at];
        while at < changed.len() && changed[at] <= last + 6 {
            last = changed[at];
            at += 1;
        }
        let hunk = &lines[first..(last + 4).min(lines.len())];
        let count = |mark: char| hunk.iter().filter(|line| line.0 != mark).count();
        let range = |start: usize, length: usize| match length {
            0 => format!("{start},0"),
            1 => format!("{}", start + 1),
            _ => format!("{},{length}", start + 1),
        };
        out.push_str(&format!(
            "@@ -{} +{} @@\n",
            range(hunk[0].2, count('+')),
            range(hunk[0].3, count('-'))
        ));
        for (mark, text, _, _) in hunk {
            out.push_str(&format!("{mark}{text}\n"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_by_path() {
        let Value::Object(mut data) = json!({"ttl": 30, "postgresql": {"parameters": {"a": 1}}})
        else {
            panic!()
        };
        for setting in [
            "ttl=20",
            "postgresql.parameters.x.y=on",
            "postgresql.parameters.a=null",
            "new.deep=[1, 2]",
            "pause=true",
        ] {
            set(&mut data, setting).unwrap();
        }
        let want = json!({"ttl": 20, "postgresql": {"parameters": {"x.y": true}}, "new": {"deep": [1, 2]}, "pause": true});
        assert!(
            data.get("postgresql")
                .unwrap()
                .pointer("/parameters/x.y")
                .is_some(),
            "{data:?}"
        );
        assert_eq!(data.get("new"), want.get("new"));
        set(&mut data, "postgresql.parameters.x.y=null").unwrap();
        assert!(!data.contains_key("postgresql"), "empty parents are pruned");
        assert!(
            matches!(set(&mut data, "ttl"), Err(Failure::Error(text)) if text == "Invalid parameter setting ttl")
        );
    }

    #[test]
    fn diffs() {
        let old = "a: 1\nb: 2\nc: 3\nd: 4\ne: 5\nf: 6\n";
        let new = "a: 1\nb: 2\nc: 3\nd: 40\ne: 5\nf: 6\ng: 7\n";
        let want = "--- \n+++ \n@@ -1,6 +1,7 @@\n a: 1\n b: 2\n c: 3\n-d: 4\n+d: 40\n e: 5\n f: 6\n+g: 7\n";
        assert_eq!(unified_diff(old, new), want);
        assert_eq!(unified_diff("", "a\n"), "--- \n+++ \n@@ -0,0 +1 @@\n+a\n");
    }

    #[test]
    fn editors_with_arguments() {
        assert_eq!(split_words("code --wait"), ["code", "--wait"]);
        assert_eq!(
            split_words(r#"'my editor' -x "a b" c\ d"#),
            ["my editor", "-x", "a b", "c d"]
        );
    }
}
