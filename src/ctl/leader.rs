//! `switchover` and `failover` (spec/ctl.md §6): prompts, checks, one POST, and the store as a last resort.

use std::time::Duration;

use chrono::{Local, TimeZone};
use clap::Args;
use hyper::Method;
use serde_json::{Map, Value};

use crate::cluster::{Cluster, Member, wire};
use crate::dcs::{Document, Expect, Write};
use crate::node::SynchronousMode;
use crate::peers::{Answer, CallError};
use crate::timestamps::{self, Parsed};
use crate::topology;
use crate::types::{MemberName, Role};

use super::members::local_time;
use super::{ClusterArgument, Done, Failure, Session, Target, error};

/// Longer than any node lets a switchover wait.
const PATIENCE: Duration = Duration::from_secs(3600);

#[derive(Debug, Args)]
pub(super) struct Switchover {
    #[command(flatten)]
    cluster: ClusterArgument,
    /// The current leader.
    #[arg(long, visible_alias = "primary")]
    leader: Option<String>,
    /// The new leader.
    #[arg(long)]
    candidate: Option<String>,
    /// When; ISO 8601, or now.
    #[arg(long)]
    scheduled: Option<String>,
    /// Do not ask.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
pub(super) struct Failover {
    #[command(flatten)]
    cluster: ClusterArgument,
    /// The new leader.
    #[arg(long)]
    candidate: Option<String>,
    /// Do not ask.
    #[arg(long)]
    force: bool,
}

/// What both have in common.
struct Change {
    action: &'static str,
    cluster: ClusterArgument,
    leader: Option<String>,
    candidate: Option<String>,
    scheduled: Option<String>,
    force: bool,
}

/// A time as typed, `None` = now. A missing zone is the local one.
pub(super) fn parse_schedule(text: &str) -> Result<Option<String>, Failure> {
    let text = text.trim();
    if text.is_empty() || text.eq_ignore_ascii_case("now") {
        return Ok(None);
    }
    let time = match timestamps::parse(text) {
        Some(Parsed::Zoned(time)) => Some(time),
        Some(Parsed::Local(time)) => Local
            .from_local_datetime(&time)
            .earliest()
            .map(|time| time.fixed_offset()),
        None => None,
    };
    match time {
        Some(time) => Ok(Some(timestamps::iso(time))),
        None => error(format!(
            "Unable to parse scheduled timestamp ({text}). It should be in an unambiguous format (e.g. ISO 8601)"
        )),
    }
}

/// One hour from now, as an example in prompts.
pub(super) fn in_an_hour() -> String {
    let at = crate::clock::wall().0 + 3_600_000;
    let time = chrono::DateTime::from_timestamp_millis(at)
        .unwrap_or_default()
        .with_timezone(&Local);
    time.format("%Y-%m-%dT%H:%M").to_string()
}

impl Session<'_> {
    pub(super) async fn switchover(&mut self, arguments: Switchover) -> Done {
        let Switchover {
            cluster,
            leader,
            candidate,
            scheduled,
            force,
        } = arguments;
        self.change_leader(Change {
            action: "switchover",
            cluster,
            leader,
            candidate,
            scheduled,
            force,
        })
        .await
    }

    pub(super) async fn failover(&mut self, arguments: Failover) -> Done {
        let Failover {
            cluster,
            candidate,
            force,
        } = arguments;
        self.change_leader(Change {
            action: "failover",
            cluster,
            leader: None,
            candidate,
            scheduled: None,
            force,
        })
        .await
    }

    async fn change_leader(&mut self, change: Change) -> Done {
        let Change { action, force, .. } = change;
        let is_switchover = action == "switchover";
        let target = self.open_default(&change.cluster).await?;
        let cluster = target.load().await?;
        self.screen.line("Current cluster topology")?;
        self.print_members(&target, &cluster)?;

        let current = cluster.leader.as_ref().map(|leader| leader.name.clone());
        let mut leader = None;
        if is_switchover {
            let Some(current) = &current else {
                return error("This cluster has no leader");
            };
            let named = match change.leader {
                Some(named) => named,
                None if force => current.to_string(),
                None => {
                    let label = if topology::is_standby_cluster(&cluster) {
                        "Standby Leader"
                    } else {
                        "Primary"
                    };
                    self.screen.ask(label, Some(current.as_str()))?
                }
            };
            if named != current.as_str() {
                return error(format!(
                    "Member {named} is not the leader of cluster {}",
                    target.name
                ));
            }
            leader = Some(current.clone());
        }
        let candidate = self.choose_candidate(
            &target,
            &cluster,
            action,
            change.candidate,
            current.as_ref(),
            force,
        )?;
        if !is_switchover && candidate.is_none() {
            return error("Failover could be performed only to a specific candidate");
        }
        if let Some(candidate) = candidate.as_ref().filter(|_| !is_switchover && !force) {
            let synchronous = topology::synchronous_mode(&cluster) != SynchronousMode::Off;
            if synchronous && !topology::is_synchronous(&cluster, candidate) {
                let question = format!(
                    "Are you sure you want to failover to the asynchronous node {candidate}?"
                );
                if !self.screen.confirm(&question)? {
                    return error("Aborting failover");
                }
            }
        }
        let mut scheduled_at = None;
        if is_switchover {
            let text = match change.scheduled {
                Some(text) => text,
                None if force => String::new(),
                None => {
                    let question = format!(
                        "When should the switchover take place (e.g. {} ) ",
                        in_an_hour()
                    );
                    self.screen.ask(&question, Some("now"))?
                }
            };
            scheduled_at = parse_schedule(&text)?;
            if scheduled_at.is_some() && topology::is_paused(&cluster) {
                return error("Can't schedule switchover in the paused state");
            }
        }
        if !force {
            let demoting = current
                .as_ref()
                .map(|leader| format!(", demoting current leader {leader}"))
                .unwrap_or_default();
            let (question, refusal) = match &scheduled_at {
                Some(at) => (
                    format!(
                        "Are you sure you want to schedule switchover of cluster {} at {at}{demoting}?",
                        target.name
                    ),
                    "Aborting scheduled switchover".to_owned(),
                ),
                None => (
                    format!(
                        "Are you sure you want to {action} cluster {}{demoting}?",
                        target.name
                    ),
                    format!("Aborting {action}"),
                ),
            };
            if !self.screen.confirm(&question)? {
                return error(refusal);
            }
        }
        self.request_change(&target, &cluster, action, leader, candidate, scheduled_at)
            .await
    }

    fn choose_candidate(
        &mut self,
        target: &Target,
        cluster: &Cluster,
        action: &str,
        given: Option<String>,
        leader: Option<&MemberName>,
        force: bool,
    ) -> Result<Option<MemberName>, Failure> {
        let possible: Vec<&MemberName> = cluster
            .members
            .values()
            .filter(|member| Some(&member.name) != leader && !member.tags.never_leads())
            .map(|member| &member.name)
            .collect();
        if possible.is_empty() {
            return error(format!("No candidates found to {action} to"));
        }
        let answer = match given {
            Some(given) => given,
            None if force => String::new(),
            None => {
                let names: Vec<String> = possible.iter().map(|name| format!("'{name}'")).collect();
                self.screen
                    .ask(&format!("Candidate [{}]", names.join(", ")), Some(""))?
            }
        };
        let Ok(candidate) = MemberName::new(answer) else {
            return Ok(None);
        };
        if Some(&candidate) == leader {
            return error(format!(
                "Member {candidate} is already the leader of cluster {}",
                target.name
            ));
        }
        if !possible.contains(&&candidate) {
            return error(format!(
                "Member {candidate} does not exist in cluster {} or is tagged as nofailover",
                target.name
            ));
        }
        Ok(Some(candidate))
    }

    async fn request_change(
        &mut self,
        target: &Target,
        cluster: &Cluster,
        action: &str,
        leader: Option<MemberName>,
        candidate: Option<MemberName>,
        scheduled_at: Option<String>,
    ) -> Done {
        let title = if action == "switchover" {
            "Switchover"
        } else {
            "Failover"
        };
        let mut body = Map::new();
        body.insert(
            "candidate".to_owned(),
            candidate.as_ref().map(MemberName::as_str).into(),
        );
        if let Some(leader) = &leader {
            body.insert("leader".to_owned(), leader.as_str().into());
        }
        if let Some(at) = &scheduled_at {
            body.insert("scheduled_at".to_owned(), at.as_str().into());
        }
        let receiver = cluster.leader_member().or_else(|| {
            candidate
                .as_ref()
                .and_then(|name| cluster.members.get(name))
        });
        match post(target, receiver, action, &Value::Object(body)).await {
            Ok(answer) if matches!(answer.status, 200 | 202) => {
                self.screen
                    .line(&format!("{} {}", local_time(5), answer.body))?;
                let after = target.load().await?;
                self.print_members(target, &after)
            }
            Ok(answer) => {
                let outcome = if answer.body.contains("status unknown") {
                    "result unknown"
                } else {
                    "failed"
                };
                self.screen.line(&format!(
                    "{title} {outcome}, details: {}, {}",
                    answer.status, answer.body
                ))?;
                Err(Failure::Refused)
            }
            Err(CallError::Unanswered(detail)) => {
                // It may be under way: writing the request again could move the leader twice.
                self.screen
                    .line(&format!("{title} result unknown, details: {detail}"))?;
                Err(Failure::Refused)
            }
            Err(CallError::NotSent(detail)) => {
                tracing::warn!("{detail}");
                self.screen.line(&format!(
                    "{} Could not {action} using Patroni api, falling back to DCS",
                    local_time(5)
                ))?;
                let mut document = Map::new();
                for (key, value) in [
                    ("leader", leader.map(|name| name.to_string())),
                    ("member", candidate.map(|name| name.to_string())),
                    ("scheduled_at", scheduled_at),
                ] {
                    if let Some(value) = value {
                        document.insert(key.to_owned(), value.into());
                    }
                }
                match target
                    .store
                    .put(
                        Document::Failover,
                        &wire::config_text(&document),
                        Expect::Anything,
                    )
                    .await
                {
                    Write::Done(_) => {}
                    failed => {
                        return error(format!(
                            "the request was not written to the store: {failed:?}"
                        ));
                    }
                }
                let after = target.load().await?;
                self.print_members(target, &after)
            }
        }
    }
}

async fn post(
    target: &Target,
    receiver: Option<&Member>,
    action: &str,
    body: &Value,
) -> Result<Answer, CallError> {
    let Some(api_url) = receiver.and_then(|member| member.api_url.as_deref()) else {
        return Err(CallError::NotSent(
            "no member with a REST address".to_owned(),
        ));
    };
    let body = body.to_string();
    let answer = target
        .client
        .call(Method::POST, api_url, action, Some(&body), PATIENCE)
        .await?;
    if answer.status == 501
        && answer
            .body
            .contains("Server does not support this operation")
    {
        return target
            .client
            .call(Method::POST, api_url, "failover", Some(&body), PATIENCE)
            .await;
    }
    Ok(answer)
}

/// The lock holder's role in the words of its member document.
pub(super) fn leader_role(cluster: &Cluster) -> Option<Role> {
    cluster.leader_member().and_then(|member| member.role)
}
