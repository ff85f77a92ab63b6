//! `reload`, `restart`, `reinit`, `flush`: the same request to one member after another (spec/ctl.md §3, §6).

use std::time::Duration;

use clap::{Args, ValueEnum};
use hyper::Method;
use serde_json::{Map, Value, json};

use crate::cluster::{Cluster, Member};
use crate::dcs::{Document, Expect, Write};
use crate::peers::{Answer, CallError};
use crate::topology;
use crate::types::Role;

use super::leader::{in_an_hour, leader_role, parse_schedule};
use super::members::local_time;
use super::{Done, Failure, RoleChoice, Session, Target, error};

/// For requests that a node answers at once.
const SHORT: Duration = Duration::from_secs(30);
/// For a restart, which is answered when it is over.
const LONG: Duration = Duration::from_secs(3600);

/// Which members.
#[derive(Debug, Args)]
pub(super) struct Selection {
    /// Name of the cluster.
    cluster: String,
    /// Names of members.
    members: Vec<String>,
    /// Citus group.
    #[arg(long)]
    group: Option<u32>,
    /// Do not ask.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
pub(super) struct Reload {
    #[command(flatten)]
    selection: Selection,
    /// Members of this role.
    #[arg(short, long, value_enum, default_value = "any")]
    role: RoleChoice,
}

#[derive(Debug, Args)]
pub(super) struct Restart {
    #[command(flatten)]
    selection: Selection,
    /// Members of this role.
    #[arg(short, long, value_enum, default_value = "any")]
    role: RoleChoice,
    /// One member of those selected, chosen at random.
    #[arg(long)]
    any: bool,
    /// When; ISO 8601, or now.
    #[arg(long)]
    scheduled: Option<String>,
    /// Only members with an older PostgreSQL.
    #[arg(long)]
    pg_version: Option<String>,
    /// Only members that wait for a restart.
    #[arg(long)]
    pending: bool,
    /// Seconds to wait for the start.
    #[arg(long)]
    timeout: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Reinit {
    #[command(flatten)]
    selection: Selection,
    /// Take the base backup from the leader.
    #[arg(long)]
    from_leader: bool,
    /// Wait until it is complete.
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, Args)]
pub(super) struct Flush {
    #[command(flatten)]
    selection: Selection,
    /// Members of this role.
    #[arg(short, long, value_enum, default_value = "any")]
    role: RoleChoice,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FlushTarget {
    Restart,
    Switchover,
}

/// Members of a role, in the store's order.
pub(super) fn members_of(cluster: &Cluster, role: RoleChoice) -> Vec<&Member> {
    let leader = cluster.leader.as_ref().map(|leader| &leader.name);
    let is_leader = |member: &Member| Some(&member.name) == leader;
    let members = cluster.members.values();
    members
        .filter(|member| match role {
            RoleChoice::Any => true,
            RoleChoice::Leader => is_leader(member),
            RoleChoice::Primary => {
                is_leader(member) && leader_role(cluster) != Some(Role::StandbyLeader)
            }
            RoleChoice::StandbyLeader => {
                is_leader(member) && leader_role(cluster) != Some(Role::Primary)
            }
            RoleChoice::Replica | RoleChoice::Standby => !is_leader(member),
        })
        .collect()
}

/// What a request to a member came to; a member without an address is as good as unreachable.
async fn request(
    target: &Target,
    member: &Member,
    method: Method,
    endpoint: &str,
    body: Option<&Value>,
    patience: Duration,
) -> Result<Answer, CallError> {
    let Some(api_url) = &member.api_url else {
        return Err(CallError::NotSent(
            "no REST address in its member document".to_owned(),
        ));
    };
    let body = body.map(Value::to_string);
    let mut left = 3;
    loop {
        left -= 1;
        match target
            .client
            .call(method.clone(), api_url, endpoint, body.as_deref(), patience)
            .await
        {
            Err(CallError::NotSent(_)) if left > 0 => {
                tokio::time::sleep(Duration::from_millis(100)).await
            }
            other => return other,
        }
    }
}

impl Session<'_> {
    /// Steps 1–5 of spec §3, member selection. `None`: nothing to do.
    fn select(
        &mut self,
        target: &Target,
        cluster: &Cluster,
        selection: &Selection,
        role: Option<RoleChoice>,
        action: &str,
    ) -> Result<Vec<Member>, Failure> {
        let candidates = members_of(cluster, role.unwrap_or(RoleChoice::Replica));
        if candidates.is_empty() && selection.members.is_empty() {
            return error(format!("{} cluster doesn't have any members", target.name));
        }
        self.print_members(target, cluster)?;
        let role_text = match role {
            Some(role) => format!(
                "'{}'",
                role.to_possible_value()
                    .map(|value| value.get_name().to_owned())
                    .unwrap_or_default()
            ),
            None => "replica".to_owned(),
        };
        let mut names: Vec<String> = selection.members.clone();
        if names.is_empty() && role.is_some() {
            names = candidates
                .iter()
                .map(|member| member.name.to_string())
                .collect();
        }
        if names.is_empty() && !selection.force {
            let known: Vec<&str> = candidates
                .iter()
                .map(|member| member.name.as_str())
                .collect();
            let answer = self.screen.ask(
                &format!(
                    "Which member do you want to {action} [{}]?",
                    known.join(", ")
                ),
                Some(""),
            )?;
            if !known.contains(&answer.as_str()) {
                return error(format!("{answer} is not a member of cluster"));
            }
            names = vec![answer];
        }
        let chosen: Vec<Member> = candidates
            .iter()
            .filter(|member| names.iter().any(|name| name == member.name.as_str()))
            .map(|member| (*member).clone())
            .collect();
        if chosen.is_empty() && !names.is_empty() {
            return error(format!("No {role_text} among provided members"));
        }
        for name in names
            .iter()
            .filter(|name| !chosen.iter().any(|member| member.name.as_str() == *name))
        {
            self.screen.complain(&format!(
                "{name} is not among the {role_text} members of cluster {}; it is left out",
                target.name
            ));
        }
        Ok(chosen)
    }

    fn confirm_members(&mut self, members: &[Member], action: &str, force: bool) -> Done {
        if force {
            return Ok(());
        }
        let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
        if self.screen.confirm(&format!(
            "Are you sure you want to {action} members {}?",
            names.join(", ")
        ))? {
            Ok(())
        } else {
            error(format!("Aborted {action}"))
        }
    }

    fn print_failure(
        &mut self,
        action: &str,
        member: &Member,
        answer: &Result<Answer, CallError>,
    ) -> Done {
        let line = match answer {
            Ok(answer) => format!(
                "Failed: {action} for member {}, status code={}, ({})",
                member.name, answer.status, answer.body
            ),
            Err(error) => format!("Failed: {action} for member {}, ({error})", member.name),
        };
        self.screen.line(&line)
    }

    pub(super) async fn reload(&mut self, arguments: Reload) -> Done {
        let target = self
            .open(
                Some(&arguments.selection.cluster),
                arguments.selection.group,
            )
            .await?;
        let cluster = target.load().await?;
        let members = self.select(
            &target,
            &cluster,
            &arguments.selection,
            Some(arguments.role),
            "reload",
        )?;
        self.confirm_members(&members, "reload", arguments.selection.force)?;
        let mut refused = false;
        for member in &members {
            let answer = request(&target, member, Method::POST, "reload", None, SHORT).await;
            match &answer {
                Ok(Answer { status: 202, .. }) => {
                    let loop_wait = Target::loop_wait(&cluster);
                    self.screen.line(&format!("Reload request received for member {} and will be processed within {loop_wait} seconds", member.name))?;
                }
                Ok(Answer { status: 200, .. }) => self
                    .screen
                    .line(&format!("No changes to apply on member {}", member.name))?,
                _ => {
                    refused = true;
                    self.print_failure("reload", member, &answer)?;
                }
            }
        }
        if refused {
            Err(Failure::Refused)
        } else {
            Ok(())
        }
    }

    pub(super) async fn restart(&mut self, arguments: Restart) -> Done {
        let force = arguments.selection.force;
        let target = self
            .open(
                Some(&arguments.selection.cluster),
                arguments.selection.group,
            )
            .await?;
        let cluster = target.load().await?;
        let mut members = self.select(
            &target,
            &cluster,
            &arguments.selection,
            Some(arguments.role),
            "restart",
        )?;
        let text = match arguments.scheduled {
            Some(text) => text,
            None if force => String::new(),
            None => {
                let question = format!(
                    "When should the restart take place (e.g. {}) ",
                    in_an_hour()
                );
                self.screen.ask(&question, Some("now"))?
            }
        };
        let schedule = parse_schedule(&text)?;
        if arguments.pending && schedule.is_none() {
            members.retain(|member| member.pending_restart.is_some());
        }
        if arguments.any && members.len() > 1 {
            let chosen = rand::random_range(0..members.len());
            members = vec![members.swap_remove(chosen)];
        }
        match &schedule {
            None => self.confirm_members(&members, "restart", force)?,
            Some(at) if !force => {
                let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
                let question = if arguments.pending {
                    "The nodes needing a restart will be identified at the scheduled time, and might be different from the ones showing pending restart \
                     right now. Is this fine?"
                        .to_owned()
                } else {
                    format!(
                        "Are you sure you want to schedule restart of members {} at {at}?",
                        names.join(", ")
                    )
                };
                if !self.screen.confirm(&question)? {
                    return error("Aborted scheduled restart");
                }
            }
            Some(_) => {}
        }
        let version = match arguments.pg_version {
            Some(version) => version,
            None if force => String::new(),
            None => self.screen.ask(
                "Restart if the PostgreSQL version is less than provided (e.g. 9.5.2) ",
                Some(""),
            )?,
        };
        let mut body = Map::new();
        if arguments.pending {
            body.insert("restart_pending".to_owned(), true.into());
        }
        if !version.is_empty() {
            crate::restart::parse_version(&version.as_str().into()).map_err(Failure::Error)?;
            body.insert("postgres_version".to_owned(), version.into());
        }
        if let Some(at) = &schedule {
            if topology::is_paused(&cluster) {
                return error("Can't schedule restart in the paused state");
            }
            body.insert("schedule".to_owned(), at.as_str().into());
        }
        if let Some(timeout) = arguments.timeout {
            body.insert("timeout".to_owned(), timeout.into());
        }
        let body = Value::Object(body);
        let mut refused = false;
        for member in &members {
            if force && schedule.is_some() && member.scheduled_restart.is_some() {
                let _ = request(&target, member, Method::DELETE, "restart", None, SHORT).await;
            }
            let patience = if schedule.is_some() { SHORT } else { LONG };
            let answer = request(
                &target,
                member,
                Method::POST,
                "restart",
                Some(&body),
                patience,
            )
            .await;
            let name = &member.name;
            match &answer {
                Ok(Answer { status: 200, .. }) => self
                    .screen
                    .line(&format!("Success: restart on member {name}"))?,
                Ok(Answer { status: 202, .. }) => self
                    .screen
                    .line(&format!("Success: restart scheduled on member {name}"))?,
                Ok(Answer { status: 409, .. }) => {
                    refused = true;
                    self.screen.line(&format!(
                        "Failed: another restart is already scheduled on member {name}"
                    ))?;
                }
                _ => {
                    refused = true;
                    self.print_failure("restart", member, &answer)?;
                }
            }
        }
        if refused {
            Err(Failure::Refused)
        } else {
            Ok(())
        }
    }

    pub(super) async fn reinit(&mut self, arguments: Reinit) -> Done {
        let target = self
            .open(
                Some(&arguments.selection.cluster),
                arguments.selection.group,
            )
            .await?;
        let cluster = target.load().await?;
        let members = self.select(
            &target,
            &cluster,
            &arguments.selection,
            None,
            "reinitialize",
        )?;
        self.confirm_members(&members, "reinitialize", arguments.selection.force)?;
        let mut refused = false;
        let mut started: Vec<Member> = Vec::new();
        for member in members {
            let mut force = arguments.selection.force;
            loop {
                let body = json!({"force": force, "from_leader": arguments.from_leader});
                let answer = request(
                    &target,
                    &member,
                    Method::POST,
                    "reinitialize",
                    Some(&body),
                    SHORT * 2,
                )
                .await;
                if matches!(answer, Ok(Answer { status: 200, .. })) {
                    self.screen
                        .line(&format!("Success: reinitialize for member {}", member.name))?;
                    started.push(member);
                    break;
                }
                self.print_failure("reinitialize", &member, &answer)?;
                let is_busy =
                    answer.is_ok_and(|answer| answer.body.ends_with(" already in progress"));
                if !is_busy
                    || force
                    || !self
                        .screen
                        .confirm("Do you want to cancel it and reinitialize anyway?")?
                {
                    refused = true;
                    break;
                }
                force = true;
            }
        }
        if arguments.wait && !started.is_empty() {
            let names: Vec<&str> = started.iter().map(|member| member.name.as_str()).collect();
            self.screen.line(&format!(
                "Waiting for reinitialize to complete on: {}",
                names.join(", ")
            ))?;
            self.await_rebuilt(&target, started).await?;
        }
        if refused {
            Err(Failure::Refused)
        } else {
            Ok(())
        }
    }

    /// Waits until every member has been seen creating its replica, or at least not running, and then in another state.
    async fn await_rebuilt(&mut self, target: &Target, members: Vec<Member>) -> Done {
        let mut waiting: Vec<(Member, u32, bool)> = members
            .into_iter()
            .map(|member| (member, 0, false))
            .collect();
        while !waiting.is_empty() {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let mut still = Vec::new();
            for (member, mut looks, mut begun) in waiting {
                let answer = request(target, &member, Method::GET, "patroni", None, SHORT).await;
                let state = answer
                    .ok()
                    .and_then(|answer| serde_json::from_str::<Value>(&answer.body).ok())
                    .and_then(|status| status.get("state")?.as_str().map(str::to_owned));
                looks += 1;
                match state.as_deref() {
                    Some("creating replica") => begun = true,
                    // A rebuild may be over between two looks; after three of them it is not going to begin.
                    Some("running") if begun || looks >= 3 => {
                        self.screen
                            .line(&format!("Reinitialize is completed on: {}", member.name))?;
                        continue;
                    }
                    Some("running") | None => {}
                    Some(_) if begun => {
                        self.screen
                            .line(&format!("Reinitialize is completed on: {}", member.name))?;
                        continue;
                    }
                    Some(_) => begun = begun || looks >= 2,
                }
                still.push((member, looks, begun));
            }
            waiting = still;
        }
        Ok(())
    }

    pub(super) async fn flush(&mut self, mut arguments: Flush) -> Done {
        let what = arguments.selection.members.pop().unwrap_or_default();
        let Ok(what) = FlushTarget::from_str(&what, false) else {
            return error("the last argument must be restart or switchover");
        };
        let target = self
            .open(
                Some(&arguments.selection.cluster),
                arguments.selection.group,
            )
            .await?;
        let cluster = target.load().await?;
        match what {
            FlushTarget::Restart => self.flush_restart(&target, &cluster, &arguments).await,
            FlushTarget::Switchover => self.flush_switchover(&target, &cluster).await,
        }
    }

    async fn flush_restart(
        &mut self,
        target: &Target,
        cluster: &Cluster,
        arguments: &Flush,
    ) -> Done {
        let members = self.select(
            target,
            cluster,
            &arguments.selection,
            Some(arguments.role),
            "flush",
        )?;
        self.confirm_members(&members, "flush", arguments.selection.force)?;
        let mut refused = false;
        for member in &members {
            if member.scheduled_restart.is_none() {
                self.screen
                    .line(&format!("No scheduled restart for member {}", member.name))?;
                continue;
            }
            let answer = request(target, member, Method::DELETE, "restart", None, SHORT).await;
            match &answer {
                Ok(Answer {
                    status: 200 | 404, ..
                }) => self.screen.line(&format!(
                    "Success: flush scheduled restart for member {}",
                    member.name
                ))?,
                _ => {
                    refused = true;
                    self.print_failure("flush scheduled restart", member, &answer)?;
                }
            }
        }
        if refused {
            Err(Failure::Refused)
        } else {
            Ok(())
        }
    }

    async fn flush_switchover(&mut self, target: &Target, cluster: &Cluster) -> Done {
        let Some(pending) = cluster
            .failover
            .as_ref()
            .filter(|request| request.scheduled_at.is_some())
        else {
            return self.screen.line("No pending scheduled switchover");
        };
        let leader = cluster.leader_member();
        let others = cluster
            .members
            .values()
            .filter(|member| leader.is_none_or(|leader| leader.name != member.name));
        for member in leader.into_iter().chain(others) {
            match request(target, member, Method::DELETE, "switchover", None, SHORT).await {
                Ok(Answer {
                    status: 200, body, ..
                }) => return self.screen.line(&format!("Success: {body}")),
                Ok(Answer {
                    status: 404, body, ..
                }) => {
                    self.screen.line(&format!("Failed: {body}"))?;
                    return Err(Failure::Refused);
                }
                Ok(answer) => self.screen.line(&format!(
                    "Failed: member={}, status_code={}, ({})",
                    member.name, answer.status, answer.body
                ))?,
                Err(error) => tracing::warn!("{}: {error}", member.name),
            }
        }
        self.screen.line(&format!(
            "{} Could not find any accessible member of cluster {}",
            local_time(5),
            target.name
        ))?;
        match target
            .store
            .put(Document::Failover, "{}", Expect::At(pending.revision))
            .await
        {
            Write::Done(_) => Ok(()),
            failed => error(format!(
                "the request was not deleted from the store: {failed:?}"
            )),
        }
    }
}
