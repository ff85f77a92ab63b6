//! `history`, `version`, `remove`.

use std::time::Duration;

use clap::Args;
use hyper::Method;
use serde_json::Value;

use crate::cluster::CONTRACT_VERSION;
use crate::dcs::Write;
use crate::topology;

use super::table::{self, Format, column, numbers};
use super::{ClusterArgument, Done, Failure, Session, error, yaml};

#[derive(Debug, Args)]
pub(super) struct History {
    #[command(flatten)]
    cluster: ClusterArgument,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Args)]
pub(super) struct Version {
    /// Name of the cluster.
    cluster: Option<String>,
    /// Members.
    members: Vec<String>,
    /// Citus group.
    #[arg(long)]
    group: Option<u32>,
}

#[derive(Debug, Args)]
pub(super) struct Remove {
    /// Name of the cluster.
    cluster: String,
    /// Citus group.
    #[arg(long)]
    group: Option<u32>,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    format: Format,
}

impl Session<'_> {
    pub(super) async fn history(&mut self, arguments: History) -> Done {
        let target = self.open_default(&arguments.cluster).await?;
        let cluster = target.load().await?;
        let columns = [
            numbers("TL"),
            numbers("LSN"),
            column("Reason"),
            column("Timestamp"),
            column("New Leader"),
        ];
        let mut rows = topology::history_rows(&cluster);
        for row in &mut rows {
            row.resize(columns.len(), Value::from(""));
        }
        let text = table::render(&columns, &rows, arguments.format, "\t");
        self.screen.text(&text)
    }

    pub(super) async fn show_config(&mut self, argument: ClusterArgument) -> Done {
        let target = self.open_default(&argument).await?;
        match target.load().await?.config {
            Some(config) => self.screen.line(&yaml::document(&config.data.into())),
            None => Ok(()),
        }
    }

    pub(super) async fn version(&mut self, arguments: Version) -> Done {
        self.screen
            .line(&format!("patronictl version {CONTRACT_VERSION}"))?;
        let Some(name) = &arguments.cluster else {
            return Ok(());
        };
        let target = self.open(Some(name), arguments.group).await?;
        self.screen.line("")?;
        let cluster = target.load().await?;
        for member in cluster.members.values() {
            let wanted = arguments.members.is_empty()
                || arguments
                    .members
                    .iter()
                    .any(|name| name == member.name.as_str());
            let (true, Some(api_url)) = (wanted, &member.api_url) else {
                continue;
            };
            let answer = target
                .client
                .call(
                    Method::GET,
                    api_url,
                    "patroni",
                    None,
                    Duration::from_secs(10),
                )
                .await;
            let line = match answer
                .map_err(|error| error.to_string())
                .and_then(|answer| versions(&answer.body))
            {
                Ok(versions) => format!("{}: {versions}", member.name),
                Err(error) => format!("{}: failed to get version: {error}", member.name),
            };
            self.screen.line(&line)?;
        }
        Ok(())
    }

    pub(super) async fn remove(&mut self, arguments: Remove) -> Done {
        let target = self.open(Some(&arguments.cluster), arguments.group).await?;
        if target.config.citus.is_some() && arguments.group.is_none() {
            return error("For Citus clusters the --group must me specified");
        }
        let cluster = target.load().await?;
        let options = super::members::Options {
            format: arguments.format,
            extended: false,
            timestamp: false,
            colours: self.screen.colours,
        };
        let text = super::members::render(&target, &cluster, options);
        self.screen.text(&text)?;
        if self
            .screen
            .ask("Please confirm the cluster name to remove", None)?
            != target.name
        {
            return error("Cluster names specified do not match");
        }
        let question = format!(
            "You are about to remove all information in DCS for {}, please type: \"Yes I am aware\"",
            target.name
        );
        if self.screen.ask(&question, None)? != "Yes I am aware" {
            return error("You did not exactly type \"Yes I am aware\"");
        }
        if let Some(leader) = &cluster.leader {
            let answer = self.screen.ask(
                "This cluster currently is healthy. Please specify the leader name to continue",
                None,
            )?;
            if answer != leader.name.as_str() {
                return error("You did not specify the current leader of the cluster");
            }
        }
        match target.store.delete_cluster().await {
            Write::Done(()) => Ok(()),
            Write::Refused(why) => {
                error(format!("the store refused to remove the cluster: {why:?}"))
            }
            Write::Unknown(why) => Err(Failure::from(why)),
        }
    }
}

/// `Patroni 4.1.4 PostgreSQL 17.2`.
fn versions(body: &str) -> Result<String, String> {
    let status: Value = serde_json::from_str(body).map_err(|error| error.to_string())?;
    let patroni = status
        .pointer("/patroni/version")
        .and_then(Value::as_str)
        .ok_or("no version in its status")?;
    let server = status
        .get("server_version")
        .and_then(Value::as_u64)
        .map(|number| {
            if number >= 100_000 {
                format!(" PostgreSQL {}.{}", number / 10_000, number % 10_000)
            } else {
                format!(
                    " PostgreSQL {}.{}.{}",
                    number / 10_000,
                    number / 100 % 100,
                    number % 100
                )
            }
        });
    Ok(format!("Patroni {patroni}{}", server.unwrap_or_default()))
}
