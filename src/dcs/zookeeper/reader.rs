//! The session that only reads and watches. It pings as long as this process lives, which is harmless: no key hangs on it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::connection::{Connection, Lost, NotConnected, Servers};
use super::proto::{Code, Reply, Request, Session};
use crate::clock;
use crate::cluster::Cluster;
use crate::dcs::copy::{self, Contents, Copy, Stored, heartbeat};
use crate::dcs::keys::{self, MEMBERS};
use crate::types::Moment;

/// Somebody wants to read until then; answered or told why there is no answer.
pub(super) type Asked = (Moment, Answer);

/// What is wanted.
pub(super) enum Answer {
    /// The cluster.
    Cluster(oneshot::Sender<Result<Cluster, String>>),
    /// Every Citus group.
    Groups(oneshot::Sender<Result<BTreeMap<u32, Cluster>, String>>),
}

impl Answer {
    /// There is none. Whoever asked may have given up.
    fn fail(self, detail: String) {
        let _gone = match self {
            Answer::Cluster(answer) => answer.send(Err(detail)).is_err(),
            Answer::Groups(answer) => answer.send(Err(detail)).is_err(),
        };
    }
}

/// The reader's own session. It costs nothing to make a new one, so it never asks for the old one back.
pub(super) struct Reader {
    pub(super) servers: Arc<Servers>,
    pub(super) copy: Arc<Copy>,
    /// The cluster's path, without a slash at its end.
    pub(super) base: String,
    /// The path above all groups, likewise.
    pub(super) above_groups: String,
    /// Whether to watch; ctl reads once.
    pub(super) watches: bool,
    pub(super) retry_timeout: Arc<dyn Fn() -> Duration + Send + Sync>,
}

/// Every key of a cluster that is not a member's.
const DOCUMENTS: [&str; 9] = [
    "leader",
    "initialize",
    "config",
    "status",
    "sync",
    "failover",
    "history",
    "failsafe",
    "optime/leader",
];

/// With less time left nobody is asked again.
const LEAST_TRY: Duration = Duration::from_millis(200);

impl Reader {
    /// Runs for as long as somebody may ask.
    pub(super) async fn run(self, mut asked: mpsc::Receiver<Asked>) {
        let mut restarted = false;
        let mut waiting = None;
        while self
            .serve(&mut asked, &mut waiting, restarted)
            .await
            .is_some()
        {
            self.copy.set_alive(false);
            restarted = true;
        }
    }

    /// One connection from its beginning to its end; `None`: nobody can ask any more. Who is still waiting when it ends is served by
    /// the next one.
    async fn serve(
        &self,
        asked: &mut mpsc::Receiver<Asked>,
        waiting: &mut Option<Asked>,
        restarted: bool,
    ) -> Option<()> {
        // A watcher connects by itself, ctl when it is asked.
        if waiting.is_none() && !self.watches {
            *waiting = Some(asked.recv().await?);
        }
        let patience = (self.retry_timeout)();
        let deadline = waiting
            .as_ref()
            .map_or_else(|| clock::now() + patience, |(deadline, _)| *deadline);
        let timeout = i32::try_from(patience.as_millis() * 2).unwrap_or(i32::MAX);
        let fresh = Session::fresh(timeout);
        let connecting = self.servers.connect(&fresh, 0, deadline);
        let mut connection = match self.while_asked(asked, connecting).await? {
            Ok(connection) => connection,
            Err(detail) => {
                if let Some((_, answer)) = waiting.take() {
                    answer.fail(detail);
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
                return Some(());
            }
        };
        let mut first = restarted;
        if waiting.is_none() {
            match self
                .read(&mut connection, clock::now() + patience / 2)
                .await
            {
                Ok(_) => self.copy.set_alive(true),
                Err(lost) => {
                    tracing::debug!(
                        server = connection.address(),
                        "cannot read from zookeeper: {}",
                        lost.0
                    );
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    return Some(());
                }
            }
        }
        if std::mem::take(&mut first) {
            self.copy.announce();
        }
        loop {
            if let Some((deadline, answer)) = waiting.take() {
                // A server that has gone silent must leave time for another one.
                let half = clock::now() + clock::now().until(deadline) / 2;
                if let Err((lost, answer)) = self.answer(&mut connection, half, answer).await {
                    if clock::now().until(deadline) < LEAST_TRY {
                        answer.fail(lost.0);
                    } else {
                        *waiting = Some((deadline, answer));
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                    return Some(());
                }
                if self.watches {
                    self.copy.set_alive(true);
                }
            }
            let interval = heartbeat((self.retry_timeout)());
            tokio::select! {
                next = asked.recv() => *waiting = Some(next?),
                heard = connection.listen() => {
                    if let Err(lost) = heard {
                        tracing::debug!(server = connection.address(), "zookeeper: {}", lost.0);
                        return Some(());
                    }
                }
                () = tokio::time::sleep(interval) => {
                    let ping = connection.exchange(&[Request::Ping]);
                    if !matches!(tokio::time::timeout(interval, ping).await, Ok(Ok(_))) {
                        return Some(());
                    }
                    self.copy.set_alive(true);
                }
            }
            if self.watches && connection.take_fired() {
                let deadline = clock::now() + (self.retry_timeout)() / 2;
                if self.read(&mut connection, deadline).await.is_err() {
                    return Some(());
                }
                self.copy.set_alive(true);
            }
        }
    }

    /// Waits for a connection; who asks meanwhile and runs out of time is told why.
    async fn while_asked(
        &self,
        asked: &mut mpsc::Receiver<Asked>,
        connecting: impl Future<Output = Result<Connection, NotConnected>>,
    ) -> Option<Result<Connection, String>> {
        let outcome = connecting.await.map_err(|failure| match failure {
            NotConnected::Expired => "the server refuses a new session".to_owned(),
            NotConnected::Unreachable(detail) => detail,
        });
        if let Err(detail) = &outcome {
            while let Ok((deadline, answer)) = asked.try_recv() {
                let _ = deadline;
                answer.fail(detail.clone());
            }
        }
        (!asked.is_closed()).then_some(outcome)
    }

    /// Reads what is wanted and answers; who could not be answered comes back.
    async fn answer(
        &self,
        connection: &mut Connection,
        deadline: Moment,
        answer: Answer,
    ) -> Result<(), (Lost, Answer)> {
        match answer {
            Answer::Cluster(answer) => match self.read(connection, deadline).await {
                Ok(cluster) => {
                    let _ = answer.send(Ok(cluster));
                    Ok(())
                }
                Err(lost) => Err((lost, Answer::Cluster(answer))),
            },
            Answer::Groups(answer) => match self.read_groups(connection, deadline).await {
                Ok(groups) => {
                    let _ = answer.send(Ok(groups));
                    Ok(())
                }
                Err(lost) => Err((lost, Answer::Groups(answer))),
            },
        }
    }

    /// Every group, one after the other, each caught up with the servers' leader.
    async fn read_groups(
        &self,
        connection: &mut Connection,
        deadline: Moment,
    ) -> Result<BTreeMap<u32, Cluster>, Lost> {
        let reading = async {
            let above = &self.above_groups;
            let list = Request::Children {
                path: above.clone(),
                watch: false,
            };
            let sync = Request::Sync {
                path: above.clone(),
            };
            let answers = connection.exchange(&[sync, list]).await?;
            let names = match answers.get(1) {
                Some((_, Ok(Reply::Children(names)))) => names.clone(),
                Some((_, Err(Code::NoNode))) => Vec::new(),
                other => return Err(unexpected(connection, other)),
            };
            let mut contents = Contents::new();
            for name in names {
                if keys::split_group(&format!("{name}/")).is_none() {
                    continue;
                }
                let group = format!("{above}/{name}");
                let (found, _, _) = self.once(connection, &group, false).await?;
                contents.extend(
                    found
                        .into_iter()
                        .map(|(key, stored)| (format!("{name}/{key}"), stored)),
                );
            }
            Ok(copy::assemble_groups(&contents))
        };
        match tokio::time::timeout(clock::now().until(deadline), reading).await {
            Ok(read) => read,
            Err(_) => Err(Lost("no answer in time".to_owned())),
        }
    }

    /// Everything below the cluster's path, caught up with the servers' leader, and kept as the copy.
    async fn read(&self, connection: &mut Connection, deadline: Moment) -> Result<Cluster, Lost> {
        let reading = self.consistent(connection);
        let (contents, zxid) =
            match tokio::time::timeout(clock::now().until(deadline), reading).await {
                Ok(read) => read?,
                Err(_) => return Err(Lost(format!("{}: no answer in time", connection.address()))),
            };
        let cluster = copy::assemble(&contents);
        let index = u64::try_from(zxid).unwrap_or(0);
        self.copy
            .replace(contents, index, index < self.copy.index());
        Ok(cluster)
    }

    /// Reads until nothing has changed in between, or at least not who leads.
    async fn consistent(&self, connection: &mut Connection) -> Result<(Contents, i64), Lost> {
        let mut before: Option<(Contents, i64)> = None;
        loop {
            let (contents, first, last) = self.once(connection, &self.base, self.watches).await?;
            let settled = before
                .as_ref()
                .is_some_and(|(before, _)| before.get("leader") == contents.get("leader"));
            if first == last || settled {
                return Ok((contents, first));
            }
            before = Some((contents, first));
        }
    }

    /// One pass over a cluster's path; with the changes the server was complete up to before and after.
    async fn once(
        &self,
        connection: &mut Connection,
        base: &str,
        watch: bool,
    ) -> Result<(Contents, i64, i64), Lost> {
        let at = |relative: &str| format!("{base}/{relative}");
        let members = at(MEMBERS.trim_end_matches('/'));
        let children = |path: &str| Request::Children {
            path: path.to_owned(),
            watch,
        };
        // The lists of keys are watched too: a key that is not there cannot be.
        let lists = [
            Request::Sync {
                path: base.to_owned(),
            },
            Request::Exists {
                path: base.to_owned(),
                watch,
            },
            children(base),
            children(&members),
        ];
        let answers = connection.exchange(&lists).await?;
        let first = answers.get(1).map_or(0, |(zxid, _)| *zxid);
        let mut names: Vec<String> = DOCUMENTS.iter().map(|name| (*name).to_owned()).collect();
        match answers.get(3) {
            Some((_, Ok(Reply::Children(found)))) => {
                names.extend(found.iter().map(|name| format!("{MEMBERS}{name}")));
            }
            Some((_, Err(Code::NoNode))) => {}
            other => return Err(unexpected(connection, other)),
        }
        let reads: Vec<Request> = names
            .iter()
            .map(|name| Request::Get {
                path: at(name),
                watch,
            })
            .collect();
        let answers = connection.exchange(&reads).await?;
        let last = answers.last().map_or(first, |(zxid, _)| *zxid);
        let mut contents = Contents::new();
        for (name, answer) in names.into_iter().zip(answers) {
            match answer {
                (_, Ok(Reply::Data(value, stat))) => {
                    let stored = Stored {
                        value,
                        revision: u64::try_from(stat.version).unwrap_or(0),
                        session: (stat.owner != 0).then(|| stat.owner.to_string()),
                    };
                    contents.insert(name, stored);
                }
                (_, Err(Code::NoNode)) => {}
                other => return Err(unexpected(connection, Some(&other))),
            }
        }
        Ok((contents, first, last))
    }
}

fn unexpected(connection: &Connection, answer: Option<&super::connection::Answered>) -> Lost {
    let detail = match answer {
        Some((_, Err(code))) => format!("{code:?}"),
        other => format!("an unexpected answer: {other:?}"),
    };
    Lost(format!("{}: {detail}", connection.address()))
}
