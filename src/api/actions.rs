//! What changes something: switchover and failover, restart, reload, reinitialize, failsafe, Citus (spec/rest-api.md §12–§14).
//!
//! A switchover is a document in the store: written here, carried out and cleared by the agents. Everything else is a
//! [`Command`] to our own agent. Both are waited for under a limit of their own, outside the way of health checks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Response};
use serde_json::{Map, Value};
use tokio::sync::oneshot;

use crate::cluster::{Cluster, wire};
use crate::config::value;
use crate::dcs::{Document, Expect, Write};
use crate::node::{
    CitusEvent, Command, FailsafeOutcome, FailsafePing, ReinitializeOutcome, RestartOutcome,
    SynchronousMode,
};
use crate::restart::{RestartConditions, ScheduledRestart};
use crate::timestamps::{self, Parsed};
use crate::types::{Lsn, MemberName};
use crate::{clock, topology};

use super::{Api, Context, Need, PEER_DEADLINE, error_page, read_object};

/// A refusal or failure that ends a handler early.
pub(super) type Answer = Result<Response<Body>, Response<Body>>;

/// Patience for answers that the agent gives without doing anything long.
const AGENT_DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Switchover,
    Failover,
}

impl Action {
    fn lower(self) -> &'static str {
        match self {
            Action::Switchover => "switchover",
            Action::Failover => "failover",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Action::Switchover => "Switchover",
            Action::Failover => "Failover",
        }
    }

    fn past(self) -> (&'static str, &'static str) {
        match self {
            Action::Switchover => ("Successfully switched", "Switched"),
            Action::Failover => ("Successfully failed", "Failed"),
        }
    }
}

pub(super) async fn switchover(State(api): State<Arc<Api>>, request: Request) -> Answer {
    change_leader(&api, request, Action::Switchover).await
}

pub(super) async fn failover(State(api): State<Arc<Api>>, request: Request) -> Answer {
    change_leader(&api, request, Action::Failover).await
}

/// A member name in a body: `""`, null and absent mean the same. Anything else that is no text is refused: a switchover to a
/// candidate that cannot be read must not become one to just anybody.
pub(super) fn name_in(
    body: &Map<String, Value>,
    keys: &[&str],
) -> Result<Option<MemberName>, Response<Body>> {
    for key in keys {
        match body.get(*key) {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) => {
                if let Ok(name) = MemberName::new(text.as_str()) {
                    return Ok(Some(name));
                }
            }
            Some(_) => {
                return Err(error_page(
                    400,
                    "Bad Request",
                    &format!("{key} should be a text"),
                ));
            }
        }
    }
    Ok(None)
}

async fn change_leader(api: &Api, request: Request, asked: Action) -> Answer {
    let mark = request
        .extensions()
        .get::<Context>()
        .map(|context| context.mark.clone());
    let body = read_object(request, Need::Body).await?;
    let leader = name_in(&body, &["leader"])?;
    let candidate = name_in(&body, &["candidate", "member"])?;
    let scheduled_at = body
        .get("scheduled_at")
        .filter(|value| !matches!(value, Value::Null) && value.as_str() != Some(""));
    let cluster = api.fresh_cluster().await?;
    let paused = topology::is_paused(&cluster);

    let refuse = |status: u16, message: &str| Err(api.text(status, message));
    if asked == Action::Failover && candidate.is_none() {
        return refuse(
            400,
            "Failover could be performed only to a specific candidate",
        );
    }
    if asked == Action::Switchover && leader.is_none() {
        return refuse(
            400,
            "Switchover could be performed only from a specific leader",
        );
    }
    if asked == Action::Failover && scheduled_at.is_some() {
        return refuse(400, "Failover can't be scheduled");
    }
    if scheduled_at.is_some() && paused {
        return refuse(400, "Can't schedule switchover in the paused state");
    }
    let schedule = scheduled_at
        .map(|value| parse_schedule(api, value, "switchover"))
        .transpose()?;
    if paused && candidate.is_none() {
        return refuse(
            400,
            "Switchover is possible only to a specific candidate in a paused state",
        );
    }
    let action = if asked == Action::Failover && leader.is_some() {
        tracing::warn!(
            "received failover request with leader specified - performing switchover instead"
        );
        Action::Switchover
    } else {
        asked
    };
    if leader.is_some() && leader == candidate {
        return refuse(400, "Switchover target and source are the same");
    }
    if schedule.is_none()
        && let Err(reason) =
            precheck(api, &cluster, action, leader.as_ref(), candidate.as_ref()).await
    {
        return refuse(412, &reason);
    }

    let mut document = Map::new();
    let mut put = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            document.insert(key.to_owned(), value.into());
        }
    };
    put("leader", leader.as_ref().map(ToString::to_string));
    put("member", candidate.as_ref().map(ToString::to_string));
    put(
        "scheduled_at",
        schedule.as_ref().map(|(_, text)| text.clone()),
    );
    let written = api
        .store()?
        .put(
            Document::Failover,
            &wire::config_text(&document),
            Expect::Anything,
        )
        .await;
    if !matches!(written, Write::Done(_)) {
        tracing::warn!("the failover document was not written: {written:?}");
        return refuse(503, "failed to write failover key into DCS");
    }
    let _ = api.commands.try_send(Command::Wake);
    if schedule.is_some() {
        return Ok(api.text(202, "Switchover scheduled"));
    }
    let _busy = mark.map(|mark| mark.busy());
    let Ok(_permit) = api.long_calls.try_acquire() else {
        return Err(api.text(503, &unknown_outcome(action, Duration::ZERO)));
    };
    Ok(await_leader(
        api,
        action,
        cluster.leader.map(|leader| leader.name),
        candidate,
    )
    .await)
}

/// Why the change cannot work, in spec §12.1's words.
async fn precheck(
    api: &Api,
    cluster: &Cluster,
    action: Action,
    leader: Option<&MemberName>,
    candidate: Option<&MemberName>,
) -> Result<(), String> {
    let current = cluster.leader.as_ref().map(|leader| &leader.name);
    if leader.is_some() && leader != current {
        return Err("leader name does not match".to_owned());
    }
    let only_synchronous = topology::synchronous_mode(cluster) == SynchronousMode::On;
    let considered: Vec<&crate::cluster::Member> = match candidate {
        Some(candidate) => {
            if action == Action::Switchover
                && only_synchronous
                && !topology::is_synchronous(cluster, candidate)
            {
                return Err("candidate name does not match with sync_standby".to_owned());
            }
            match cluster.members.get(candidate) {
                Some(member) => vec![member],
                None => return Err("candidate does not exists".to_owned()),
            }
        }
        None => {
            let others = cluster
                .members
                .values()
                .filter(|member| Some(&member.name) != current);
            let members: Vec<_> = others
                .filter(|member| {
                    !only_synchronous || topology::is_synchronous(cluster, &member.name)
                })
                .collect();
            if members.is_empty() {
                let reason = if only_synchronous {
                    "can not find sync_standby"
                } else {
                    "cluster does not have members except leader"
                };
                return Err(format!("{} is not possible: {reason}", action.lower()));
            }
            members
        }
    };
    let urls = considered
        .iter()
        .filter_map(|member| Some((member.name.clone(), member.api_url.clone()?)));
    let mut answers = api.live().client.poll(urls, PEER_DEADLINE);
    while let Some(peer) = answers.recv().await {
        if peer
            .answer
            .is_some_and(|answer| !answer.tags.never_leads() && !answer.watchdog_failed)
        {
            return Ok(());
        }
    }
    Err(format!(
        "{} is not possible: no good candidates have been found",
        action.lower()
    ))
}

fn unknown_outcome(action: Action, waited: Duration) -> String {
    format!(
        "{} status unknown after {} seconds; operation may still be in progress",
        action.title(),
        waited.as_secs()
    )
}

/// Waits for another leader, by the agent's snapshots; the store is asked once a second as well, in case our loop is stuck.
async fn await_leader(
    api: &Api,
    action: Action,
    old: Option<MemberName>,
    candidate: Option<MemberName>,
) -> Response<Body> {
    let loop_wait = api.view().settings.loop_wait;
    let patience = 2 * loop_wait.max(Duration::from_secs(10));
    let outcome = async {
        let mut views = api.view.clone();
        loop {
            let changed = tokio::time::timeout(Duration::from_secs(1), views.changed()).await;
            if let Ok(Err(_)) = changed {
                // The agent is gone; its last view says nothing new.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            // Another leader in a snapshot is certain. A missing request is not: the snapshot may be older than it.
            let published = views
                .borrow_and_update()
                .current_cluster(clock::now())
                .cloned();
            if let Some(response) = published
                .as_deref()
                .and_then(|cluster| success(api, action, cluster, old.as_ref(), candidate.as_ref()))
            {
                return response;
            }
            let request_seen = published.is_some_and(|cluster| cluster.failover.is_some());
            if changed.is_ok() && request_seen {
                continue;
            }
            let Ok(cluster) = api.fresh_cluster().await else {
                continue;
            };
            if let Some(response) = success(api, action, &cluster, old.as_ref(), candidate.as_ref())
            {
                return response;
            }
            if cluster.failover.is_none() && cluster.leader.map(|leader| leader.name) == old {
                return api.text(503, &format!("{} failed", action.title()));
            }
        }
    };
    match tokio::time::timeout(patience, outcome).await {
        Ok(response) => response,
        Err(_) => api.text(503, &unknown_outcome(action, patience)),
    }
}

fn success(
    api: &Api,
    action: Action,
    cluster: &Cluster,
    old: Option<&MemberName>,
    candidate: Option<&MemberName>,
) -> Option<Response<Body>> {
    let new = &cluster.leader.as_ref()?.name;
    if Some(new) == old {
        return None;
    }
    let (successfully, plainly) = action.past();
    Some(match candidate {
        Some(candidate) if candidate != new => api.text(
            200,
            &format!("{plainly} over to \"{new}\" instead of \"{candidate}\""),
        ),
        _ => api.text(200, &format!("{successfully} over to \"{new}\"")),
    })
}

/// Spec §12.6: the time, and its text for the store.
fn parse_schedule(
    api: &Api,
    value: &Value,
    action: &str,
) -> Result<(crate::types::WallTime, String), Response<Body>> {
    match value.as_str().and_then(timestamps::parse) {
        None => Err(api.text(422, "Unable to parse scheduled timestamp. It should be in an unambiguous format, e.g. ISO 8601")),
        Some(Parsed::Local(_)) => Err(api.text(400, &format!("Timezone information is mandatory for the scheduled {action}"))),
        Some(Parsed::Zoned(time)) if timestamps::wall(time) < clock::wall() => {
            Err(api.text(422, &format!("Cannot schedule {action} in the past")))
        }
        Some(Parsed::Zoned(time)) => Ok((timestamps::wall(time), timestamps::iso(time))),
    }
}

pub(super) async fn delete_switchover(State(api): State<Arc<Api>>) -> Answer {
    let cluster = api.fresh_cluster().await?;
    let Some(request) = cluster
        .failover
        .filter(|request| request.scheduled_at.is_some())
    else {
        return Ok(api.text(404, "no switchover is scheduled"));
    };
    match api
        .store()?
        .put(Document::Failover, "{}", Expect::At(request.revision))
        .await
    {
        Write::Done(_) => {
            let _ = api.commands.try_send(Command::Wake);
            Ok(api.text(200, "scheduled switchover deleted"))
        }
        failed => {
            tracing::warn!("the scheduled switchover was not deleted: {failed:?}");
            Err(error_page(
                409,
                "Conflict",
                "The request was changed by someone else, or the store did not answer",
            ))
        }
    }
}

/// Sends a command and waits for its answer.
async fn ask<T>(
    api: &Api,
    patience: Option<Duration>,
    command: impl FnOnce(oneshot::Sender<T>) -> Command,
) -> Result<T, Response<Body>> {
    let (reply, answer) = oneshot::channel();
    let exchange = async {
        api.commands.send(command(reply)).await.ok()?;
        answer.await.ok()
    };
    let answer = match patience {
        None => exchange.await,
        Some(patience) => tokio::time::timeout(patience, exchange)
            .await
            .ok()
            .flatten(),
    };
    answer.ok_or_else(|| api.text(503, "The node is busy or shutting down and did not answer"))
}

pub(super) async fn restart(State(api): State<Arc<Api>>, request: Request) -> Answer {
    let mark = request
        .extensions()
        .get::<Context>()
        .map(|context| context.mark.clone());
    let body = read_object(request, Need::Optional).await?;
    if body.contains_key("schedule") && api.view().settings.pause {
        return Err(api.text(500, "Can't schedule restart in the paused state"));
    }
    let mut conditions = RestartConditions::default();
    let mut schedule = None;
    let mut document = Map::new();
    for (key, value) in &body {
        if key == "schedule" {
            let (at, text) = parse_schedule(&api, value, "restart")?;
            schedule = Some(at);
            document.insert(key.clone(), text.into());
            continue;
        }
        conditions
            .add(key, value)
            .map_err(|message| api.text(400, &message))?;
        document.insert(key.clone(), value.clone());
    }
    if let Some(at) = schedule {
        let restart = ScheduledRestart {
            at,
            conditions,
            postmaster_start_time: None,
            document,
        };
        let accepted = ask(&api, Some(AGENT_DEADLINE), |reply| {
            Command::ScheduleRestart { restart, reply }
        })
        .await?;
        return Ok(if accepted {
            api.text(202, "Restart scheduled")
        } else {
            api.text(409, "Another restart is already scheduled")
        });
    }
    let _busy = mark.map(|mark| mark.busy());
    let Ok(_permit) = api.long_calls.try_acquire() else {
        return Err(api.text(503, "Too many requests are waiting for this node already"));
    };
    Ok(
        match ask(&api, None, |reply| Command::Restart { conditions, reply }).await? {
            RestartOutcome::Done => api.text(200, "restarted successfully"),
            RestartOutcome::ConditionsNotMet => {
                api.text(503, "restart conditions are not satisfied")
            }
            RestartOutcome::Busy(job) => api.text(503, &format!("{job} already in progress")),
            RestartOutcome::StillStarting => api.text(503, "postgres is still starting"),
            RestartOutcome::Failed => api.text(503, "restart failed"),
        },
    )
}

pub(super) async fn delete_restart(State(api): State<Arc<Api>>) -> Answer {
    let deleted = ask(&api, Some(AGENT_DEADLINE), |reply| Command::CancelRestart {
        reply,
    })
    .await?;
    Ok(if deleted {
        api.text(200, "scheduled restart deleted")
    } else {
        api.text(404, "no restarts are scheduled")
    })
}

pub(super) async fn reload(State(api): State<Arc<Api>>) -> Answer {
    match tokio::time::timeout(AGENT_DEADLINE, api.commands.send(Command::Reload)).await {
        Ok(Ok(())) => Ok(api.text(202, "reload scheduled")),
        _ => Err(api.text(503, "The node is busy or shutting down and did not answer")),
    }
}

pub(super) async fn reinitialize(State(api): State<Arc<Api>>, request: Request) -> Answer {
    let body = read_object(request, Need::Optional).await?;
    let given = |keys: &[&str]| {
        let mut values = keys.iter().filter_map(|key| body.get(*key));
        values.find(|value| !value.is_null()).cloned()
    };
    let flag = |keys: &[&str]| match &given(keys) {
        None => Ok(false),
        Some(value) => value::parse_bool(value)
            .ok_or_else(|| api.text(400, &format!("{} should be a boolean", keys[0]))),
    };
    let force = flag(&["force"])?;
    let from_leader = flag(&["from_leader", "from-leader"])?;
    let outcome = ask(&api, Some(AGENT_DEADLINE * 3), |reply| {
        Command::Reinitialize {
            force,
            from_leader,
            reply,
        }
    })
    .await?;
    Ok(match outcome {
        ReinitializeOutcome::Started => api.text(200, "reinitialize started"),
        ReinitializeOutcome::NoLeader => {
            api.text(503, "Cluster has no leader, can not reinitialize")
        }
        ReinitializeOutcome::IAmLeader => api.text(503, "I am the leader, can not reinitialize"),
        ReinitializeOutcome::Busy(job) => api.text(503, &format!("{job} already in progress")),
    })
}

pub(super) async fn sigterm(State(api): State<Arc<Api>>) -> Response<Body> {
    api.text(202, "shutdown scheduled")
}

pub(super) async fn failsafe(State(api): State<Arc<Api>>, request: Request) -> Answer {
    let body = read_object(request, Need::Body).await?;
    let text = |key: &str| {
        body.get(key)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
    };
    let (Some(name), Some(conn_url), Some(api_url)) = (
        name_in(&body, &["name"])?,
        text("conn_url"),
        text("api_url"),
    ) else {
        return Err(error_page(
            400,
            "Bad Request",
            "name, conn_url and api_url are required",
        ));
    };
    let slots: BTreeMap<String, Lsn> = body
        .get("slots")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(slot, lsn)| Some((slot.clone(), Lsn(lsn.as_u64()?))))
        .collect();
    let ping = FailsafePing {
        name,
        conn_url: conn_url.to_owned(),
        api_url: api_url.to_owned(),
        slots,
    };
    match ask(&api, Some(AGENT_DEADLINE), |reply| Command::FailsafePing {
        ping,
        reply,
    })
    .await?
    {
        FailsafeOutcome::Accepted(lsn) => {
            let mut response = api.text(200, "Accepted");
            if let Some(value) = lsn.and_then(|lsn| HeaderValue::try_from(lsn.0.to_string()).ok()) {
                response
                    .headers_mut()
                    .insert(HeaderName::from_static("lsn"), value);
            }
            Ok(response)
        }
        FailsafeOutcome::RunningAsLeader => Err(api.text(500, "Running as a leader")),
        FailsafeOutcome::AnotherLeads(leader) => {
            Err(api.text(500, &format!("{leader} holds the leader lock")))
        }
        FailsafeOutcome::NotEnabled => Err(error_page(
            502,
            "Bad Gateway",
            "Failsafe mode is not enabled",
        )),
    }
}

pub(super) async fn citus(State(api): State<Arc<Api>>, request: Request) -> Answer {
    let mark = request
        .extensions()
        .get::<Context>()
        .map(|context| context.mark.clone());
    let body = read_object(request, Need::Body).await?;
    let seconds =
        |key: &str| value::parse_seconds(body.get(key).unwrap_or(&Value::Null)).unwrap_or_default();
    let leader = name_in(&body, &["leader"])?;
    let event = (|| {
        Some(CitusEvent {
            kind: body.get("type")?.as_str()?.to_owned(),
            group: u32::try_from(body.get("group")?.as_u64()?).ok()?,
            leader: leader?,
            timeout: seconds("timeout"),
            cooldown: seconds("cooldown"),
        })
    })();
    if let Some(event) = event {
        let _busy = mark.map(|mark| mark.busy());
        if let Ok(_permit) = api.long_calls.try_acquire() {
            // Always 200 `OK`: the worker goes on whatever happened here.
            let patience = event.timeout.max(AGENT_DEADLINE);
            let _ = ask(&api, Some(patience), |reply| Command::Citus {
                event,
                reply,
            })
            .await;
        }
    }
    Ok(api.text(200, "OK"))
}
