//! One line of a story changes one fact of the picture.

use std::collections::BTreeMap;
use std::time::Duration;

use howdah::cluster::{
    Cluster, ConfigDocument, FailoverRequest, History, HistoryEntry, Initialize, Leader, Member,
    Schedule, SyncState, Tags,
};
use howdah::ha::decision::{Job, ReplaceReason, StopMode, StopPurpose};
use howdah::ha::observation::{
    Acknowledged, Connection, Control, ControlState, Directory, Divergence, FailsafeView, Heard,
    JobEnd, JobView, LeaseView, Local, Observation, Outcome, Peer, PeerAnswer, Position, Process,
    Promise, Replication, Request, Settings, StandbyNames, Standing, StoreView, Synchronous, Tried,
    Upstream, WatchdogView,
};
use howdah::types::{
    Lsn, MemberName, Moment, PgState, PgVersion, ReplicationState, Revision, Role, SystemId,
    Timeline, WallTime,
};

pub(crate) struct Picture {
    pub(crate) obs: Observation,
    cluster: Cluster,
    silent: bool,
}

type Change = Result<(), String>;

fn name(text: &str) -> MemberName {
    MemberName::new(text).expect("a name")
}

fn secs(text: &str) -> Result<Duration, String> {
    text.parse::<f64>()
        .map(Duration::from_secs_f64)
        .map_err(|error| error.to_string())
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text} is no number"))
}

fn system_id(text: &str) -> SystemId {
    text.parse().expect("digits")
}

const MINE: &str = "7000000000000000001";
const OTHER: &str = "7000000000000000002";

fn member(who: &str, role: Role) -> Member {
    Member {
        name: name(who),
        session: None,
        conn_url: Some(format!("postgres://{who}")),
        api_url: Some(format!("http://{who}/patroni")),
        state: Some(PgState::Running),
        role: Some(role),
        version: None,
        proxy_url: None,
        checkpoint_after_promote: true,
        tags: Tags::default(),
        pending_restart: None,
        xlog_location: None,
        replay_lsn: None,
        receive_lsn: None,
        replication_state: None,
        timeline: Some(Timeline(1)),
        scheduled_restart: None,
        pause: false,
        cannot_serve: None,
    }
}

fn upstream(text: &str) -> Upstream {
    match text {
        "nobody" => Upstream::Nobody,
        "remote" => remote(),
        who => Upstream::Member {
            name: name(who),
            conn_url: format!("postgres://{who}"),
        },
    }
}

fn remote() -> Upstream {
    Upstream::Remote {
        host: Some("far".to_owned()),
        port: None,
        slot: None,
        restore_command: None,
    }
}

impl Picture {
    /// `b` leads, `a` (me) and `c` follow; timeline 1, position 1000; the time is 100 s; the usual timings (30/10/10).
    pub(crate) fn calm() -> Picture {
        let leader = Leader {
            name: name("b"),
            revision: Revision(1),
            session: None,
        };
        let members: BTreeMap<_, _> = [
            ("a", Role::Replica),
            ("b", Role::Primary),
            ("c", Role::Replica),
        ]
        .into_iter()
        .map(|(who, role)| (name(who), member(who, role)))
        .collect();
        let cluster = Cluster {
            initialize: Initialize::Done(system_id(MINE)),
            config: Some(ConfigDocument {
                data: serde_json::Map::new(),
                revision: Revision(1),
            }),
            leader: Some(leader),
            members,
            ..Cluster::default()
        };
        let obs = Observation {
            me: name("a"),
            now: Moment(Duration::from_secs(100)),
            wall: WallTime(100_000),
            settings: Settings {
                ttl: Duration::from_secs(30),
                loop_wait: Duration::from_secs(10),
                retry_timeout: Duration::from_secs(10),
                maximum_lag_on_failover: 1000,
                maximum_lag_on_syncnode: None,
                primary_start_timeout: Duration::from_secs(300),
                primary_stop_timeout: Duration::ZERO,
                primary_answer_timeout: Duration::from_secs(120),
                primary_race_backoff: Duration::ZERO,
                check_timeline: false,
                pause: false,
                synchronous: Synchronous::Off,
                failsafe: false,
                isolation_hold: true,
                max_timelines_history: 0,
                standby_cluster: None,
                may_bootstrap: true,
                may_rewind: true,
                may_replace_diverged: false,
                may_replace_unrewindable: false,
                may_clone_without_leader: false,
                watchdog_required: false,
                use_slots: true,
                hand_over: true,
                stop_margin: Duration::from_secs(5),
            },
            tags: Tags::default(),
            store: StoreView::Fresh(cluster.clone()),
            lease: None,
            tried: Tried::default(),
            postgres: Local {
                directory: Directory::Present {
                    system_id: Some(system_id(MINE)),
                    control: Some(Control {
                        state: ControlState::InArchiveRecovery,
                        timeline: Timeline(1),
                        checkpoint: Lsn(1000),
                        backup_label: false,
                    }),
                },
                process: Process::Up,
                role: Role::Replica,
                state: PgState::Running,
                version: Some(PgVersion(150_000)),
                standby_configured: true,
                position: Some(Position::Standby {
                    timeline: Some(Timeline(1)),
                    received: Lsn(1000),
                    replayed: Lsn(1000),
                    replication: Some(ReplicationState::Streaming),
                }),
                follows: Some(upstream("b")),
                divergence: Divergence::Unchecked,
                replay_paused: false,
                standby_names: None,
                missing_slots: Vec::new(),
                replication: None,
            },
            job: JobView::Idle,
            peers: None,
            watchdog: WatchdogView {
                armed: true,
                usable: true,
            },
            requests: Vec::new(),
            stopping: false,
            failsafe: FailsafeView::default(),
            heard: Heard::default(),
            agent_since: Moment(Duration::ZERO),
            ailment: None,
        };
        Picture {
            obs,
            cluster,
            silent: false,
        }
    }

    /// Applies one line.
    pub(crate) fn change(&mut self, line: &str) -> Change {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (verb, rest) = words.split_first().ok_or("an empty line")?;
        match *verb {
            "at" => {
                self.obs.now = Moment(secs(rest.first().ok_or("when?")?)?);
                self.obs.wall = WallTime(
                    i64::try_from(self.obs.now.0.as_millis()).map_err(|error| error.to_string())?,
                );
            }
            "turn" => {
                self.obs.tried = Tried::default();
                self.obs.peers = None;
            }
            "leader" => self.leader(rest)?,
            "lease" => self.lease(rest)?,
            "store" => self.silent = rest == ["silent"],
            "i" => self.postgres(rest)?,
            "directory" => self.directory(rest)?,
            "control" => self.control(rest)?,
            "follows" => self.obs.postgres.follows = Some(upstream(rest.first().ok_or("whom?")?)),
            "role" => {
                self.obs.postgres.role = if rest == ["promoted"] {
                    Role::Promoted
                } else {
                    Role::Primary
                }
            }
            "history" => self.histories(rest)?,
            "compared" => self.compared(rest)?,
            "job" => self.job(rest)?,
            "peers" => self.peers(rest)?,
            "tried" => self.tried(rest)?,
            "set" => self.set(rest)?,
            "tag" => self.tag(rest)?,
            "member" => self.member(rest)?,
            "initialize" => {
                self.cluster.initialize = match rest {
                    ["absent"] => Initialize::Absent,
                    ["in", "progress"] => {
                        self.cluster.initialize_revision = Some(Revision(1));
                        Initialize::InProgress
                    }
                    ["other"] => Initialize::Done(system_id(OTHER)),
                    _ => Initialize::Done(system_id(MINE)),
                }
            }
            "config" => self.cluster.config = None,
            "sync" => self.published(rest)?,
            "names" => self.names(rest),
            "force" => {
                if let Some(running) = &mut self.obs.postgres.replication {
                    running.names = rest.join(" ");
                }
            }
            "standby" => self.standby(rest)?,
            "optime" => self.cluster.status.optime = Lsn(number(rest.first().ok_or("where?")?)?),
            "request" => self.failover(rest)?,
            "asked" => {
                self.obs.requests = match rest {
                    ["restart"] => vec![Request::Restart { timeout: None }],
                    ["restart", "within", time] => vec![Request::Restart {
                        timeout: Some(secs(time)?),
                    }],
                    ["reinitialize"] => vec![Request::Reinitialize {
                        force: false,
                        from_leader: false,
                    }],
                    ["reinitialize", "from", "the", "leader"] => vec![Request::Reinitialize {
                        force: false,
                        from_leader: true,
                    }],
                    ["reinitialize", "by", "force"] => vec![Request::Reinitialize {
                        force: true,
                        from_leader: false,
                    }],
                    _ => Vec::new(),
                }
            }
            "ailment" => {
                self.obs.ailment = (rest != ["none"]).then(|| rest.join(" "));
            }
            "stopping" => self.obs.stopping = true,
            "failsafe" => self.failsafe(rest)?,
            "heard" => self.heard(rest)?,
            "reloaded" => self.obs.tried.reloaded = true,
            "agent" => {
                let ["since", time] = rest else {
                    return Err("since when?".to_owned());
                };
                self.obs.agent_since = Moment(secs(time)?);
            }
            "missing" => {
                self.obs.postgres.missing_slots = rest.iter().map(ToString::to_string).collect();
            }
            "watchdog" => {
                self.obs.watchdog = WatchdogView {
                    armed: rest.contains(&"armed"),
                    usable: !rest.contains(&"unusable"),
                };
            }
            other => return Err(format!("what is {other}?")),
        }
        self.obs.store = if self.silent {
            StoreView::Silent {
                since: None,
                last: Some(Box::new(self.cluster.clone())),
            }
        } else {
            StoreView::Fresh(self.cluster.clone())
        };
        Ok(())
    }

    fn leader(&mut self, rest: &[&str]) -> Change {
        self.cluster.leader = match rest {
            ["nobody"] => None,
            [who] => Some(Leader {
                name: name(who),
                revision: Revision(2),
                session: None,
            }),
            _ => return Err("who leads?".to_owned()),
        };
        Ok(())
    }

    fn lease(&mut self, rest: &[&str]) -> Change {
        self.obs.lease = match rest {
            ["none"] => None,
            ["from", sent] => {
                let sent = Moment(secs(sent)?);
                Some(LeaseView {
                    sent,
                    expires: sent + self.obs.settings.ttl,
                })
            }
            _ => return Err("which lease?".to_owned()),
        };
        Ok(())
    }

    /// "i am primary on 2 at 500", "i am standby on 1 at 500 streaming", "i am down", "i am down unstartable", "i am crashed", "i am starting since 90".
    fn postgres(&mut self, rest: &[&str]) -> Change {
        let pg = &mut self.obs.postgres;
        pg.position = None;
        match rest {
            ["am", "primary", "on", timeline, "at", lsn] => {
                let timeline =
                    Timeline(u32::try_from(number(timeline)?).map_err(|error| error.to_string())?);
                pg.process = Process::Up;
                pg.position = Some(Position::Primary {
                    timeline,
                    lsn: Lsn(number(lsn)?),
                });
                (pg.role, pg.standby_configured, pg.follows) = (Role::Primary, false, None);
                self.control_state(ControlState::InProduction, timeline);
            }
            ["am", "standby", "on", timeline, "at", lsn, how @ ..] => {
                let timeline =
                    Timeline(u32::try_from(number(timeline)?).map_err(|error| error.to_string())?);
                let lsn = Lsn(number(lsn)?);
                pg.process = Process::Up;
                pg.position = Some(Position::Standby {
                    timeline: Some(timeline),
                    received: lsn,
                    replayed: lsn,
                    replication: how
                        .contains(&"streaming")
                        .then_some(ReplicationState::Streaming),
                });
                (pg.role, pg.standby_configured) = (Role::Replica, true);
                pg.replay_paused = how.contains(&"paused");
                if how.contains(&"old") {
                    pg.version = Some(PgVersion(120_000));
                }
                self.control_state(ControlState::InArchiveRecovery, timeline);
            }
            ["am", "mute"] => pg.process = Process::Up,
            ["am", "down"] => pg.process = Process::Down { crashed: false },
            ["am", "down", "unstartable"] => {
                pg.process = Process::Down { crashed: false };
                pg.state = PgState::StartFailed;
            }
            ["am", "crashed"] => pg.process = Process::Down { crashed: true },
            ["am", "starting", "since", since] => {
                pg.process = Process::Starting {
                    since: Moment(secs(since)?),
                }
            }
            _ => return Err("what am i?".to_owned()),
        }
        Ok(())
    }

    fn control_state(&mut self, state: ControlState, timeline: Timeline) {
        if let Directory::Present {
            control: Some(control),
            ..
        } = &mut self.obs.postgres.directory
        {
            (control.state, control.timeline) = (state, timeline);
        }
    }

    fn control(&mut self, rest: &[&str]) -> Change {
        let state = match rest {
            ["production"] => ControlState::InProduction,
            ["shut", "down"] => ControlState::ShutDown,
            ["in", "recovery"] => ControlState::InArchiveRecovery,
            _ => return Err("which state?".to_owned()),
        };
        self.control_state(state, Timeline(1));
        self.obs.postgres.standby_configured = state == ControlState::InArchiveRecovery;
        if state != ControlState::InArchiveRecovery {
            self.obs.postgres.follows = None;
        }
        Ok(())
    }

    fn directory(&mut self, rest: &[&str]) -> Change {
        self.obs.postgres.directory = match rest {
            ["empty"] => Directory::Empty,
            ["inaccessible"] => Directory::Inaccessible("permission denied".to_owned()),
            ["broken"] => Directory::Present {
                system_id: None,
                control: None,
            },
            ["other"] => Directory::Present {
                system_id: Some(system_id(OTHER)),
                control: None,
            },
            ["mine"] => Picture::calm().obs.postgres.directory,
            _ => return Err("which directory?".to_owned()),
        };
        if rest == ["empty"] {
            self.obs.postgres.process = Process::Down { crashed: false };
            self.obs.postgres.position = None;
            self.obs.postgres.follows = None;
            self.obs.postgres.standby_configured = false;
        }
        Ok(())
    }

    /// "history 1 until 500 then b": timeline 2 was opened by b at 500.
    fn histories(&mut self, rest: &[&str]) -> Change {
        let ["1", "until", lsn, "then", who] = rest else {
            return Err("which history?".to_owned());
        };
        let entry = HistoryEntry {
            timeline: Timeline(1),
            lsn: Lsn(number(lsn)?),
            reason: String::new(),
            timestamp: Some("then".to_owned()),
            new_leader: Some(name(who)),
        };
        self.cluster.history = Some(History {
            entries: vec![entry],
        });
        Ok(())
    }

    fn compared(&mut self, rest: &[&str]) -> Change {
        self.obs.postgres.divergence = match rest {
            ["prefix", "of", who] => Divergence::Prefix {
                of: upstream(who).name().ok_or("nobody")?,
            },
            ["diverged", "from", who] => Divergence::Diverged {
                from: upstream(who).name().ok_or("nobody")?,
                detail: "forked at 0/3E8".to_owned(),
            },
            ["rewind", "failed", "from", who] => Divergence::RewindFailed { from: name(who) },
            _ => Divergence::Unchecked,
        };
        Ok(())
    }

    fn job(&mut self, rest: &[&str]) -> Change {
        let named = |text: &str| -> Result<Job, String> {
            let stop = |purpose| Job::Stop {
                mode: StopMode::Fast,
                bound: None,
                checkpoint: false,
                purpose,
            };
            Ok(match text {
                "bootstrap" => Job::Bootstrap,
                "clone" => Job::Clone {
                    from: upstream("b"),
                },
                "start-primary" => Job::StartPrimary {
                    timeout: Duration::from_secs(300),
                },
                "restart" => Job::Restart {
                    timeout: Duration::from_secs(20),
                },
                "start-standby" => Job::StartStandby { of: upstream("b") },
                "promote" => Job::Promote,
                "switchover-stop" => stop(StopPurpose::Switchover),
                "demote-stop" => stop(StopPurpose::DemoteCluster),
                "shutdown-stop" => stop(StopPurpose::Shutdown),
                "lost-lease-stop" => stop(StopPurpose::LostLease),
                "compare" => Job::CheckDivergence {
                    with: upstream("b"),
                },
                "compare-remote" => Job::CheckDivergence { with: remote() },
                "copy-slots" => Job::CopySlots {
                    from: upstream("b"),
                    slots: vec!["events".to_owned()],
                },
                "crash-recovery" => Job::CrashRecovery,
                "rewind" => Job::Rewind {
                    from: upstream("b"),
                },
                "replace" => Job::Replace {
                    from: upstream("b"),
                    because: ReplaceReason::Diverged,
                },
                other => return Err(format!("which job is {other}?")),
            })
        };
        self.obs.job = match rest {
            ["none"] => JobView::Idle,
            ["runs", job, how @ ..] => {
                let shut_down_at = match how {
                    ["shut", "down", "at", lsn] => Some(Lsn(number(lsn)?)),
                    _ => None,
                };
                JobView::Running {
                    job: named(job)?,
                    since: self.obs.now,
                    shut_down_at,
                    cancelled: false,
                }
            }
            ["ended", job, how @ ..] => {
                let end = match how {
                    ["well"] => JobEnd::Done,
                    ["at", lsn] => JobEnd::StoppedAt(Lsn(number(lsn)?)),
                    ["cancelled"] => JobEnd::Cancelled,
                    _ => JobEnd::Failed("broken".to_owned()),
                };
                JobView::Finished {
                    job: named(job)?,
                    end,
                }
            }
            _ => return Err("which job?".to_owned()),
        };
        Ok(())
    }

    /// "peers b=standby@900 c=none": also `primary`, `nofailover`, `preferred`, `ailing`, `replaying`.
    fn peers(&mut self, rest: &[&str]) -> Change {
        let mut peers = Vec::new();
        for word in rest {
            let (who, what) = word.split_once('=').ok_or("which peer?")?;
            let answer = match what.split_once('@') {
                None => None,
                Some((kind, lsn)) => {
                    let mut tags = Tags::default();
                    match kind {
                        "nofailover" => tags.nofailover = Some(true),
                        "preferred" => tags.failover_priority = Some(2),
                        _ => {}
                    }
                    Some(PeerAnswer {
                        in_recovery: kind != "primary",
                        lsn: Lsn(number(lsn)?),
                        timeline: Some(Timeline(1)),
                        tags,
                        watchdog_failed: false,
                        cannot_serve: kind == "ailing",
                        replaying: kind == "replaying",
                    })
                }
            };
            peers.push(Peer {
                name: name(who),
                answer,
            });
        }
        self.obs.peers = Some(peers);
        Ok(())
    }

    fn tried(&mut self, rest: &[&str]) -> Change {
        for word in rest {
            let (what, outcome) = word.split_once('=').ok_or("tried what?")?;
            let outcome = Some(match outcome {
                "done" => Outcome::Done,
                "refused" => Outcome::Refused,
                _ => Outcome::Unknown,
            });
            let tried = &mut self.obs.tried;
            match what {
                "renew" => tried.renew = outcome,
                "acquire" => tried.acquire = outcome,
                "write" => tried.write = outcome,
                "release" => tried.release = outcome,
                "hand-over" => tried.hand_over = outcome,
                "names" => tried.names = outcome,
                "failsafe" => tried.failsafe = outcome,
                other => return Err(format!("tried {other}?")),
            }
        }
        Ok(())
    }

    fn set(&mut self, rest: &[&str]) -> Change {
        let settings = &mut self.obs.settings;
        match rest {
            ["pause", on] => settings.pause = *on == "on",
            ["no-standby-cluster"] => settings.standby_cluster = None,
            ["standby-cluster"] => settings.standby_cluster = Some(remote()),
            ["standby-cluster", "of", host] => {
                settings.standby_cluster = Some(Upstream::Remote {
                    host: Some((*host).to_owned()),
                    port: None,
                    slot: None,
                    restore_command: None,
                });
            }
            ["failsafe", on] => settings.failsafe = *on == "on",
            ["no-isolation-hold"] => settings.isolation_hold = false,
            ["no-rewind"] => settings.may_rewind = false,
            ["replace"] => {
                (
                    settings.may_replace_diverged,
                    settings.may_replace_unrewindable,
                ) = (true, true)
            }
            ["clone-without-leader"] => settings.may_clone_without_leader = true,
            ["watchdog-required"] => settings.watchdog_required = true,
            ["check-timeline"] => settings.check_timeline = true,
            ["backoff", time] => settings.primary_race_backoff = secs(time)?,
            ["start-timeout", time] => settings.primary_start_timeout = secs(time)?,
            ["stop-timeout", time] => settings.primary_stop_timeout = secs(time)?,
            ["answer-timeout", time] => settings.primary_answer_timeout = secs(time)?,
            ["no-hand-over"] => settings.hand_over = false,
            ["synchronous", mode, how @ ..] => {
                let strict = how.contains(&"strict");
                settings.synchronous = match *mode {
                    "off" => Synchronous::Off,
                    "quorum" => Synchronous::Quorum { strict, count: 1 },
                    _ => Synchronous::Priority { strict, count: 1 },
                };
            }
            _ => return Err("which setting?".to_owned()),
        }
        Ok(())
    }

    /// "sync of b", "sync of a b,c quorum 1": the published state; every line a new revision.
    fn published(&mut self, rest: &[&str]) -> Change {
        let sync = &mut self.cluster.sync;
        let revision = sync.revision.map_or(1, |revision| revision.0 + 1);
        let quorum = rest.iter().position(|word| *word == "quorum");
        *sync = SyncState {
            revision: Some(Revision(revision)),
            leader: rest.get(1).map(|who| name(who)),
            quorum: match quorum.and_then(|at| rest.get(at + 1)) {
                Some(text) => u32::try_from(number(text)?).map_err(|error| error.to_string())?,
                None => 0,
            },
            standbys: rest
                .get(2)
                .filter(|_| quorum != Some(2))
                .map(|names| names.split(',').map(name).collect())
                .unwrap_or_default(),
        };
        Ok(())
    }

    /// "names ANY 1 (b,c)": synchronous_standby_names in force, set by the core, seen now.
    fn names(&mut self, rest: &[&str]) {
        let names = rest.join(" ");
        let postgres = &mut self.obs.postgres;
        postgres.standby_names = Some(StandbyNames::Managed(
            (!names.is_empty()).then(|| names.clone()),
        ));
        let standbys = postgres
            .replication
            .take()
            .map_or_else(Vec::new, |replication| replication.standbys);
        postgres.replication = Some(Replication {
            at: self.obs.now,
            names,
            acknowledged: Acknowledged::Flushed,
            standbys,
        });
    }

    /// "standby c sync at 1000", "standby c gone".
    fn standby(&mut self, rest: &[&str]) -> Change {
        let replication = self
            .obs
            .postgres
            .replication
            .as_mut()
            .ok_or("names first")?;
        let who = rest.first().ok_or("which standby?")?;
        replication.standbys.retain(|standby| standby.name != *who);
        let [_, standing, "at", lsn] = rest else {
            return Ok(());
        };
        let lsn = Some(Lsn(number(lsn)?));
        replication.standbys.push(Connection {
            name: (*who).to_owned(),
            streaming: true,
            standing: match *standing {
                "sync" => Standing::Sync,
                "quorum" => Standing::Quorum,
                "potential" => Standing::Potential,
                _ => Standing::Async,
            },
            written: lsn,
            flushed: lsn,
            replayed: lsn,
        });
        Ok(())
    }

    /// "failsafe topology a,b", "failsafe promised to b until 120", "failsafe agreed until 120", "failsafe bound until 120".
    fn failsafe(&mut self, rest: &[&str]) -> Change {
        let view = &mut self.obs.failsafe;
        match rest {
            ["topology", "none"] => self.cluster.failsafe = None,
            ["topology", names] => {
                let entry = |who| (name(who), format!("http://{who}/patroni"));
                self.cluster.failsafe = Some(names.split(',').map(entry).collect());
            }
            ["promised", "to", who, "until", time] => {
                view.promise = Some(Promise {
                    leader: name(who),
                    conn_url: format!("postgres://{who}"),
                    api_url: format!("http://{who}/patroni"),
                    until: Moment(secs(time)?),
                });
            }
            ["agreed", "until", time] => view.agreed_until = Some(Moment(secs(time)?)),
            ["agreed", "no", "more"] => view.agreed_until = None,
            ["bound", "until", time] => view.bound_until = Some(Moment(secs(time)?)),
            ["bound", "no", "more"] => view.bound_until = None,
            _ => return Err("what about failsafe mode?".to_owned()),
        }
        Ok(())
    }

    /// "heard store 90", "heard members 90", "heard standbys 90".
    fn heard(&mut self, rest: &[&str]) -> Change {
        let [whom, time] = rest else {
            return Err("whom, and when?".to_owned());
        };
        let at = Some(Moment(secs(time)?));
        let heard = &mut self.obs.heard;
        match *whom {
            "store" => heard.store = at,
            "members" => heard.members = at,
            "standbys" => heard.standbys = at,
            other => return Err(format!("who is {other}?")),
        }
        Ok(())
    }

    fn tag(&mut self, rest: &[&str]) -> Change {
        match rest {
            ["nofailover"] => self.obs.tags.nofailover = Some(true),
            ["replicatefrom", who] => self.obs.tags.replicatefrom = Some(name(who)),
            _ => return Err("which tag?".to_owned()),
        }
        Ok(())
    }

    fn member(&mut self, rest: &[&str]) -> Change {
        let (who, what) = rest.split_first().ok_or("which member?")?;
        if what == ["gone"] {
            self.cluster.members.remove(&name(who));
            return Ok(());
        }
        let member = self
            .cluster
            .members
            .entry(name(who))
            .or_insert_with(|| member(who, Role::Replica));
        match what {
            ["is", "primary", "on", timeline] => {
                member.role = Some(Role::Primary);
                member.timeline = Some(Timeline(
                    u32::try_from(number(timeline)?).map_err(|error| error.to_string())?,
                ));
            }
            ["is", "replica"] => member.role = Some(Role::Replica),
            ["has", "no", "checkpoint"] => member.checkpoint_after_promote = false,
            ["is", "nofailover"] => member.tags.nofailover = Some(true),
            _ => return Err("what about it?".to_owned()),
        }
        Ok(())
    }

    /// "request from a to b", "request to b", "request from a at 200".
    fn failover(&mut self, rest: &[&str]) -> Change {
        if rest == ["none"] {
            self.cluster.failover = None;
            return Ok(());
        }
        let after = |word: &str| {
            rest.iter()
                .position(|w| *w == word)
                .and_then(|at| rest.get(at + 1))
                .copied()
        };
        let scheduled_at = match after("at") {
            None => None,
            Some("nonsense") => Some(Schedule::Unreadable("nonsense".to_owned())),
            Some(time) => Some(Schedule::At(WallTime(
                i64::try_from(secs(time)?.as_millis()).map_err(|error| error.to_string())?,
            ))),
        };
        self.cluster.failover = Some(FailoverRequest {
            revision: Revision(9),
            leader: after("from").map(name),
            candidate: after("to").map(name),
            scheduled_at,
        });
        Ok(())
    }
}
