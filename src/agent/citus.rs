//! Citus beside the loop (spec/ha.md §20). A worker's leader tells the coordinator's what happens to it; the coordinator's leader keeps
//! `pg_dist_node` right, in a task with a connection of its own. What is to be changed and in which order is `crate::citus`.
//!
//! Nothing here can hold up who leads: a worker waits for the coordinator for a bounded time and goes on whatever it says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc, oneshot, watch};

use crate::citus::agenda::{Agenda, Event, Next, Phase};
use crate::citus::{self, Address, COORDINATOR, Change, Row};
use crate::clock;
use crate::cluster::Cluster;
use crate::config;
use crate::dcs::Store;
use crate::ha::decision::{Job, StopPurpose};
use crate::ha::observation;
use crate::node::{CitusEvent, ViewReceiver};
use crate::peers::Client;
use crate::postgres::Settings;
use crate::postgres::sql::{Session, SqlError, Target};
use crate::types::{MemberName, Moment, PgState, Role};

use super::Agent;

/// How long the coordinator may take to answer what does not wait for it (spec/rest-api.md §15).
const ATTEMPT: Duration = Duration::from_secs(2);

/// How long a change without an event waits for queries that are running: Citus' own default.
const COOLDOWN: Duration = Duration::from_secs(10);

/// How much longer than that such a change may take.
const MARGIN: Duration = Duration::from_secs(5);
/// No event holds a group's traffic longer, whatever it says.
const LONGEST: Duration = Duration::from_secs(600);

/// This node's part in a Citus cluster.
pub(super) struct Citus {
    group: u32,
    me: MemberName,
    store: Store,
    client: Client,
    /// Of a node of the coordinator's group.
    desk: Option<mpsc::Sender<Asked>>,
    /// The store shows this node as a running primary.
    announced: bool,
    /// What is told is told in its order.
    order: Arc<Mutex<()>>,
}

/// An event, and who waits until it has been served.
type Asked = (Event, Option<oneshot::Sender<()>>);

impl Citus {
    /// Starts what the configuration asks for; on a node of the coordinator's group that is the task for the table.
    pub(super) fn start(
        configured: &config::Citus,
        me: &MemberName,
        store: &Store,
        client: &Client,
        view: ViewReceiver,
        settings: watch::Receiver<Settings>,
    ) -> Citus {
        let desk = (configured.group == COORDINATOR).then(|| {
            let (sender, events) = mpsc::channel(64);
            let desk = Desk {
                database: configured.database.clone(),
                store: Arc::clone(store),
                view,
                settings,
                agenda: Agenda::default(),
                session: None,
                complaint: None,
            };
            tokio::task::spawn_local(desk.run(events));
            sender
        });
        Citus {
            group: configured.group,
            me: me.clone(),
            store: Arc::clone(store),
            client: client.clone(),
            desk,
            announced: false,
            order: Arc::default(),
        }
    }

    /// What tells the coordinator of this node; the coordinator itself tells nobody.
    pub(super) fn herald(&self, settings: &observation::Settings) -> Option<Herald> {
        (self.group != COORDINATOR).then(|| Herald {
            group: self.group,
            me: self.me.clone(),
            store: Arc::clone(&self.store),
            client: self.client.clone(),
            ttl: settings.ttl,
            retry_timeout: settings.retry_timeout,
            order: Arc::clone(&self.order),
        })
    }

    /// `POST /citus`. What holds traffic is answered when it does, everything else at once; so is everything that this node can do
    /// nothing about.
    pub(super) fn take(&self, event: CitusEvent, reply: oneshot::Sender<()>) {
        let (Some(desk), Some(phase)) = (&self.desk, Phase::by_name(&event.kind)) else {
            answer(reply);
            return;
        };
        let event = Event {
            phase,
            group: event.group,
            leader: event.leader,
            timeout: event.timeout.min(LONGEST),
            cooldown: event.cooldown.min(LONGEST),
        };
        let ticket = match phase {
            Phase::BeforeDemote => Some(reply),
            Phase::BeforePromote | Phase::AfterPromote => {
                answer(reply);
                None
            }
        };
        if desk.try_send((event, ticket)).is_err() {
            tracing::warn!("citus: too many events wait for the coordinator; one is dropped");
        }
    }
}

/// Whoever asked may have gone away, which is its business.
fn answer(reply: oneshot::Sender<()>) {
    let _gone = reply.send(()).is_err();
}

impl Agent {
    /// `None`: this node does not lead a worker's group.
    fn herald(&self) -> Option<Herald> {
        let citus = self.citus.as_ref().filter(|_| self.held.is_some())?;
        citus.herald(&self.settings)
    }

    /// What this job of a leader tells the coordinator with; `None`: it has nothing to tell.
    pub(super) fn herald_for(&self, job: &Job) -> Option<Herald> {
        let primary = matches!(self.role, Role::Primary | Role::Promoted);
        let tells = match job {
            Job::Promote => true,
            Job::Restart { .. } => primary,
            Job::Stop { purpose, .. } => {
                primary && matches!(purpose, StopPurpose::Switchover | StopPurpose::Shutdown)
            }
            Job::Bootstrap
            | Job::Clone { .. }
            | Job::StartPrimary { .. }
            | Job::StartStandby { .. }
            | Job::RestartToFollow { .. }
            | Job::CopySlots { .. }
            | Job::CheckDivergence { .. }
            | Job::CrashRecovery
            | Job::Rewind { .. }
            | Job::Replace { .. } => false,
        };
        self.herald().filter(|_| tells)
    }

    /// The store has been told this state of this node: a primary that runs, and that no job is about to stop, is news to the coordinator.
    pub(super) fn announce_primary(&mut self, state: PgState, role: Role) {
        let herald = self.herald();
        let idle = self.job.running().is_none();
        let Some(citus) = &mut self.citus else { return };
        let runs = idle && state == PgState::Running && role == Role::Primary;
        let news = runs && !std::mem::replace(&mut citus.announced, runs);
        citus.announced = runs;
        if let (true, Some(herald)) = (news, herald) {
            tokio::task::spawn_local(async move { herald.tell(Phase::AfterPromote).await });
        }
    }
}

/// Tells the coordinator's leader what happens to this one.
#[derive(Clone)]
pub(super) struct Herald {
    group: u32,
    me: MemberName,
    store: Store,
    client: Client,
    ttl: Duration,
    retry_timeout: Duration,
    order: Arc<Mutex<()>>,
}

impl Herald {
    /// Tells it. Before a primary stops that takes until the traffic waits, for which queries that are running are given `retry_timeout`.
    pub(super) async fn tell(&self, phase: Phase) {
        let patience = match phase {
            Phase::BeforeDemote => self.ttl.min(self.retry_timeout + ATTEMPT),
            Phase::BeforePromote | Phase::AfterPromote => ATTEMPT,
        };
        let told = match tokio::time::timeout(patience, self.exchange(phase, patience)).await {
            Ok(told) => told,
            Err(_) => Err(format!("no answer within {} s", patience.as_secs())),
        };
        match told {
            Ok(()) => tracing::info!("citus: told the coordinator {}", phase.name()),
            Err(error) => {
                tracing::warn!(
                    "citus: cannot tell the coordinator {}: {error}; going on",
                    phase.name()
                );
            }
        }
    }

    async fn exchange(&self, phase: Phase, patience: Duration) -> Result<(), String> {
        let _turn = self.order.lock().await;
        let groups = self
            .store
            .load_groups()
            .await
            .map_err(|error| error.to_string())?;
        let coordinator = groups
            .get(&COORDINATOR)
            .and_then(Cluster::leader_member)
            .and_then(|leader| leader.api_url.as_deref())
            .ok_or("the coordinator's group has no leader")?;
        let body = serde_json::json!({
            "type": phase.name(),
            "group": self.group,
            "leader": self.me.as_str(),
            "timeout": self.ttl.as_secs(),
            "cooldown": self.retry_timeout.as_secs(),
        })
        .to_string();
        let post = hyper::Method::POST;
        let answer = self
            .client
            .call(post, coordinator, "citus", Some(&body), patience)
            .await
            .map_err(|error| error.to_string())?;
        match answer.status {
            200 => Ok(()),
            status => Err(format!("status {status}: {}", answer.body.trim())),
        }
    }
}

/// Keeps the table, while this node is the coordinator's leader.
struct Desk {
    database: String,
    store: Store,
    view: ViewReceiver,
    settings: watch::Receiver<Settings>,
    agenda: Agenda<Option<oneshot::Sender<()>>>,
    /// An open transaction is this session's.
    session: Option<Session>,
    /// What was complained about last, so that it is said once.
    complaint: Option<String>,
}

impl Desk {
    async fn run(mut self, mut events: mpsc::Receiver<Asked>) {
        let mut settle_at = clock::now();
        loop {
            let now = clock::now();
            if !self.is_on_duty(now) {
                // An open transaction ends with its session, and whoever waits goes on.
                self.session = None;
                self.agenda = Agenda::default();
                settle_at = now;
                tokio::select! {
                    event = events.recv() => if event.is_none() { return },
                    changed = self.view.changed() => if changed.is_err() { return },
                }
                continue;
            }
            let until = match self.agenda.next(now) {
                Next::RollBack => {
                    self.roll_back().await;
                    continue;
                }
                Next::Serve(event, until, ticket) => {
                    let done = self.serve(&event, until).await;
                    self.complain(
                        done,
                        &format!("{} of group {}", event.phase.name(), event.group),
                    );
                    if let Some(reply) = ticket {
                        answer(reply);
                    }
                    continue;
                }
                Next::Nothing(until) => until,
            };
            // What is asked goes before what is due again and again.
            if let Ok((event, ticket)) = events.try_recv() {
                self.agenda.add(event, ticket, clock::now());
                continue;
            }
            if now >= settle_at {
                let done = self.settle(&events).await;
                self.complain(done, "the periodic comparison");
                settle_at = clock::now() + self.view.borrow().settings.loop_wait;
                continue;
            }
            let wake = until.map_or(settle_at, |until| until.min(settle_at));
            tokio::select! {
                event = events.recv() => match event {
                    Some((event, ticket)) => self.agenda.add(event, ticket, clock::now()),
                    None => return,
                },
                changed = self.view.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(now.until(wake)) => {}
            }
        }
    }

    /// The coordinator's leader, with a PostgreSQL that takes writes.
    fn is_on_duty(&self, now: Moment) -> bool {
        let view = self.view.borrow();
        view.leader_until.is_some_and(|until| until > now)
            && view.role == Role::Primary
            && view.state == PgState::Running
            && !view.settings.standby_cluster
    }

    /// Says once what went wrong, until it is something else. After an error nothing is known of the session.
    fn complain(&mut self, done: Result<(), Trouble>, doing: &str) {
        match done {
            Ok(()) => self.complaint = None,
            Err(trouble) => {
                self.session = None;
                self.agenda.closed();
                let complaint = format!("citus: {doing}: {trouble}");
                if self.complaint.as_ref() != Some(&complaint) {
                    tracing::warn!("{complaint}");
                    self.complaint = Some(complaint);
                }
            }
        }
    }

    async fn roll_back(&mut self) {
        if let Some(group) = self.agenda.open() {
            tracing::warn!(
                "citus: group {group} has no new primary in time; its traffic goes on to the old one"
            );
        }
        self.agenda.closed();
        let done = self.execute("ROLLBACK", clock::now() + ATTEMPT).await;
        self.complain(done, "the end of a transaction");
    }

    /// Carries out what an event asks for, if it comes from the one who leads that group.
    async fn serve(&mut self, event: &Event, until: Moment) -> Result<(), Trouble> {
        let groups = self.groups(until).await?;
        let Some(address) = groups
            .get(&event.group)
            .and_then(|cluster| citus::leader_address(cluster, &event.leader))
        else {
            tracing::warn!(
                "citus: {} of group {} is ignored: {} does not lead it",
                event.phase.name(),
                event.group,
                event.leader
            );
            self.agenda.over(event.group);
            return Ok(());
        };
        let was_open = self.agenda.open() == Some(event.group);
        if !was_open {
            self.begin(until).await?;
        }
        let rows = self.rows(event.group, until).await?;
        let known = rows.iter().any(|row| row.primary);
        let changes = match event.phase {
            Phase::BeforeDemote => citus::pause(&rows),
            // A group that is not in the table has no traffic to hold.
            Phase::BeforePromote if !known => Vec::new(),
            Phase::BeforePromote | Phase::AfterPromote => citus::swap(&rows, event.group, &address),
        };
        self.change(&changes, event.cooldown, until).await?;
        match event.phase {
            Phase::AfterPromote => {
                self.execute("COMMIT", until + ATTEMPT).await?;
                self.agenda.closed();
                self.agenda.over(event.group);
                tracing::info!("citus: {address} is the primary of group {}", event.group);
            }
            Phase::BeforeDemote | Phase::BeforePromote if was_open => {}
            Phase::BeforeDemote | Phase::BeforePromote if changes.is_empty() => {
                self.execute("ROLLBACK", until + ATTEMPT).await?;
            }
            Phase::BeforeDemote | Phase::BeforePromote => {
                self.agenda.opened(event.group, until);
                tracing::info!(
                    "citus: traffic to group {} waits for its next primary",
                    event.group
                );
            }
        }
        Ok(())
    }

    /// Brings every group up to date in which nothing is going on. Trouble with one does not keep the others; an event does until the
    /// next time.
    async fn settle(&mut self, events: &mpsc::Receiver<Asked>) -> Result<(), Trouble> {
        let groups = self.groups(clock::now() + COOLDOWN).await?;
        let mut trouble = None;
        for (group, cluster) in &groups {
            let Some(wanted) = citus::wanted(cluster) else {
                continue;
            };
            if !events.is_empty() {
                break;
            }
            if !self.agenda.may_settle(*group, clock::now()) {
                continue;
            }
            if let Err(error) = self.settle_group(*group, &wanted).await {
                self.session = None;
                trouble.get_or_insert(error);
            }
        }
        trouble.map_or(Ok(()), Err)
    }

    async fn settle_group(&mut self, group: u32, wanted: &citus::Wanted) -> Result<(), Trouble> {
        let until = clock::now() + COOLDOWN + MARGIN;
        self.connect().await?;
        let rows = self.rows(group, until).await?;
        let changes = citus::settle(&rows, group, wanted);
        if changes.is_empty() {
            return Ok(());
        }
        self.begin(until).await?;
        self.change(&changes, COOLDOWN, until).await?;
        self.execute("COMMIT", until + ATTEMPT).await?;
        for change in &changes {
            tracing::info!("citus: group {group}: {}", change.sql(0));
        }
        Ok(())
    }

    async fn groups(&self, until: Moment) -> Result<BTreeMap<u32, Cluster>, Trouble> {
        let left = clock::now().until(until);
        match tokio::time::timeout(left, self.store.load_groups()).await {
            Ok(groups) => Ok(groups?),
            Err(_) => Err(Trouble::Late("the store")),
        }
    }

    /// Opens a transaction that the server ends by itself should this process not come to it.
    async fn begin(&mut self, until: Moment) -> Result<(), Trouble> {
        self.connect().await?;
        let left = clock::now().until(until).as_millis().max(1);
        let idle = left + MARGIN.as_millis();
        let begin = format!(
            "BEGIN; SET LOCAL statement_timeout = {left}; SET LOCAL idle_in_transaction_session_timeout = {idle}"
        );
        self.execute(&begin, until).await
    }

    async fn change(
        &self,
        changes: &[Change],
        cooldown: Duration,
        until: Moment,
    ) -> Result<(), Trouble> {
        let cooldown = u32::try_from(cooldown.as_millis()).unwrap_or(u32::MAX);
        for change in changes {
            let statement = change.sql(cooldown);
            tracing::debug!("citus: {statement}");
            self.execute(&statement, until).await?;
        }
        Ok(())
    }

    /// The group's rows as they are, in an open transaction as it has left them.
    async fn rows(&self, group: u32, until: Moment) -> Result<Vec<Row>, Trouble> {
        let reading = self.live()?.query(citus::READ, &[]);
        let answer = match tokio::time::timeout(clock::now().until(until), reading).await {
            Ok(answer) => answer?,
            Err(_) => return Err(Trouble::Late("PostgreSQL")),
        };
        let unexpected = |error: tokio_postgres::Error| SqlError::Unexpected(error.to_string());
        let mut rows = Vec::new();
        for row in answer {
            let of: i32 = row.try_get(1).map_err(unexpected)?;
            let port: i32 = row.try_get(3).map_err(unexpected)?;
            // A port that is none belongs to no server: the address is one that nobody wants.
            let address = Address {
                host: row.try_get(2).map_err(unexpected)?,
                port: u16::try_from(port).unwrap_or(0),
            };
            if u32::try_from(of) == Ok(group) {
                rows.push(Row {
                    id: row.try_get(0).map_err(unexpected)?,
                    group,
                    address,
                    primary: row.try_get(4).map_err(unexpected)?,
                });
            }
        }
        Ok(rows)
    }

    async fn execute(&self, statements: &str, until: Moment) -> Result<(), Trouble> {
        let executing = self.live()?.execute(statements);
        match tokio::time::timeout(clock::now().until(until), executing).await {
            Ok(done) => Ok(done?),
            Err(_) => Err(Trouble::Late("PostgreSQL")),
        }
    }

    /// The session there is. Within a transaction there is no other: a statement on a new one would be committed by itself.
    fn live(&self) -> Result<&Session, Trouble> {
        self.session.as_ref().ok_or(Trouble::NotConnected)
    }

    /// Makes the session, anew when it is gone or its settings have changed. Never within a transaction.
    async fn connect(&mut self) -> Result<(), Trouble> {
        let stale = |session: &Session| session.is_closed();
        if self.session.as_ref().is_none_or(stale) || self.settings.has_changed().unwrap_or(false) {
            self.session = None;
            let settings = self.settings.borrow_and_update().clone();
            let target = Target::local(&settings)
                .named("Patroni citus")
                .database(&self.database)
                .statement_limit(None);
            self.session = Some(target.connect().await?);
        }
        Ok(())
    }
}

/// Why the table is not as it should be.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("{0}")]
    Store(#[from] crate::dcs::DcsError),
    #[error("{0}")]
    Sql(#[from] SqlError),
    #[error("{0} does not answer in time")]
    Late(&'static str),
    #[error("the connection to PostgreSQL is gone")]
    NotConnected,
}
