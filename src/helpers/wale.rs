//! `patroni_wale_restore`: creates a replica from the latest backup of WAL-E, or of WAL-G where only that is installed, unless so much WAL
//! has been written since that a base backup is the shorter way.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::{Parsed, Say};

type Variables = BTreeMap<String, String>;

const RESTORED: u8 = 0;
const RETRY_LATER: u8 = 1;
const DO_NOT_RETRY: u8 = 2;
const USAGE: &str = "\
Usage: patroni_wale_restore --scope NAME --datadir DIR --connstring DSN --envdir DIR [--retries 1] [--threshold_megabytes 10240]
       [--threshold_backup_size_percentage 30] [--use_iam 0|1] [--no_leader 0|1]";
/// How often the leader is asked for its position.
const LOOKS: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);
/// Of WAL-E's segments.
const SEGMENT: u64 = 16 << 20;

pub(super) fn run(arguments: &[String], variables: &Variables, say: &mut Say<'_>) -> u8 {
    match Restore::new(arguments, variables) {
        Ok((restore, retries)) => {
            let mut left = retries;
            loop {
                match restore.attempt(say) {
                    RETRY_LATER if left > 0 => left -= 1,
                    status => return status,
                }
                std::thread::sleep(PAUSE);
            }
        }
        Err(why) => {
            say(&format!("{USAGE}\n{why}"));
            DO_NOT_RETRY
        }
    }
}

/// The latest backup.
#[derive(Debug, PartialEq)]
struct Backup {
    /// Where it begins in the WAL.
    start: u64,
    bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tool {
    WalE,
    WalG,
}

struct Restore {
    datadir: String,
    connstring: String,
    environment: Variables,
    tool: Tool,
    megabytes: u64,
    percentage: u64,
    use_iam: bool,
    no_leader: bool,
}

impl Restore {
    /// And how often it is tried again.
    fn new(arguments: &[String], variables: &Variables) -> Result<(Restore, u32), String> {
        let known = [
            "scope",
            "datadir",
            "connstring",
            "envdir",
            "role",
            "retries",
            "threshold-megabytes",
            "threshold-backup-size-percentage",
            "use-iam",
            "no-leader",
        ];
        let parsed = Parsed::new(arguments, &known, &[])?;
        parsed.required("scope")?;
        let environment = with_envdir(variables, Path::new(parsed.required("envdir")?))?;
        let in_path = |name: &str| {
            let path = environment.get("PATH").map_or("", String::as_str);
            std::env::split_paths(path).any(|folder| folder.join(name).is_file())
        };
        let tool = match (in_path("wal-e"), in_path("wal-g")) {
            (true, _) => Tool::WalE,
            (false, true) => Tool::WalG,
            (false, false) => return Err("neither wal-e nor wal-g is in PATH".to_owned()),
        };
        let restore = Restore {
            datadir: parsed.required("datadir")?.to_owned(),
            connstring: parsed.required("connstring")?.to_owned(),
            tool,
            megabytes: parsed.number("threshold-megabytes", 10_240)?,
            percentage: parsed.number("threshold-backup-size-percentage", 30)?,
            use_iam: parsed.number("use-iam", 0)? != 0,
            no_leader: parsed.number("no-leader", 0)? != 0,
            environment,
        };
        Ok((restore, parsed.number("retries", 1)?))
    }

    fn attempt(&self, say: &mut Say<'_>) -> u8 {
        let listed = match self.tool {
            Tool::WalE => self.tool(&["backup-list", "--detail", "LATEST"]),
            Tool::WalG => self.tool(&["backup-list", "--detail", "--json"]),
        };
        let listed = match output(listed) {
            Ok(listed) => listed,
            Err(why) => {
                say(&format!("the backups can not be listed: {why}"));
                return RETRY_LATER;
            }
        };
        let backup = match self.tool {
            Tool::WalE => latest_of_wal_e(&listed),
            Tool::WalG => latest_of_wal_g(&listed),
        };
        let Some(backup) = backup else {
            say("there is no backup, or its description can not be read");
            return DO_NOT_RETRY;
        };
        match self.leader_position(say) {
            Some(position) => {
                let since = position.saturating_sub(backup.start);
                let limit = (self.megabytes << 20)
                    .min((backup.bytes / 100).saturating_mul(self.percentage));
                say(&format!(
                    "{} MB of WAL since the backup of {} MB; a backup is used up to {} MB",
                    since >> 20,
                    backup.bytes >> 20,
                    limit >> 20
                ));
                if since > limit {
                    return DO_NOT_RETRY;
                }
            }
            None if self.no_leader || self.connstring.is_empty() => {
                say("the leader is not asked: restoring without it");
            }
            None => {
                say("the leader's position is unknown");
                return RETRY_LATER;
            }
        }
        let fetched = self
            .tool(&["backup-fetch", &self.datadir, "LATEST"])
            .status();
        match fetched {
            Ok(status) if status.success() => match self.mend_wal_directory() {
                Ok(()) => RESTORED,
                Err(why) => {
                    say(&format!("{}: {why}", self.datadir));
                    DO_NOT_RETRY
                }
            },
            Ok(status) => {
                say(&format!("the backup was not fetched: {status}"));
                status
                    .code()
                    .and_then(|code| u8::try_from(code).ok())
                    .unwrap_or(RETRY_LATER)
            }
            Err(why) => {
                say(&format!("the backup was not fetched: {why}"));
                RETRY_LATER
            }
        }
    }

    fn tool(&self, arguments: &[&str]) -> Command {
        let mut command = match self.tool {
            Tool::WalE => Command::new("wal-e"),
            Tool::WalG => Command::new("wal-g"),
        };
        if self.use_iam && self.tool == Tool::WalE {
            command.arg("--aws-instance-profile");
        }
        command
            .args(arguments)
            .env_clear()
            .envs(&self.environment)
            .stdin(Stdio::null());
        command
    }

    /// Where the server behind `connstring` is in its WAL.
    fn leader_position(&self, say: &mut Say<'_>) -> Option<u64> {
        if self.connstring.is_empty() {
            return None;
        }
        let query = "SELECT pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() \
                     THEN COALESCE(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) ELSE pg_current_wal_lsn() END, '0/0')::bigint";
        for look in 1..=LOOKS {
            let mut psql = Command::new("psql");
            psql.args(["-X", "-A", "-t", "-w", "-d", &self.connstring, "-c", query])
                .env_clear()
                .envs(&self.environment)
                .stdin(Stdio::null());
            match output(psql).and_then(|text| {
                let position = text.trim().parse();
                position.map_err(|_| format!("{text:?} is no position"))
            }) {
                Ok(position) => return Some(position),
                Err(why) => say(&format!("the leader can not be asked: {why}")),
            }
            if look < LOOKS {
                std::thread::sleep(PAUSE);
            }
        }
        None
    }

    /// A backup need not hold the directory for WAL, and that of a server whose WAL lay elsewhere has a link to there, which may lead
    /// nowhere here.
    fn mend_wal_directory(&self) -> std::io::Result<()> {
        let data = Path::new(&self.datadir);
        let version = fs::read_to_string(data.join("PG_VERSION")).unwrap_or_default();
        // "9.6", and one number since 10.
        let name = if version.trim().starts_with("9.") {
            "pg_xlog"
        } else {
            "pg_wal"
        };
        let path = data.join(name);
        if path.exists() {
            return Ok(());
        }
        if path.is_symlink() {
            fs::remove_file(&path)?;
        }
        use std::os::unix::fs::DirBuilderExt as _;
        fs::DirBuilder::new().mode(0o700).create(&path)
    }
}

/// What a program printed, if it ended well.
fn output(mut command: Command) -> Result<String, String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|why| format!("{}: {why}", command.get_program().to_string_lossy()))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!(
            "{}: {}",
            command.get_program().to_string_lossy(),
            output.status
        ))
    }
}

/// What `envdir` does: a file is a variable, its first line the value; an empty file removes it.
fn with_envdir(variables: &Variables, folder: &Path) -> Result<Variables, String> {
    let trouble = |why: std::io::Error| format!("--envdir {}: {why}", folder.display());
    let mut all = variables.clone();
    for entry in fs::read_dir(folder).map_err(trouble)? {
        let entry = entry.map_err(trouble)?;
        let (Ok(name), true) = (entry.file_name().into_string(), entry.path().is_file()) else {
            continue;
        };
        if name.starts_with('.') {
            continue;
        }
        let text = fs::read_to_string(entry.path()).map_err(trouble)?;
        match text.lines().next() {
            Some(line) => all.insert(name, line.trim_end().replace('\0', "\n")),
            None => all.remove(&name),
        };
    }
    Ok(all)
}

/// The last row of a table with a heading, separated by tabs.
fn latest_of_wal_e(listed: &str) -> Option<Backup> {
    let mut lines = listed.lines().filter(|line| !line.trim().is_empty());
    let heading: Vec<&str> = lines.next()?.split('\t').map(str::trim).collect();
    let row: Vec<&str> = lines.next_back()?.split('\t').map(str::trim).collect();
    let cell = |name: &str| {
        let at = heading.iter().position(|heading| *heading == name)?;
        row.get(at).copied()
    };
    let segment = cell("wal_segment_backup_start")?;
    // Timeline, then the high and the low part of the segment's number; all of them count (P5). The offset is decimal.
    let part = |digits: std::ops::Range<usize>| u64::from_str_radix(segment.get(digits)?, 16).ok();
    let offset: u64 = cell("wal_segment_offset_backup_start")?.parse().ok()?;
    Some(Backup {
        start: (part(8..16)? << 32)
            .checked_add(part(16..24)?.checked_mul(SEGMENT)?)?
            .checked_add(offset)?,
        bytes: cell("expanded_size_bytes")?.parse().ok()?,
    })
}

/// The youngest of a JSON array.
fn latest_of_wal_g(listed: &str) -> Option<Backup> {
    let backups: Vec<Value> = serde_json::from_str(listed).ok()?;
    let youngest = backups.iter().max_by_key(|backup| {
        let time = backup.get("time").and_then(Value::as_str);
        time.unwrap_or_default().to_owned()
    })?;
    let number = |name: &str| youngest.get(name).and_then(Value::as_u64);
    Some(Backup {
        start: number("start_lsn")?,
        bytes: number("uncompressed_size")?,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const LIST: &str = "name\tlast_modified\texpanded_size_bytes\twal_segment_backup_start\twal_segment_offset_backup_start\n\
                        base_1\t2026-01-01T00:00:00Z\t1048576000\t00000002000000010000007F\t08000040\n";

    #[test]
    fn backups_begin_where_all_digits_say() {
        let start = (1_u64 << 32) + 0x7F * SEGMENT + 8_000_040;
        let bytes = 1_048_576_000;
        assert_eq!(latest_of_wal_e(LIST), Some(Backup { start, bytes }), "P5");
        assert_eq!(latest_of_wal_e("name\n"), None);
        let json = r#"[{"time": "2026-01-02T00:00:00Z", "start_lsn": 7, "uncompressed_size": 9},
                       {"time": "2026-01-01T00:00:00Z", "start_lsn": 1, "uncompressed_size": 2}]"#;
        assert_eq!(latest_of_wal_g(json), Some(Backup { start: 7, bytes: 9 }));
        assert_eq!(latest_of_wal_g("[]"), None);
    }

    /// Programs of that name, in a folder of their own that is all of `PATH` besides the system's.
    struct Stage(tempfile::TempDir);

    impl Stage {
        fn new(position: &str) -> Stage {
            let stage = Stage(tempfile::tempdir().unwrap());
            fs::create_dir(stage.path("env")).unwrap();
            fs::write(
                stage.path("env/WALE_S3_PREFIX"),
                "s3://bucket/x\nsecond line\n",
            )
            .unwrap();
            fs::write(stage.path("env/UNWANTED"), "").unwrap();
            stage.program("psql", position);
            stage
        }

        fn path(&self, name: &str) -> String {
            self.0.path().join(name).to_str().unwrap().to_owned()
        }

        fn program(&self, name: &str, script: &str) {
            let path = self.path(name);
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }

        fn run(&self, extra: &str) -> (u8, String) {
            let line = format!(
                "--scope=c --role=replica --datadir={} --envdir {} --connstring=postgres://leader --retries=0 {extra}",
                self.path("data"),
                self.path("env")
            );
            let variables = [
                ("PATH", format!("{}:/usr/bin:/bin", self.path(""))),
                ("UNWANTED", "x".to_owned()),
            ];
            let variables = variables.map(|(name, value)| (name.to_owned(), value));
            let mut said = String::new();
            let mut say = |line: &str| said.push_str(&format!("{line}\n"));
            let words = super::super::tests::words(&line);
            (run(&words, &variables.into(), &mut say), said)
        }
    }

    /// Lists one backup, and restores one whose WAL lay elsewhere.
    fn wal_e(stage: &Stage, status: u8) {
        let (list, data) = (stage.path("list"), stage.path("data"));
        fs::write(&list, LIST).unwrap();
        stage.program(
            "wal-e",
            &format!(
                "[ \"$WALE_S3_PREFIX\" = s3://bucket/x ] && [ -z \"$UNWANTED\" ] || exit 9\n\
                 case \"$*\" in \"backup-list --detail LATEST\") cat {list} ;;\n\
                 \"backup-fetch {data} LATEST\") mkdir {data}; ln -s /nowhere/at/all {data}/pg_wal; exit {status} ;; *) exit 8 ;; esac"
            ),
        );
    }

    #[test]
    fn a_near_backup_is_restored_and_its_dangling_link_mended() {
        let stage = Stage::new(&format!("echo {}", (1_u64 << 32) + 0x80 * SEGMENT));
        wal_e(&stage, 0);
        let (status, said) = stage.run("");
        assert_eq!(status, RESTORED, "{said}");
        let wal = fs::symlink_metadata(stage.path("data/pg_wal")).unwrap();
        assert!(wal.is_dir(), "{wal:?}");
    }

    #[test]
    fn a_far_backup_is_left_to_the_next_method() {
        let stage = Stage::new(&format!(
            "echo {}",
            (1_u64 << 32) + 0x7F * SEGMENT + (400 << 20)
        ));
        wal_e(&stage, 0);
        let (status, said) = stage.run("");
        assert_eq!(status, DO_NOT_RETRY, "{said}");
        assert!(!Path::new(&stage.path("data")).exists());
        let (status, said) =
            stage.run("--threshold_backup_size_percentage=50 --threshold-megabytes=100");
        assert_eq!(status, DO_NOT_RETRY, "both limits hold: {said}");
        let (status, said) = stage.run("--threshold_backup_size_percentage=50");
        assert_eq!(status, RESTORED, "{said}");
    }

    #[test]
    fn without_the_leader_it_waits_unless_it_is_told_not_to() {
        let stage = Stage::new("exit 2");
        wal_e(&stage, 0);
        let (status, said) = stage.run("");
        assert_eq!(status, RETRY_LATER, "{said}");
        let (status, said) = stage.run("--no_leader=1");
        assert_eq!(status, RESTORED, "{said}");
    }

    #[test]
    fn with_nobody_to_ask_it_restores_and_makes_the_directory_for_wal() {
        for (version, wal) in [("17", "pg_wal"), ("9.6", "pg_xlog")] {
            let stage = Stage::new("exit 2");
            let (list, data) = (stage.path("list"), stage.path("data"));
            fs::write(&list, LIST).unwrap();
            stage.program(
                "wal-e",
                &format!(
                    "case $1 in backup-list) cat {list} ;; *) mkdir {data}; echo {version} >{data}/PG_VERSION ;; esac"
                ),
            );
            let (status, said) = stage.run("--connstring=");
            assert_eq!(status, RESTORED, "{said}");
            assert!(Path::new(&data).join(wal).is_dir(), "{wal}");
        }
    }

    #[test]
    fn the_status_of_the_tool_is_passed_on() {
        let stage = Stage::new("echo 0");
        wal_e(&stage, 7);
        assert_eq!(stage.run("").0, 7);
        fs::remove_file(stage.path("wal-e")).unwrap();
        let (status, said) = stage.run("");
        assert!(
            status == DO_NOT_RETRY && said.contains("neither wal-e nor wal-g"),
            "{said}"
        );
        let json = r#"[{"time": "x", "start_lsn": 0, "uncompressed_size": 1000}]"#;
        stage.program(
            "wal-g",
            &format!("case $1 in backup-list) echo '{json}' ;; *) exit 5 ;; esac"),
        );
        assert_eq!(stage.run("").0, 5);
    }
}
