//! The recording client: one row for each commit, and for each row that was acknowledged by whom and when.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use howdah::clock;
use howdah::types::Moment;
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, Config, NoTls, SimpleQueryMessage};

use crate::client::block_on;
use crate::judge::Ack;

/// Where the members are now.
pub(crate) type Addresses = Arc<Mutex<Vec<IpAddr>>>;

/// Writers pinned to one member each would see two primaries at once; the roaming ones go where an application would.
const ROAMING: usize = 2;
/// An answer may come late, from a server that was frozen: whoever is pinned waits for it.
const PINNED_PATIENCE: Duration = Duration::from_secs(15);
const ROAMING_PATIENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(10);

pub(crate) struct Recorder {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    stop: AtomicBool,
    next: AtomicU64,
    acks: Mutex<Vec<Ack>>,
    addresses: Addresses,
    password: String,
}

impl Recorder {
    /// Begins; there is a table `chaos (id bigint primary key, node text)`.
    pub(crate) fn start(addresses: Addresses, password: &str) -> Recorder {
        let members = addresses.lock().unwrap().len();
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            next: AtomicU64::new(1),
            acks: Mutex::default(),
            addresses,
            password: password.to_owned(),
        });
        let threads = (0..members + ROAMING)
            .map(|number| {
                let shared = shared.clone();
                let pin = (number < members).then_some(number);
                std::thread::spawn(move || block_on(shared.write(pin)))
            })
            .collect();
        Recorder { shared, threads }
    }

    /// Everything acknowledged so far and not taken yet, in order.
    pub(crate) fn take(&self) -> Vec<Ack> {
        let mut acks = std::mem::take(&mut *self.shared.acks.lock().unwrap());
        acks.sort_by_key(|ack| ack.acknowledged);
        acks
    }

    /// Somebody has acknowledged a row that was sent after this moment.
    pub(crate) fn wrote_after(&self, moment: Moment) -> bool {
        let acks = self.shared.acks.lock().unwrap();
        acks.iter().rev().any(|ack| ack.sent > moment)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A connection to the server that says it is called `node`.
struct Session {
    client: Client,
    node: Arc<str>,
    /// The server has warned: a commit it reports may not have reached the standbys it should have waited for.
    warned: Arc<AtomicBool>,
}

enum Said {
    Acknowledged,
    ReadOnly,
    /// Refused, and the connection stands.
    Refused,
    Nothing,
}

impl Shared {
    async fn write(&self, pin: Option<usize>) {
        let patience = match pin {
            Some(_) => PINNED_PATIENCE,
            None => ROAMING_PATIENCE,
        };
        let mut turn = pin.unwrap_or(0);
        while !self.stop.load(Ordering::Relaxed) {
            let address = {
                let addresses = self.addresses.lock().unwrap();
                addresses[turn % addresses.len()]
            };
            if let Some(session) = connect(address, &self.password).await {
                self.converse(&session, patience, pin.is_some()).await;
            }
            if pin.is_none() {
                turn += 1;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Writes as long as the connection stands; a roaming writer also leaves a standby.
    async fn converse(&self, session: &Session, patience: Duration, stays: bool) {
        while !self.stop.load(Ordering::Relaxed) {
            // A standby is asked and not written to: its log is read by people.
            let said = match session.is_writable().await {
                Some(true) => self.insert(session, patience).await,
                Some(false) => Said::ReadOnly,
                None => Said::Nothing,
            };
            match said {
                Said::Acknowledged | Said::Refused => (),
                Said::ReadOnly if stays => (),
                Said::ReadOnly | Said::Nothing => return,
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn insert(&self, session: &Session, patience: Duration) -> Said {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let node = &session.node;
        let sql = format!(
            "insert into chaos values ({id}, '{node}') returning \
             substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8), (extract(epoch from clock_timestamp()) * 1000)::bigint"
        );
        let sent = clock::now();
        let answer = tokio::time::timeout(patience, session.client.simple_query(&sql)).await;
        let (acknowledged, wall) = (clock::now(), clock::wall().0);
        let messages = match answer {
            Ok(Ok(messages)) => messages,
            Ok(Err(error)) if session.client.is_closed() || error.as_db_error().is_none() => {
                return Said::Nothing;
            }
            Ok(Err(error)) if error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) => {
                return Said::ReadOnly;
            }
            Ok(Err(_)) => return Said::Refused,
            Err(_) => return Said::Nothing,
        };
        if session.warned.swap(false, Ordering::Relaxed) {
            return Said::Refused;
        }
        let (timeline, server_wall) = read(&messages).unwrap();
        let ago = Duration::from_millis(wall.saturating_sub(server_wall).unsigned_abs());
        let executed = Moment(acknowledged.0.saturating_sub(ago)).clamp(sent, acknowledged);
        self.acks.lock().unwrap().push(Ack {
            id,
            node: node.clone(),
            timeline,
            sent,
            executed,
            acknowledged,
        });
        Said::Acknowledged
    }
}

fn read(messages: &[SimpleQueryMessage]) -> Option<(u32, i64)> {
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    })?;
    Some((
        u32::from_str_radix(row.get(0)?, 16).ok()?,
        row.get(1)?.parse().ok()?,
    ))
}

impl Session {
    async fn is_writable(&self) -> Option<bool> {
        let question = self.client.simple_query("select pg_is_in_recovery()");
        let messages = tokio::time::timeout(ROAMING_PATIENCE, question)
            .await
            .ok()?
            .ok()?;
        messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0) == Some("f")),
            _ => None,
        })
    }
}

async fn connect(address: IpAddr, password: &str) -> Option<Session> {
    let mut config = Config::new();
    config
        .host(address.to_string())
        .user("postgres")
        .password(password)
        .dbname("postgres")
        .application_name("recorder");
    let attempt = tokio::time::timeout(Duration::from_secs(1), config.connect(NoTls));
    let (client, mut connection) = attempt.await.ok()?.ok()?;
    let warned = Arc::new(AtomicBool::new(false));
    let flag = warned.clone();
    tokio::spawn(async move {
        let mut messages = stream::poll_fn(|context| connection.poll_message(context));
        while let Some(Ok(message)) = messages.next().await {
            if let AsyncMessage::Notice(_) = message {
                flag.store(true, Ordering::Relaxed);
            }
        }
    });
    // Addresses pass from one container to the next, so the server itself says who it is.
    let question = client.simple_query("select trim(e'\\n' from pg_read_file('/etc/hostname'))");
    let messages = tokio::time::timeout(ROAMING_PATIENCE, question)
        .await
        .ok()?
        .ok()?;
    let node = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(Arc::from),
        _ => None,
    })?;
    Some(Session {
        client,
        node,
        warned,
    })
}
