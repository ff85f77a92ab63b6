//! Picks the program by subcommand or by the name it was called with, and turns results into exit statuses.
//!
//! `howdah [CONFIG]`, `patroni [CONFIG]`: the daemon. As PID 1 it is init first, and the agent is its child.
//! `howdah ctl …`, `patronictl …`: the command line. `howdah raft-controller`, `patroni_raft_controller`: a witness.
//! `howdah aws`, `patroni_aws` and their like: the programs of `helpers`.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use howdah::config::validate::SystemProbes;
use howdah::config::{
    Config, EXIT_BAD_CONFIGURATION, Environment as _, Faults, Guard as GuardMode, Loaded,
    ProcessEnvironment, Purpose,
};
use howdah::daemon::{self, Question, Request};
use howdah::helpers::{self, Helper};
use howdah::{agent, ctl, healthcheck, init, telemetry};

/// What to run: under which name, with which arguments.
#[derive(Debug, PartialEq, Eq)]
enum Program {
    Daemon(&'static str, Vec<OsString>),
    Ctl(Vec<OsString>),
    RaftController(&'static str, Vec<OsString>),
    Healthcheck(Vec<OsString>),
    Helper(Helper, Vec<OsString>),
}

/// By the name of the link it was called through, else by the first argument.
fn program(mut arguments: impl Iterator<Item = OsString>) -> Program {
    let called = arguments.next().unwrap_or_default();
    let name = Path::new(&called)
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let rest: Vec<OsString> = arguments.collect();
    let name = match name.as_str() {
        "patronictl" => return Program::Ctl(rest),
        "patroni_raft_controller" => {
            return Program::RaftController("patroni_raft_controller", rest);
        }
        "patroni" => "patroni",
        link => match Helper::named(link).filter(|_| link.starts_with("patroni_")) {
            Some(helper) => return Program::Helper(helper, rest),
            None => "howdah",
        },
    };
    let after = || rest[1..].to_vec();
    match rest.first().and_then(|first| first.to_str()) {
        Some("ctl") => Program::Ctl(after()),
        Some("raft-controller") => Program::RaftController("howdah raft-controller", after()),
        Some("healthcheck") => Program::Healthcheck(after()),
        Some("run") => Program::Daemon(name, after()),
        Some(word) => match Helper::named(word) {
            Some(helper) => Program::Helper(helper, after()),
            None => Program::Daemon(name, rest),
        },
        None => Program::Daemon(name, rest),
    }
}

fn main() -> ExitCode {
    match program(std::env::args_os()) {
        Program::Daemon(name, arguments) => match daemon::parse(name, &arguments) {
            Request::Run(config) => run_daemon(&arguments, config.as_deref()),
            Request::Answer(question) => answer(question),
        },
        Program::Ctl(arguments) => command_line(arguments),
        Program::RaftController(name, arguments) => match daemon::parse_voter(name, &arguments) {
            Request::Run(config) => voter(config.as_deref()),
            Request::Answer(question) => answer(question),
        },
        Program::Healthcheck(arguments) => health_check(&arguments),
        Program::Helper(helper, arguments) => {
            let arguments: Vec<String> = arguments
                .iter()
                .map(|argument| argument.to_string_lossy().into_owned())
                .collect();
            ExitCode::from(helpers::main(helper, &arguments, &ProcessEnvironment))
        }
    }
}

fn complain(text: &str) {
    // Nobody is left to tell when standard error is gone.
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn answer(question: Question) -> ExitCode {
    ExitCode::from(daemon::answer(
        question,
        &ProcessEnvironment,
        &SystemProbes::default(),
        &mut ctl::Screen::process(),
    ))
}

/// As PID 1, or where the guard is asked for, init comes first and runs this again as its child.
fn run_daemon(given: &[OsString], config: Option<&Path>) -> ExitCode {
    // As PID 1 nothing is read or touched before init stands.
    let guarded = init::is_guarded();
    if !guarded && std::process::id() == 1 {
        return supervise(given, true);
    }
    let loaded = match Config::load(config, &ProcessEnvironment) {
        Ok(loaded) => loaded,
        Err(faults) => return refuse(&faults),
    };
    if !guarded && loaded.config.guard == GuardMode::On {
        return supervise(given, false);
    }
    run_agent(loaded)
}

fn refuse(faults: &Faults) -> ExitCode {
    complain(&format!("the configuration cannot be used:\n{faults}"));
    ExitCode::from(EXIT_BAD_CONFIGURATION)
}

/// Puts init before the agent.
fn supervise(given: &[OsString], as_pid_1: bool) -> ExitCode {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => {
            complain(&format!("cannot find the running program: {error}"));
            return ExitCode::FAILURE;
        }
    };
    init::run(init::Options {
        program,
        arg0: OsString::from("howdah"),
        args: given.to_vec(),
        data_dir: None,
        container: if as_pid_1 { container() } else { None },
        limits: init::Limits::default(),
    })
}

/// The image's layout: it names the data directory by environment.
fn container() -> Option<init::Container> {
    let data_dir = ProcessEnvironment
        .variables()
        .remove("PATRONI_POSTGRESQL_DATA_DIR")?;
    Some(init::Container {
        data_dir: PathBuf::from(data_dir),
        user: "postgres".to_owned(),
        socket_dir: PathBuf::from("/var/run/postgresql"),
    })
}

fn run_agent(loaded: Loaded) -> ExitCode {
    let guard = match init::Guard::from_env() {
        Ok(guard) => guard,
        Err(error) => {
            complain(&format!("{error}"));
            return ExitCode::FAILURE;
        }
    };
    let log = match telemetry::install(&telemetry::Settings::from_config(&loaded.config.log)) {
        Ok(installed) => installed,
        Err(error) => {
            complain(&format!("{error:#}"));
            return ExitCode::from(EXIT_BAD_CONFIGURATION);
        }
    };
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        name = %loaded.config.name,
        scope = loaded.config.scope,
        store = loaded.config.dcs.name(),
        "howdah starts"
    );
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(8)
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start the runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let end = runtime.block_on(tokio::task::LocalSet::new().run_until(agent::start(loaded, guard)));
    // Abandoned blocking work (an fsync, a name look-up) must not hold up the exit.
    runtime.shutdown_background();
    let clean = match end {
        Ok(agent::End::Clean) => true,
        Ok(agent::End::Failure) => false,
        Err(error) => {
            tracing::error!("cannot start: {error:#}");
            false
        }
    };
    match (clean, log.finish()) {
        (true, true) => ExitCode::SUCCESS,
        (true, false) => ExitCode::from(telemetry::EXIT_LOG_QUEUE_FULL),
        (false, _) => ExitCode::FAILURE,
    }
}

/// `howdah ctl …`.
fn command_line(arguments: Vec<OsString>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start the runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let opener = |config: Config,
                  identity: howdah::dcs::Identity|
     -> futures_util::future::BoxFuture<
        'static,
        anyhow::Result<howdah::dcs::Store>,
    > { Box::pin(async move { howdah::dcs::open_client(&config, &identity) }) };
    let status = runtime.block_on(ctl::run(
        arguments,
        &ProcessEnvironment,
        &opener,
        &mut ctl::Screen::process(),
    ));
    runtime.shutdown_background();
    ExitCode::from(status)
}

/// `howdah healthcheck [ENDPOINT]`: asks the local REST API, by default whether this node is alive and well.
fn health_check(arguments: &[OsString]) -> ExitCode {
    let endpoint = arguments
        .first()
        .and_then(|endpoint| endpoint.to_str())
        .unwrap_or("liveness");
    let loaded = match Config::load_for(Purpose::Client, None, &ProcessEnvironment) {
        Ok(loaded) => loaded,
        Err(faults) => {
            complain(&faults.to_string());
            return ExitCode::FAILURE;
        }
    };
    match healthcheck::run(
        &howdah::api::Settings::from_config(&loaded.config),
        endpoint,
    ) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// `howdah raft-controller`.
fn voter(config: Option<&Path>) -> ExitCode {
    match howdah::witness::main(config, &ProcessEnvironment) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match error.downcast_ref::<Faults>() {
            Some(faults) => refuse(faults),
            None => {
                complain(&format!("{error:#}"));
                ExitCode::FAILURE
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(words: &[&str]) -> Program {
        program(words.iter().map(OsString::from))
    }

    #[test]
    fn the_program_is_picked_by_link_name_or_subcommand() {
        let list = vec![OsString::from("list")];
        assert_eq!(
            called(&["/usr/bin/patronictl", "list"]),
            Program::Ctl(list.clone())
        );
        assert_eq!(called(&["howdah", "ctl", "list"]), Program::Ctl(list));
        assert_eq!(
            called(&["patroni", "/etc/patroni.yml"]),
            Program::Daemon("patroni", vec![OsString::from("/etc/patroni.yml")])
        );
        assert_eq!(called(&["howdah"]), Program::Daemon("howdah", Vec::new()));
        assert_eq!(
            called(&["patroni_raft_controller"]),
            Program::RaftController("patroni_raft_controller", Vec::new())
        );
        let word = vec![OsString::from("on_start")];
        for words in [
            ["patroni_aws", "on_start"].as_slice(),
            &["howdah", "aws", "on_start"],
        ] {
            assert_eq!(called(words), Program::Helper(Helper::Aws, word.clone()));
        }
        assert_eq!(
            called(&["howdah", "healthcheck"]),
            Program::Healthcheck(Vec::new())
        );
    }
}
