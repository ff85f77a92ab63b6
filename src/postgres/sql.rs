//! Connections to PostgreSQL servers, local and remote, and the few statements that need no more than one line.
//!
//! Every wait has a limit: connecting, and each statement both in the server (`statement_timeout`) and here, so that a server
//! that has stopped answering cannot hold the agent up. Nothing is retried here.

use std::fmt;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Row, SimpleQueryMessage};

use super::conninfo::Upstream;
use super::ready::local_address;
use super::tls::{Connector, SslMode, TlsError};
use super::wire::{Address, Replication, Stream};
use super::{Credentials, Settings};
use crate::types::{Lsn, PgVersion, SystemId, Timeline};

/// How long a connection may take to be established (spec §2).
pub const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// How long a statement may take in the server (spec §2).
pub const STATEMENT_LIMIT: Duration = Duration::from_secs(2);

/// How much longer than the server's own limit is waited for its answer.
const ANSWER_MARGIN: Duration = Duration::from_secs(1);

/// Where and as whom to connect, and what the session is for.
#[derive(Clone)]
pub struct Target {
    addresses: Vec<Address>,
    database: String,
    credentials: Credentials,
    application_name: String,
    statement_limit: Option<Duration>,
    replication: bool,
    writable: bool,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("addresses", &self.addresses)
            .field("database", &self.database)
            .field("user", &self.credentials.username)
            .finish_non_exhaustive()
    }
}

impl Target {
    /// The local server as superuser.
    #[must_use]
    pub fn local(settings: &Settings) -> Target {
        let address = local_address(settings, &settings.local_host());
        Target::new(vec![address], &settings.database, &settings.superuser)
    }

    /// The local server on a replication connection.
    #[must_use]
    pub fn local_replication(settings: &Settings) -> Target {
        let address = local_address(settings, &settings.local_replication_host());
        Target::new(vec![address], &settings.database, &settings.replication).replication()
    }

    /// Another server: its hosts are tried in order (spec §6.1).
    #[must_use]
    pub fn remote(upstream: &Upstream, database: &str, credentials: &Credentials) -> Target {
        let ports: Vec<&str> = upstream.port.split(',').collect();
        let addresses = upstream
            .host
            .split(',')
            .enumerate()
            .map(|(n, host)| {
                let port = ports
                    .get(n)
                    .or(ports.last())
                    .and_then(|p| p.parse().ok())
                    .unwrap_or(5432);
                match host {
                    "" => Address::Unix("/var/run/postgresql".into(), port),
                    path if path.starts_with('/') => Address::Unix(path.into(), port),
                    host => Address::Tcp(host.to_owned(), port),
                }
            })
            .collect();
        let database = upstream.dbname.as_deref().unwrap_or(database);
        Target::new(addresses, database, credentials)
    }

    fn new(addresses: Vec<Address>, database: &str, credentials: &Credentials) -> Target {
        Target {
            addresses,
            database: database.to_owned(),
            credentials: credentials.clone(),
            application_name: "Patroni".to_owned(),
            statement_limit: Some(STATEMENT_LIMIT),
            replication: false,
            writable: false,
        }
    }

    /// With another `application_name`.
    #[must_use]
    pub fn named(mut self, application_name: &str) -> Target {
        application_name.clone_into(&mut self.application_name);
        self
    }

    /// In another database.
    #[must_use]
    pub fn database(mut self, database: &str) -> Target {
        database.clone_into(&mut self.database);
        self
    }

    /// With another limit per statement; `None` = no limit.
    #[must_use]
    pub fn statement_limit(mut self, limit: Option<Duration>) -> Target {
        self.statement_limit = limit;
        self
    }

    /// As a replication connection: only replication commands are understood.
    #[must_use]
    pub fn replication(mut self) -> Target {
        self.replication = true;
        self
    }

    /// Only to a server that accepts writes (`target_session_attrs=read-write`).
    #[must_use]
    pub fn writable(mut self) -> Target {
        self.writable = true;
        self
    }

    /// Connects to the first address that accepts.
    ///
    /// # Errors
    /// None accepts; the error is the one of the last address.
    pub async fn connect(&self) -> Result<Session, SqlError> {
        let mut last = SqlError::Timeout("connecting");
        for address in &self.addresses {
            let attempt = self.connect_to(address);
            match tokio::time::timeout(CONNECT_LIMIT, attempt).await {
                Ok(Ok(session)) => return Ok(session),
                Ok(Err(error)) => last = error,
                Err(_) => last = SqlError::Timeout("connecting"),
            }
        }
        Err(last)
    }

    async fn connect_to(&self, address: &Address) -> Result<Session, SqlError> {
        let mode = match address {
            Address::Unix(..) => SslMode::Disable,
            Address::Tcp(..) => SslMode::of(&self.credentials)?,
        };
        let session = match mode {
            SslMode::Disable => {
                self.attempt(address, tokio_postgres::config::SslMode::Disable)
                    .await?
            }
            // libpq's order for the two modes that would rather have it the other way than not at all.
            SslMode::Allow => match self
                .attempt(address, tokio_postgres::config::SslMode::Disable)
                .await
            {
                Err(error) if error.is_refusal() => {
                    self.attempt(address, tokio_postgres::config::SslMode::Require)
                        .await?
                }
                other => other?,
            },
            SslMode::Prefer => match self
                .attempt(address, tokio_postgres::config::SslMode::Prefer)
                .await
            {
                Err(error) if error.is_refusal() || error.is_tls() => {
                    self.attempt(address, tokio_postgres::config::SslMode::Disable)
                        .await?
                }
                other => other?,
            },
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => {
                self.attempt(address, tokio_postgres::config::SslMode::Require)
                    .await?
            }
        };
        if self.writable && session.is_read_only().await? {
            return Err(SqlError::ReadOnly);
        }
        Ok(session)
    }

    async fn attempt(
        &self,
        address: &Address,
        mode: tokio_postgres::config::SslMode,
    ) -> Result<Session, SqlError> {
        let mut config = tokio_postgres::Config::new();
        let user = match &self.credentials.username {
            Some(user) => user.clone(),
            None => operating_system_user(),
        };
        config
            .user(user)
            .dbname(&self.database)
            .application_name(&self.application_name)
            .options(self.options())
            .ssl_mode(mode);
        if let Some(password) = &self.credentials.password {
            config.password(password);
        }
        if self.credentials.sslnegotiation.as_deref() == Some("direct")
            && mode == tokio_postgres::config::SslMode::Require
        {
            config.ssl_negotiation(tokio_postgres::config::SslNegotiation::Direct);
        }
        let stream = Replication::new(address.connect().await?, self.replication);
        let limit = self.statement_limit;
        match address {
            Address::Tcp(host, _) if mode != tokio_postgres::config::SslMode::Disable => {
                let connector = Connector::new(&self.credentials, host)?;
                let (client, connection) = config.connect_raw(stream, connector).await?;
                Ok(Session::new(client, tokio::spawn(drive(connection)), limit))
            }
            _ => {
                let (client, connection) = config.connect_raw(stream, NoTls).await?;
                Ok(Session::new(client, tokio::spawn(drive(connection)), limit))
            }
        }
    }

    fn options(&self) -> String {
        let limit = self.statement_limit.map_or(0, |limit| limit.as_millis());
        let mut options = format!("-c statement_timeout={limit}");
        if !self.replication {
            options.push_str(" -c pg_stat_statements.track=none -c search_path=pg_catalog");
        }
        options
    }
}

/// The default user of libpq.
fn operating_system_user() -> String {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    passwd
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)? == uid).then(|| name.to_owned())
        })
        .unwrap_or_else(|| "postgres".to_owned())
}

/// Moves a connection's bytes until either side closes it; the client reports what went wrong.
async fn drive<T>(connection: tokio_postgres::Connection<Replication<Box<dyn Stream>>, T>)
where
    T: tokio_postgres::tls::TlsStream + Unpin,
{
    if let Err(error) = connection.await {
        tracing::debug!(%error, "connection to PostgreSQL ended");
    }
}

/// Why a statement has no result.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    /// Nobody listens there, or the network is broken.
    #[error("cannot connect to PostgreSQL: {0}")]
    Connect(#[from] std::io::Error),
    /// TLS is not possible as configured.
    #[error("cannot connect to PostgreSQL: {0}")]
    Tls(#[from] TlsError),
    /// The server said no, or the connection broke.
    #[error("{}", describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// No answer in time.
    #[error("PostgreSQL did not answer in time ({0})")]
    Timeout(&'static str),
    /// A server that accepts writes was asked for.
    #[error("the server does not accept writes")]
    ReadOnly,
    /// An answer that is not as documented.
    #[error("unexpected answer from PostgreSQL: {0}")]
    Unexpected(String),
}

fn describe(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), std::error::Error::source(error)) {
        (Some(db), _) => format!("PostgreSQL: {} ({})", db.message(), db.code().code()),
        (None, Some(source)) => format!("PostgreSQL: {error}: {source}"),
        (None, None) => format!("PostgreSQL: {error}"),
    }
}

impl SqlError {
    /// The SQLSTATE, if the server sent one.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            SqlError::Postgres(error) => error.code().map(tokio_postgres::error::SqlState::code),
            _ => None,
        }
    }

    /// The server is starting, stopping or in recovery without hot standby: it is there, and refuses everybody.
    #[must_use]
    pub fn is_not_yet(&self) -> bool {
        self.code() == Some("57P03")
    }

    /// Cancelled by the statement timeout.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.code() == Some("57014")
    }

    /// Whether a new connection could do better: the statement itself was not at fault.
    #[must_use]
    pub fn is_connection(&self) -> bool {
        match self {
            SqlError::Connect(_) | SqlError::Timeout(_) => true,
            SqlError::Postgres(error) => {
                error.is_closed()
                    || error.code().is_none()
                    || self
                        .code()
                        .is_some_and(|code| code.starts_with("08") || code.starts_with("57P"))
            }
            _ => false,
        }
    }

    /// The server does not let this user in this way.
    fn is_refusal(&self) -> bool {
        self.code().is_some_and(|code| code.starts_with("28"))
    }

    /// The TLS handshake failed.
    fn is_tls(&self) -> bool {
        match self {
            SqlError::Tls(_) => true,
            SqlError::Postgres(error) => error.to_string().contains("TLS"),
            _ => false,
        }
    }
}

/// An open connection.
pub struct Session {
    client: Client,
    driver: JoinHandle<()>,
    /// How long an answer is waited for.
    limit: Option<Duration>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// What `IDENTIFY_SYSTEM` answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemIdentity {
    /// The database system identifier.
    pub system_id: SystemId,
    /// The current timeline; of a standby, the one it replays.
    pub timeline: Timeline,
    /// The flush position; of a standby, what it has received.
    pub position: Lsn,
}

/// One line of a timeline's history: up to where an ancestor belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ancestor {
    /// The ancestor.
    pub timeline: Timeline,
    /// Where its successor branched off.
    pub switch: Lsn,
    /// PostgreSQL's remark.
    pub reason: String,
}

impl Session {
    fn new(client: Client, driver: JoinHandle<()>, statement_limit: Option<Duration>) -> Session {
        Session {
            client,
            driver,
            limit: statement_limit.map(|limit| limit + ANSWER_MARGIN),
        }
    }

    /// The driver's client, for what has no function here.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The connection is known to be broken.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    async fn limited<T>(
        &self,
        what: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, SqlError> {
        match self.limit {
            None => Ok(what.await?),
            Some(limit) => match tokio::time::timeout(limit, what).await {
                Ok(result) => Ok(result?),
                Err(_) => Err(SqlError::Timeout("query")),
            },
        }
    }

    /// Rows of one statement with parameters.
    ///
    /// # Errors
    /// [`SqlError`].
    pub async fn query(
        &self,
        statement: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, SqlError> {
        self.limited(self.client.query(statement, parameters)).await
    }

    /// The only row of one statement.
    ///
    /// # Errors
    /// [`SqlError`]; not exactly one row is one.
    pub async fn query_one(
        &self,
        statement: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Row, SqlError> {
        self.limited(self.client.query_one(statement, parameters))
            .await
    }

    /// Rows of text of statements without parameters; the only form a replication connection has.
    ///
    /// # Errors
    /// [`SqlError`].
    pub async fn simple(&self, statements: &str) -> Result<Vec<Vec<Option<String>>>, SqlError> {
        let messages = self.limited(self.client.simple_query(statements)).await?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(
                (0..row.len())
                    .map(|n| row.try_get(n).ok().flatten().map(str::to_owned))
                    .collect(),
            ),
            _ => None,
        });
        Ok(rows.collect())
    }

    /// Runs statements without looking at their rows.
    ///
    /// # Errors
    /// [`SqlError`].
    pub async fn execute(&self, statements: &str) -> Result<(), SqlError> {
        self.limited(self.client.batch_execute(statements)).await
    }

    /// The server's version.
    ///
    /// # Errors
    /// [`SqlError`].
    pub async fn version(&self) -> Result<PgVersion, SqlError> {
        let text = self.single("SHOW server_version_num").await?;
        text.parse()
            .map(PgVersion)
            .map_err(|_| SqlError::Unexpected(text))
    }

    /// Whether the server is in recovery.
    ///
    /// # Errors
    /// [`SqlError`].
    pub async fn is_in_recovery(&self) -> Result<bool, SqlError> {
        Ok(self.single("SELECT pg_catalog.pg_is_in_recovery()").await? == "t")
    }

    async fn is_read_only(&self) -> Result<bool, SqlError> {
        Ok(self.single("SHOW transaction_read_only").await? == "on")
    }

    async fn single(&self, statement: &str) -> Result<String, SqlError> {
        self.simple(statement)
            .await?
            .into_iter()
            .next()
            .and_then(|row| row.into_iter().next().flatten())
            .ok_or_else(|| SqlError::Unexpected(format!("{statement}: no value")))
    }

    /// `CHECKPOINT`, on this connection: open it without a statement limit. From 19 on unlogged relations are flushed too.
    ///
    /// # Errors
    /// [`SqlError`].
    pub async fn checkpoint(&self, version: PgVersion) -> Result<(), SqlError> {
        let statement = if version.at_least(19) {
            "CHECKPOINT (FLUSH_UNLOGGED)"
        } else {
            "CHECKPOINT"
        };
        self.execute(statement).await
    }

    /// Ends every client backend but this one. Returns how many were told.
    ///
    /// # Errors
    /// [`SqlError`].
    pub async fn terminate_clients(&self) -> Result<usize, SqlError> {
        // `backend_type` exists from 10 on; before, only clients have rows there besides the WAL senders.
        let statement = "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity a \
            WHERE pid <> pg_catalog.pg_backend_pid() \
            AND COALESCE(pg_catalog.row_to_json(a)->>'backend_type', 'client backend') = 'client backend' \
            AND pid NOT IN (SELECT pid FROM pg_catalog.pg_stat_replication)";
        Ok(self.simple(statement).await?.len())
    }

    /// `IDENTIFY_SYSTEM`, on a replication connection.
    ///
    /// # Errors
    /// [`SqlError`].
    pub async fn identify_system(&self) -> Result<SystemIdentity, SqlError> {
        let rows = self.simple("IDENTIFY_SYSTEM").await?;
        let row = rows.first().map(Vec::as_slice);
        let parsed = match row {
            Some([Some(system_id), Some(timeline), Some(position), ..]) => (|| {
                Some(SystemIdentity {
                    system_id: system_id.parse().ok()?,
                    timeline: Timeline(timeline.parse().ok()?),
                    position: position.parse().ok()?,
                })
            })(),
            _ => None,
        };
        parsed.ok_or_else(|| SqlError::Unexpected(format!("IDENTIFY_SYSTEM: {row:?}")))
    }

    /// `TIMELINE_HISTORY`, on a replication connection: the ancestors of a timeline, oldest first.
    ///
    /// # Errors
    /// [`SqlError`]; the server not having the file is one (SQLSTATE 58P01). Timeline 1 has none.
    pub async fn timeline_history(&self, timeline: Timeline) -> Result<Vec<Ancestor>, SqlError> {
        let rows = self.simple(&format!("TIMELINE_HISTORY {timeline}")).await?;
        let content = rows
            .into_iter()
            .next()
            .and_then(|row| row.into_iter().nth(1).flatten());
        let content = content
            .ok_or_else(|| SqlError::Unexpected("TIMELINE_HISTORY: no content".to_owned()))?;
        Ok(parse_history(&content))
    }
}

/// Understands a timeline history file; lines that are none of its entries are skipped, as PostgreSQL skips comments.
#[must_use]
pub fn parse_history(content: &str) -> Vec<Ancestor> {
    content
        .lines()
        .filter_map(|line| {
            let mut fields = line.trim().splitn(3, ['\t', ' ']);
            Some(Ancestor {
                timeline: Timeline(fields.next()?.parse().ok()?),
                switch: fields.next()?.parse().ok()?,
                reason: fields.next().unwrap_or_default().trim().to_owned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_files() {
        let text = "1\t0/3000148\tno recovery target specified\n\n# comment\n2\t1/50000A0\tbefore 2000-01-01 00:00:00+00\n";
        let history = parse_history(text);
        assert_eq!(history.len(), 2);
        assert_eq!(
            (history[1].timeline, history[1].switch),
            (Timeline(2), Lsn(0x1_0500_00A0))
        );
        assert_eq!(history[0].reason, "no recovery target specified");
    }

    #[test]
    fn remote_addresses() {
        let upstream = Upstream {
            host: "a,/run/pg,b".to_owned(),
            port: "1,2".to_owned(),
            dbname: None,
        };
        let target = Target::remote(&upstream, "postgres", &Credentials::default());
        assert_eq!(
            target.addresses,
            [
                Address::Tcp("a".to_owned(), 1),
                Address::Unix("/run/pg".into(), 2),
                Address::Tcp("b".to_owned(), 2)
            ]
        );
        assert!(target.options().contains("search_path"));
        assert_eq!(target.replication().options(), "-c statement_timeout=2000");
    }
}
