//! `howdah ctl` and `patronictl` (spec/ctl.md): reads the store, asks nodes over REST, prints. Decides nothing about a cluster.
//!
//! [`run`] parses, opens what the command needs and hands over to the command's file below. All output goes through [`Screen`].

mod actions;
mod commands;
mod dynamic;
mod explain;
mod leader;
mod members;
mod query;
mod screen;
mod settings;
mod shell;
mod table;
mod yaml;

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use futures_util::future::BoxFuture;

use crate::cluster::Cluster;
use crate::config::{Config, Environment};
use crate::dcs::{Freshness, Identity, Store};
use crate::peers::{Client, ClientSettings};

pub use screen::Screen;
use table::Format;

/// Opens the store of a configuration without a session; given by `main`, which knows the backends.
pub type Opener =
    dyn Fn(Config, Identity) -> BoxFuture<'static, anyhow::Result<Store>> + Send + Sync;

/// Why a command ended early.
#[derive(Debug)]
pub enum Failure {
    /// `Error: …` on stderr, exit 1.
    Error(String),
    /// `Aborted!` on stderr, exit 1: end of input at a prompt, or nobody reads our output.
    Aborted,
    /// Neither the command line nor the configuration names a cluster; an error like the others.
    Unnamed,
    /// Printed already; exit 0, or 1 with `--strict-exit`.
    Refused,
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Failure::Error(format!("{error:#}"))
    }
}

impl From<crate::dcs::DcsError> for Failure {
    fn from(error: crate::dcs::DcsError) -> Self {
        Failure::Error(error.to_string())
    }
}

/// What commands return.
type Done = Result<(), Failure>;

fn error<T>(text: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::Error(text.into()))
}

#[derive(Debug, Parser)]
#[command(
    name = "patronictl",
    about = "Command-line interface of the cluster",
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Arguments {
    /// Configuration file or directory.
    #[arg(short = 'c', long = "config-file", value_name = "PATH")]
    config_file: Option<String>,
    /// The store: [scheme://]host[:port][/namespace].
    #[arg(
        short = 'd',
        long = "dcs-url",
        visible_alias = "dcs",
        value_name = "URL"
    )]
    dcs_url: Option<String>,
    /// Do not verify the REST server's certificate.
    #[arg(short = 'k', long)]
    insecure: bool,
    /// Exit with 1 when a node refused the request (recommended in scripts; Patroni exits with 0). PATRONICTL_STRICT_EXIT=1 does the same.
    #[arg(long)]
    strict_exit: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the members of a cluster.
    List(List),
    /// Print the members as a tree.
    Topology(Topology),
    /// Say of each member why it is or is not the leader, and what it waits for.
    Explain(explain::Explain),
    /// Run SQL on a member.
    Query(query::Query),
    /// Print a connection string of a member.
    Dsn(query::Dsn),
    /// Remove a cluster from the store.
    Remove(commands::Remove),
    /// Reload members' configuration.
    Reload(actions::Reload),
    /// Restart members.
    Restart(actions::Restart),
    /// Rebuild members from another.
    Reinit(actions::Reinit),
    /// Switch over to another member, now or later.
    Switchover(leader::Switchover),
    /// Fail over to a replica.
    Failover(leader::Failover),
    /// Discard scheduled events.
    Flush(actions::Flush),
    /// Disable automatic failover.
    Pause(dynamic::Pause),
    /// Resume automatic failover.
    Resume(dynamic::Pause),
    /// Edit the dynamic configuration.
    EditConfig(dynamic::EditConfig),
    /// Show the dynamic configuration.
    ShowConfig(ClusterArgument),
    /// Show the history of failovers and switchovers.
    History(commands::History),
    /// Show versions.
    Version(commands::Version),
    /// Turn a cluster into a standby cluster.
    DemoteCluster(dynamic::DemoteCluster),
    /// Turn a standby cluster into a regular one.
    PromoteCluster(dynamic::PromoteCluster),
    /// Print what makes a shell complete this command line.
    Completions(shell::Completions),
    /// Print the manual page, in roff.
    Man(shell::Man),
}

/// An optional cluster name and its group.
#[derive(Debug, Clone, Args)]
pub(super) struct ClusterArgument {
    /// Name of the cluster; `scope` of the configuration by default.
    cluster: Option<String>,
    /// Citus group.
    #[arg(long)]
    group: Option<u32>,
}

#[derive(Debug, Args)]
struct List {
    /// Names of clusters.
    clusters: Vec<String>,
    /// Citus group.
    #[arg(long)]
    group: Option<u32>,
    /// Show more columns.
    #[arg(short, long)]
    extended: bool,
    /// Print the time first.
    #[arg(short, long)]
    timestamp: bool,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    watch: Watch,
}

#[derive(Debug, Args)]
struct Topology {
    /// Names of clusters.
    clusters: Vec<String>,
    /// Citus group.
    #[arg(long)]
    group: Option<u32>,
    #[command(flatten)]
    watch: Watch,
}

#[derive(Debug, Args)]
pub(super) struct Watch {
    /// Repeat every two seconds.
    #[arg(short = 'W')]
    every_two_seconds: bool,
    /// Repeat every SECONDS.
    #[arg(short, long, value_name = "SECONDS")]
    watch: Option<f64>,
}

impl Watch {
    /// The pause between two rounds.
    fn pause(&self) -> Option<Duration> {
        match self.watch {
            Some(seconds) if seconds > 0.0 => Duration::try_from_secs_f64(seconds).ok(),
            _ => self.every_two_seconds.then_some(Duration::from_secs(2)),
        }
    }
}

/// `-r/--role`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum RoleChoice {
    /// Holder of the lock.
    Leader,
    /// Holder of the lock that is no standby leader.
    Primary,
    /// Holder of the lock that is no primary.
    StandbyLeader,
    /// Everyone else.
    Replica,
    /// As replica.
    Standby,
    /// All.
    Any,
}

/// What commands work with.
pub(super) struct Session<'a> {
    arguments: Globals,
    environment: &'a dyn Environment,
    opener: &'a Opener,
    screen: &'a mut Screen,
}

struct Globals {
    config_file: Option<String>,
    dcs_url: Option<String>,
    insecure: bool,
}

/// One cluster, its configuration and its store.
pub(super) struct Target {
    name: String,
    group: Option<u32>,
    config: Config,
    store: Store,
    client: Client,
}

impl Target {
    async fn load(&self) -> Result<Cluster, Failure> {
        Ok(self.store.load(Freshness::Latest).await?)
    }

    /// `loop_wait` of the cluster, in seconds.
    fn loop_wait(cluster: &Cluster) -> u64 {
        let value = cluster
            .config
            .as_ref()
            .and_then(|config| config.data.get("loop_wait"));
        value
            .and_then(crate::config::value::to_integer)
            .and_then(|seconds| u64::try_from(seconds).ok())
            .unwrap_or(10)
    }
}

impl Session<'_> {
    /// Opens the named cluster, or the one of the configuration.
    async fn open(&mut self, cluster: Option<&str>, group: Option<u32>) -> Result<Target, Failure> {
        let config = settings::load(&self.arguments, cluster, self.environment)?;
        if config.scope.is_empty() {
            return Err(Failure::Unnamed);
        }
        let group = group.or(config.citus.as_ref().map(|citus| citus.group));
        let identity = Identity {
            name: None,
            base: config.base_path(),
            group,
            ttl: Duration::from_secs(30),
            retry_timeout: Duration::from_secs(10),
        };
        let store = (self.opener)(config.clone(), identity).await?;
        let client = Client::new(&ClientSettings::for_ctl(&config, self.arguments.insecure))
            .map_err(|error| Failure::Error(error.to_string()))?;
        Ok(Target {
            name: config.scope.clone(),
            group,
            config,
            store,
            client,
        })
    }

    /// The cluster named on the command line or by the configuration; the former must exist if the latter does not.
    async fn open_default(&mut self, argument: &ClusterArgument) -> Result<Target, Failure> {
        self.open(argument.cluster.as_deref(), argument.group).await
    }
}

/// Runs one command; `arguments` without the program's name. Returns the exit code.
pub async fn run(
    arguments: Vec<OsString>,
    environment: &dyn Environment,
    opener: &Opener,
    screen: &mut Screen,
) -> u8 {
    let with_program = std::iter::once(OsString::from("patronictl")).chain(arguments);
    let parsed = match Arguments::try_parse_from(with_program) {
        Ok(parsed) => parsed,
        Err(error) => return usage(&error, screen),
    };
    let variables = environment.variables();
    let named = |name: &str| variables.get(name).filter(|text| !text.is_empty()).cloned();
    let globals = Globals {
        config_file: parsed
            .config_file
            .or_else(|| named("PATRONICTL_CONFIG_FILE")),
        dcs_url: parsed.dcs_url.or_else(|| named("DCS_URL")),
        insecure: parsed.insecure,
    };
    let strict_exit = parsed.strict_exit
        || named("PATRONICTL_STRICT_EXIT")
            .and_then(|text| crate::config::value::parse_bool(&text.into()))
            .unwrap_or(false);
    let plain =
        named("NO_COLOR").is_some() || variables.get("TERM").is_some_and(|term| term == "dumb");
    screen.colours = screen.is_terminal && !plain;
    let mut session = Session {
        arguments: globals,
        environment,
        opener,
        screen,
    };
    match session.dispatch(parsed.command).await {
        Ok(()) => 0,
        Err(Failure::Refused) => u8::from(strict_exit),
        Err(Failure::Error(text)) => {
            session.screen.complain(&format!("Error: {text}"));
            1
        }
        Err(Failure::Unnamed) => {
            session.screen.complain(
                "Error: no cluster is named: give its name, or set scope (PATRONI_SCOPE)",
            );
            1
        }
        Err(Failure::Aborted) => {
            session.screen.complain("Aborted!");
            1
        }
    }
}

/// Help on stdout with 0, wrong usage on stderr with 2, in upstream's shape.
fn usage(error: &clap::Error, screen: &mut Screen) -> u8 {
    use clap::error::ErrorKind;
    match error.kind() {
        ErrorKind::DisplayHelp => {
            let _ = screen.text(&error.to_string());
            0
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = screen.text(&error.to_string());
            2
        }
        _ => {
            let text = error.to_string();
            let usage = text
                .lines()
                .find_map(|line| line.strip_prefix("Usage: "))
                .unwrap_or("patronictl [OPTIONS] COMMAND");
            let command: Vec<&str> = usage
                .split(' ')
                .take_while(|word| !word.starts_with(['[', '<', '-']))
                .collect();
            let message: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).collect();
            let message = message.join(" ");
            let message = message.strip_prefix("error: ").unwrap_or(&message);
            screen.complain(&format!(
                "Usage: {usage}\nTry '{} --help' for help.\n\nError: {message}",
                command.join(" ")
            ));
            2
        }
    }
}

impl Session<'_> {
    async fn dispatch(&mut self, command: Command) -> Done {
        match command {
            Command::List(list) => {
                let options = members::Options {
                    format: list.format,
                    extended: list.extended,
                    timestamp: list.timestamp,
                    colours: self.screen.colours,
                };
                self.list(list.clusters, list.group, options, list.watch.pause())
                    .await
            }
            Command::Topology(topology) => {
                let options = members::Options {
                    format: Format::Topology,
                    extended: false,
                    timestamp: false,
                    colours: self.screen.colours,
                };
                self.list(
                    topology.clusters,
                    topology.group,
                    options,
                    topology.watch.pause(),
                )
                .await
            }
            Command::Explain(explain) => self.explain(explain).await,
            Command::Query(query) => self.query(query).await,
            Command::Dsn(dsn) => self.dsn(dsn).await,
            Command::Remove(remove) => self.remove(remove).await,
            Command::Reload(reload) => self.reload(reload).await,
            Command::Restart(restart) => self.restart(restart).await,
            Command::Reinit(reinit) => self.reinit(reinit).await,
            Command::Switchover(switchover) => self.switchover(switchover).await,
            Command::Failover(failover) => self.failover(failover).await,
            Command::Flush(flush) => self.flush(flush).await,
            Command::Pause(pause) => self.pause(pause, true).await,
            Command::Resume(resume) => self.pause(resume, false).await,
            Command::EditConfig(edit) => self.edit_config(edit).await,
            Command::ShowConfig(argument) => self.show_config(argument).await,
            Command::History(history) => self.history(history).await,
            Command::Version(version) => self.version(version).await,
            Command::DemoteCluster(demote) => self.demote_cluster(demote).await,
            Command::PromoteCluster(promote) => self.promote_cluster(promote).await,
            Command::Completions(completions) => self.completions(completions),
            Command::Man(man) => self.man(man),
        }
    }
}

#[cfg(test)]
#[path = "ctl/tests.rs"]
mod tests;
