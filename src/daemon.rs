//! The daemon's command line (spec/configuration.md §8): what is asked for, and the answers that need no daemon.
//!
//! [`parse`] reads arguments, [`answer`] validates, generates or prints. Starting the daemon itself is `main`'s story; nothing here
//! becomes init, opens a store or touches a data directory.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use clap::Parser;
use clap::error::ErrorKind;

use crate::cluster::CONTRACT_VERSION;
use crate::config::validate::{self, Probes};
use crate::config::{Environment, generate, sample, variables};
use crate::ctl::Screen;

/// What a command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Run the daemon with this file or directory; without one everything comes from the environment.
    Run(Option<PathBuf>),
    /// Answer and end.
    Answer(Question),
}

/// What can be answered without a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// `--validate-config`.
    Validate(Option<PathBuf>, validate::Options),
    /// `--generate-sample-config`, into a file or to standard output.
    Sample(Option<PathBuf>),
    /// `--generate-config`: from a running instance, into a file or to standard output.
    Generate {
        /// `--dsn`.
        dsn: Option<String>,
        /// Where to write.
        file: Option<PathBuf>,
    },
    /// `--print-variables`.
    Variables,
    /// `--help`, `--version`: the text.
    Tell(String),
    /// A usage error: the text.
    Misused(String),
}

/// Exit status of a usage error (spec/packaging.md §1).
const EXIT_USAGE: u8 = 2;

#[derive(Debug, Parser)]
#[command(
    about = "Keeps a PostgreSQL cluster highly available; one process per node, PID 1 in a container",
    after_help = "Without a file everything comes from PATRONI_* environment variables.

Other programs in this binary:
  howdah ctl COMMAND …               the command line for people (also as patronictl)
  howdah raft-controller [CONFIG]    a voter of the embedded store without PostgreSQL (also as patroni_raft_controller)
  howdah healthcheck [ENDPOINT]      asks the local REST API, by default /liveness

Exit status: 0 normal end, 1 the node gave up (the log says why) or the validated configuration has faults, 2 wrong usage,
64 the configuration cannot be used."
)]
struct Arguments {
    /// Check the configuration and end.
    #[arg(long, group = "mode")]
    validate_config: bool,
    /// Write a sample configuration and end.
    #[arg(long, group = "mode")]
    generate_sample_config: bool,
    /// Write the configuration of a running instance and end.
    #[arg(long, group = "mode")]
    generate_config: bool,
    /// Print the reference of environment variables (Markdown) and end.
    #[arg(long, group = "mode")]
    print_variables: bool,
    /// With --generate-config: how to connect, as superuser; else libpq's PG* variables say it.
    #[arg(long)]
    dsn: Option<String>,
    /// With --validate-config: a listen port in use is no fault.
    #[arg(short, long)]
    ignore_listen_port: bool,
    /// With --validate-config: also print the merged configuration, passwords included.
    #[arg(short, long)]
    print: bool,
    /// The configuration: a YAML file, or a directory of *.yml and *.yaml. With --generate-…: the file to write.
    #[arg(value_name = "CONFIG")]
    config: Option<PathBuf>,
}

#[derive(Debug, Parser)]
#[command(about = "A voting member of the embedded store, without PostgreSQL")]
struct Voter {
    /// The configuration, with a section `raft`; without it the PATRONI_RAFT_* variables.
    #[arg(value_name = "CONFIG")]
    config: Option<PathBuf>,
}

/// Reads the daemon's arguments; `called` is the name it was called by, which help and version repeat.
#[must_use]
pub fn parse(called: &str, arguments: &[OsString]) -> Request {
    let given = match read::<Arguments>(called, arguments) {
        Ok(given) => given,
        Err(question) => return Request::Answer(question),
    };
    Request::Answer(if given.validate_config {
        Question::Validate(
            given.config,
            validate::Options {
                ignore_listen_port: given.ignore_listen_port,
                print: given.print,
            },
        )
    } else if given.generate_sample_config {
        Question::Sample(given.config)
    } else if given.generate_config {
        Question::Generate {
            dsn: given.dsn,
            file: given.config,
        }
    } else if given.print_variables {
        Question::Variables
    } else {
        return Request::Run(given.config);
    })
}

/// Reads the arguments of `raft-controller`.
#[must_use]
pub fn parse_voter(called: &str, arguments: &[OsString]) -> Request {
    match read::<Voter>(called, arguments) {
        Ok(voter) => Request::Run(voter.config),
        Err(question) => Request::Answer(question),
    }
}

fn read<T: Parser>(called: &str, arguments: &[OsString]) -> Result<T, Question> {
    // Scripts compare what follows upstream's name with upstream's versions.
    let version = if called.starts_with("patroni") {
        format!("{CONTRACT_VERSION} (howdah {})", env!("CARGO_PKG_VERSION"))
    } else {
        format!(
            "{} (speaks Patroni {CONTRACT_VERSION})",
            env!("CARGO_PKG_VERSION")
        )
    };
    let called = called.to_owned();
    let all = std::iter::once(OsString::from(&called)).chain(arguments.iter().cloned());
    T::command()
        .name(called.clone())
        .display_name(called)
        .version(version)
        .try_get_matches_from(all)
        .and_then(|matches| T::from_arg_matches(&matches))
        .map_err(|error| match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Question::Tell(error.to_string()),
            _ => Question::Misused(error.to_string()),
        })
}

/// Answers; returns the exit status.
pub fn answer(
    question: Question,
    environment: &dyn Environment,
    probes: &dyn Probes,
    screen: &mut Screen,
) -> u8 {
    let outcome = match question {
        Question::Validate(config, options) => {
            let validation = validate::run(config.as_deref(), environment, probes, options);
            if validation.errors.is_empty() {
                give(screen, None, &validation.document.unwrap_or_default())
            } else {
                Err(validation.errors.join("\n"))
            }
        }
        Question::Sample(file) => sample::generate(environment)
            .map_err(|error| error.to_string())
            .and_then(|text| give(screen, file.as_deref(), &text)),
        Question::Generate { dsn, file } => describe(dsn.as_deref(), environment, screen)
            .and_then(|text| give(screen, file.as_deref(), &text)),
        Question::Variables => give(screen, None, &variables::reference()),
        Question::Tell(text) => give(screen, None, &text),
        Question::Misused(text) => {
            screen.complain(text.trim_end());
            return EXIT_USAGE;
        }
    };
    match outcome {
        Ok(()) => 0,
        Err(text) => {
            screen.complain(&text);
            1
        }
    }
}

/// `--generate-config`'s text.
fn describe(
    dsn: Option<&str>,
    environment: &dyn Environment,
    screen: &mut Screen,
) -> Result<String, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the runtime: {error}"))?;
    let screen = Mutex::new(screen);
    let prompt = || {
        let mut screen = screen
            .lock()
            .map_err(|_| std::io::Error::other("the terminal is lost"))?;
        screen
            .ask_hidden("Please enter the user password")
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::UnexpectedEof))
    };
    let text = runtime
        .block_on(generate::generate(dsn, environment, &prompt))
        .map_err(|error| error.to_string());
    runtime.shutdown_background();
    text
}

/// Prints, or writes a file that only its owner may read: it can hold passwords.
fn give(screen: &mut Screen, file: Option<&Path>, text: &str) -> Result<(), String> {
    let Some(file) = file else {
        return screen
            .text(text)
            .map_err(|_| "standard output is closed".to_owned());
    };
    write_private(file, text).map_err(|error| format!("cannot write {}: {error}", file.display()))
}

fn write_private(file: &Path, text: &str) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    if let Some(parent) = file
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(file)?
        .write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Arc;

    use super::*;
    use crate::config::{FakeEnvironment, HostPort, yaml};

    fn asked(words: &[&str]) -> Request {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        parse("howdah", &words)
    }

    fn question(words: &[&str]) -> Question {
        match asked(words) {
            Request::Answer(question) => question,
            Request::Run(config) => panic!("{words:?} would run with {config:?}"),
        }
    }

    /// Standard output or error of a test.
    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Paper {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl std::io::Write for Paper {
        fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(part);
            Ok(part.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// A host with PostgreSQL and nothing that listens.
    struct Host;

    impl Probes for Host {
        fn connects(&self, address: &HostPort) -> bool {
            address.port == Some(2379)
        }

        fn has_program(&self, _: Option<&Path>, _: &str) -> bool {
            true
        }

        fn postgres_major(&self, _: &Path) -> Option<String> {
            Some("17".to_owned())
        }
    }

    /// Status, standard output, standard error.
    fn answered(question: Question, variables: &[(&str, &str)]) -> (u8, String, String) {
        let (out, err) = (Paper::default(), Paper::default());
        let mut screen = Screen {
            out: Box::new(out.clone()),
            err: Box::new(err.clone()),
            input: Box::new(std::io::empty()),
            is_terminal: false,
            colours: false,
        };
        let status = answer(
            question,
            &FakeEnvironment::new(variables),
            &Host,
            &mut screen,
        );
        (status, out.text(), err.text())
    }

    const ENOUGH: [(&str, &str); 6] = [
        // Any directory that exists: the probes say that the programs are there.
        ("PATRONI_POSTGRESQL_BIN_DIR", "/"),
        ("PATRONI_SCOPE", "demo"),
        ("PATRONI_ETCD3_HOSTS", "h:2379"),
        ("PATRONI_SUPERUSER_PASSWORD", "s"),
        ("PATRONI_REPLICATION_PASSWORD", "r"),
        ("PATRONI_POSTGRESQL_DATA_DIR", "/nonexistent/data"),
    ];

    #[test]
    fn without_a_mode_the_daemon_runs() {
        assert_eq!(asked(&[]), Request::Run(None));
        assert_eq!(
            asked(&["/etc/p.yml"]),
            Request::Run(Some("/etc/p.yml".into()))
        );
        // As upstream: options of a mode that is not chosen mean nothing.
        assert_eq!(asked(&["-i", "-p", "--dsn", "x"]), Request::Run(None));
        assert_eq!(
            parse_voter("howdah", &["c.yml".into()]),
            Request::Run(Some("c.yml".into()))
        );
    }

    #[test]
    fn each_mode_has_its_options() {
        assert_eq!(
            question(&["--validate-config", "-i", "-p", "c.yml"]),
            Question::Validate(
                Some("c.yml".into()),
                validate::Options {
                    ignore_listen_port: true,
                    print: true
                }
            )
        );
        assert_eq!(
            question(&["--validate-config", "--ignore-listen-port"]),
            Question::Validate(
                None,
                validate::Options {
                    ignore_listen_port: true,
                    print: false
                }
            )
        );
        assert_eq!(
            question(&["--generate-sample-config", "s.yml"]),
            Question::Sample(Some("s.yml".into()))
        );
        assert_eq!(
            question(&["--generate-config", "--dsn", "host=h", "g.yml"]),
            Question::Generate {
                dsn: Some("host=h".to_owned()),
                file: Some("g.yml".into())
            }
        );
        assert_eq!(question(&["--print-variables"]), Question::Variables);
    }

    #[test]
    fn wrong_usage_ends_with_2() {
        for words in [
            &["--validate-config", "--generate-config"][..],
            &["--no-such-option"],
            &["one.yml", "two.yml"],
        ] {
            let (status, out, err) = answered(question(words), &[]);
            assert_eq!((status, out.as_str()), (2, ""), "{words:?}");
            assert!(err.contains("Usage: howdah"), "{err}");
        }
    }

    #[test]
    fn version_and_help() {
        let (status, out, _) = answered(question(&["--version"]), &[]);
        assert_eq!(status, 0);
        assert_eq!(
            out,
            format!(
                "howdah {} (speaks Patroni {CONTRACT_VERSION})\n",
                env!("CARGO_PKG_VERSION")
            )
        );
        let Request::Answer(Question::Tell(text)) = parse("patroni", &["--version".into()]) else {
            panic!()
        };
        assert!(
            text.starts_with(&format!("patroni {CONTRACT_VERSION} ")),
            "{text}"
        );
        let (status, out, err) = answered(question(&["--help"]), &[]);
        assert_eq!((status, err.as_str()), (0, ""));
        for option in [
            "--validate-config",
            "--ignore-listen-port",
            "--generate-sample-config",
            "--dsn",
            "--print-variables",
            "healthcheck",
        ] {
            assert!(out.contains(option), "{option} is missing:\n{out}");
        }
    }

    #[test]
    fn a_valid_configuration_is_silent_unless_it_is_to_be_printed() {
        assert_eq!(
            answered(question(&["--validate-config"]), &ENOUGH),
            (0, String::new(), String::new())
        );
        let (status, out, err) = answered(question(&["--validate-config", "-p"]), &ENOUGH);
        assert_eq!((status, err.as_str()), (0, ""));
        assert_eq!(yaml::parse(&out).unwrap()["scope"], "demo");
    }

    #[test]
    fn faults_of_a_validated_configuration_end_with_1() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.yml");
        std::fs::write(&path, "scope: demo\netcd3: {host: 'h:2379'}\n").unwrap();
        let (status, out, err) = answered(Question::Validate(Some(path), Default::default()), &[]);
        assert_eq!((status, out.as_str()), (1, ""));
        assert!(err.contains("postgresql  is not defined."), "{err}");
        let missing = Question::Validate(Some("/nonexistent/p.yml".into()), Default::default());
        let (status, _, err) = answered(missing, &ENOUGH);
        assert_eq!(status, 1);
        assert!(err.contains("/nonexistent/p.yml"), "{err}");
    }

    #[test]
    fn a_sample_is_printed_or_written_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("postgres");
        std::fs::write(&program, "#!/bin/sh\necho 'postgres (PostgreSQL) 17.2'\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let bin_dir = folder.path().display().to_string();
        let variables = [
            ("PATRONI_SCOPE", "demo"),
            ("PATRONI_POSTGRESQL_BIN_DIR", bin_dir.as_str()),
        ];
        let (status, printed, err) = answered(question(&["--generate-sample-config"]), &variables);
        assert_eq!((status, err.as_str()), (0, ""));
        assert!(printed.starts_with("scope: demo\n") && !printed.ends_with('\n'));
        let file = folder.path().join("new/folder/sample.yml");
        let (status, out, err) = answered(Question::Sample(Some(file.clone())), &variables);
        assert_eq!((status, out.as_str(), err.as_str()), (0, "", ""));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), printed);
        assert_eq!(
            std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let below_a_file = file.join("sample.yml");
        let (status, _, err) = answered(Question::Sample(Some(below_a_file)), &variables);
        assert_eq!(status, 1);
        assert!(err.starts_with("cannot write "), "{err}");
    }

    #[test]
    fn a_sample_needs_a_postgres() {
        let variables = [("PATRONI_POSTGRESQL_BIN_DIR", "/nonexistent")];
        let (status, out, err) = answered(question(&["--generate-sample-config"]), &variables);
        assert_eq!((status, out.as_str()), (1, ""));
        assert!(err.starts_with("Failed to get postgres version: "), "{err}");
    }

    #[test]
    fn a_running_instance_is_needed_to_describe_it() {
        let dsn = |dsn: &str| question(&["--generate-config", "--dsn", dsn]);
        let (status, _, err) = answered(dsn("nonsense"), &[]);
        assert_eq!((status, err.as_str()), (1, "Failed to parse DSN string\n"));
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = nobody.local_addr().unwrap().port();
        drop(nobody);
        let (status, _, err) =
            answered(dsn(&format!("host=127.0.0.1 port={port} password=x")), &[]);
        assert_eq!(status, 1);
        assert!(
            err.starts_with("Failed to establish PostgreSQL connection: "),
            "{err}"
        );
        // The password is asked for; nobody answers.
        let (status, out, _) = answered(dsn(&format!("host=127.0.0.1 port={port}")), &[]);
        assert_eq!(status, 1);
        assert!(out.starts_with("Please enter the user password: "), "{out}");
    }

    #[test]
    fn the_reference_of_variables() {
        let (status, out, _) = answered(question(&["--print-variables"]), &[]);
        assert_eq!((status, out), (0, variables::reference()));
    }
}
