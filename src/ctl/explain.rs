//! `explain` (new beyond Patroni): asks every member why it is or is not the leader. A member out of reach is told of by the leader, by
//! anybody else who answers, or by the store, in this order.

use std::time::Duration;

use clap::Args;
use futures_util::future::join_all;
use hyper::Method;
use serde_json::{Map, Value};

use crate::cluster::{Cluster, Member, wire};
use crate::ha::explain::of_other;

use super::table::{self, Format, column};
use super::{ClusterArgument, Done, Session, Target};

/// A member asks the others before it answers.
const DEADLINE: Duration = Duration::from_secs(4);

#[derive(Debug, Args)]
pub(super) struct Explain {
    #[command(flatten)]
    cluster: ClusterArgument,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    format: Format,
}

impl Session<'_> {
    pub(super) async fn explain(&mut self, arguments: Explain) -> Done {
        let target = self.open_default(&arguments.cluster).await?;
        let cluster = target.load().await?;
        let reports = join_all(cluster.members.values().map(|member| ask(&target, member))).await;
        let rows: Vec<Vec<Value>> = cluster
            .members
            .values()
            .map(|member| row(&cluster, member, &reports))
            .collect();
        let columns = [
            column("Member"),
            column("Role"),
            column("Explanation"),
            column("Waits for"),
            column("Told by"),
        ];
        let text = table::render(&columns, &rows, arguments.format, "\t");
        self.screen.text(&text)
    }
}

/// What one member tells, of itself first.
struct Report {
    by: String,
    members: Vec<Map<String, Value>>,
}

async fn ask(target: &Target, member: &Member) -> Option<Report> {
    let api_url = member.api_url.as_deref()?;
    let call = target
        .client
        .call(Method::GET, api_url, "explain", None, DEADLINE);
    let answer = call.await.ok()?;
    let document: Value = serde_json::from_str(&answer.body).ok()?;
    let members = document.get("members")?.as_array()?;
    Some(Report {
        by: member.name.to_string(),
        members: members
            .iter()
            .filter_map(Value::as_object)
            .cloned()
            .collect(),
    })
}

fn row(cluster: &Cluster, member: &Member, reports: &[Option<Report>]) -> Vec<Value> {
    let name = member.name.as_str();
    let reports = || reports.iter().flatten();
    let leader = cluster.leader.as_ref().map(|leader| leader.name.as_str());
    let told = reports()
        .filter(|report| report.by == name)
        .chain(reports().filter(|report| Some(report.by.as_str()) == leader))
        .chain(reports())
        .find_map(|report| {
            let of_it =
                |row: &&Map<String, Value>| row.get("member").and_then(Value::as_str) == Some(name);
            report.members.iter().find(of_it)
        });
    let cell = |row: &Map<String, Value>, key: &str| match row.get(key) {
        None | Some(Value::Null) => Value::from(""),
        Some(value) => value.clone(),
    };
    match told {
        Some(told) => ["member", "role", "sentence", "waits_for", "told_by"]
            .iter()
            .map(|key| cell(told, key))
            .collect(),
        None => {
            let explanation = of_other(cluster, member, Some(None));
            vec![
                name.into(),
                member.role.map_or("", wire::role_text).into(),
                explanation.sentence.into(),
                explanation.waits_for.unwrap_or_default().into(),
                "the store".into(),
            ]
        }
    }
}
