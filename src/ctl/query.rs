//! `query` and `dsn`: straight to a member's PostgreSQL (spec/ctl.md §6).

use std::time::Duration;

use clap::Args;
use serde_json::Value;
use tokio_postgres::types::Type;
use tokio_postgres::{NoTls, SimpleQueryMessage};

use crate::cluster::{Cluster, Member};
use crate::topology::postgres_address;

use super::actions::members_of;
use super::members::local_time;
use super::table::{self, Column, Format, column};
use super::{Done, Failure, RoleChoice, Session, Watch, error};

#[derive(Debug, Args)]
pub(super) struct Query {
    /// Name of the cluster.
    cluster: Option<String>,
    /// Citus group.
    #[arg(long)]
    group: Option<u32>,
    /// A member of this role; leader by default.
    #[arg(short, long, value_enum)]
    role: Option<RoleChoice>,
    /// This member.
    #[arg(short, long)]
    member: Option<String>,
    /// SQL; - for standard input.
    #[arg(short, long)]
    command: Option<String>,
    /// File with SQL; - for standard input.
    #[arg(short, long)]
    file: Option<String>,
    /// User.
    #[arg(short = 'U', long)]
    username: Option<String>,
    /// Ask for the password.
    #[arg(long)]
    password: bool,
    /// Database.
    #[arg(short, long)]
    dbname: Option<String>,
    /// Output format.
    #[arg(long, default_value = "tsv")]
    format: String,
    /// Delimiter of tsv.
    #[arg(long, default_value = "\t")]
    delimiter: String,
    #[command(flatten)]
    watch: Watch,
}

#[derive(Debug, Args)]
pub(super) struct Dsn {
    /// Name of the cluster.
    cluster: Option<String>,
    /// Citus group.
    #[arg(long)]
    group: Option<u32>,
    /// A member of this role; leader by default.
    #[arg(short, long, value_enum)]
    role: Option<RoleChoice>,
    /// This member.
    #[arg(short, long)]
    member: Option<String>,
}

/// The member meant, if any.
fn choose<'a>(
    cluster: &'a Cluster,
    role: Option<RoleChoice>,
    member: Option<&str>,
) -> Result<Option<&'a Member>, Failure> {
    if role.is_some() && member.is_some() {
        return error("--role and --member are mutually exclusive options");
    }
    Ok(match member {
        Some(name) => cluster
            .members
            .values()
            .find(|candidate| candidate.name.as_str() == name),
        None => members_of(cluster, role.unwrap_or(RoleChoice::Leader))
            .into_iter()
            .find(|member| member.conn_url.is_some()),
    })
}

impl Session<'_> {
    pub(super) async fn dsn(&mut self, arguments: Dsn) -> Done {
        let target = self
            .open(arguments.cluster.as_deref(), arguments.group)
            .await?;
        let cluster = target.load().await?;
        let member = choose(&cluster, arguments.role, arguments.member.as_deref())?;
        match member.and_then(|member| postgres_address(member.conn_url.as_deref()?)) {
            Some((host, port)) => self.screen.line(&format!("host={host} port={port}")),
            None => error("Can not find a suitable member"),
        }
    }

    pub(super) async fn query(&mut self, arguments: Query) -> Done {
        let sql = match (&arguments.command, &arguments.file) {
            (Some(_), Some(_)) => {
                return error("--file and --command are mutually exclusive options");
            }
            (None, None) => return error("You need to specify either --command or --file"),
            (Some(source), None) | (None, Some(source)) if source == "-" => {
                self.screen.read_all()?
            }
            (Some(sql), None) => sql.clone(),
            (None, Some(file)) => std::fs::read_to_string(file)
                .or_else(|why| error(format!("can not read {file}: {why}")))?,
        };
        let password = if arguments.password {
            Some(self.screen.ask_hidden("Password")?)
        } else {
            self.environment.variables().get("PGPASSWORD").cloned()
        };
        let target = self
            .open(arguments.cluster.as_deref(), arguments.group)
            .await?;
        let format = match arguments.format.as_str() {
            "tsv" => Some(Format::Tsv),
            "pretty" => Some(Format::Pretty),
            "json" => Some(Format::Json),
            "yaml" | "yml" => Some(Format::Yaml),
            _ => None,
        };
        let user = arguments.username.clone().or_else(|| {
            let variables = self.environment.variables();
            ["PGUSER", "USER", "LOGNAME"]
                .iter()
                .find_map(|name| variables.get(*name).cloned())
        });
        let mut connection: Option<tokio_postgres::Client> = None;
        loop {
            let cluster = target.load().await?;
            if connection
                .as_ref()
                .is_none_or(tokio_postgres::Client::is_closed)
            {
                connection = match choose(&cluster, arguments.role, arguments.member.as_deref())? {
                    Some(member) => {
                        connect(
                            member,
                            user.as_deref(),
                            password.as_deref(),
                            arguments.dbname.as_deref(),
                        )
                        .await
                    }
                    None => None,
                };
            }
            let needs_standby = matches!(
                arguments.role,
                Some(RoleChoice::Replica | RoleChoice::Standby)
            );
            let needs_primary = matches!(arguments.role, Some(RoleChoice::Primary));
            if let Some(client) = connection
                .as_ref()
                .filter(|_| needs_standby || needs_primary)
                && in_recovery(client).await != Some(needs_standby)
            {
                connection = None;
            }
            let text = match &connection {
                None => {
                    let whom = match (&arguments.member, arguments.role) {
                        (Some(member), _) => format!("member {member}"),
                        (None, Some(role)) if role != RoleChoice::Any => {
                            format!("role '{}'", role_text(role))
                        }
                        (None, None) => "role 'leader'".to_owned(),
                        (None, Some(_)) => String::new(),
                    };
                    let to = if whom.is_empty() {
                        String::new()
                    } else {
                        format!(" to {whom}")
                    };
                    failure(
                        &format!("No connection{to} is available"),
                        format,
                        &arguments.delimiter,
                    )
                }
                Some(client) => {
                    let types = types(client, &sql).await;
                    match client.simple_query(&sql).await {
                        Ok(messages) => results(&messages, &types, format, &arguments.delimiter),
                        Err(why) => {
                            let code = why
                                .code()
                                .map_or_else(|| why.to_string(), |code| code.code().to_owned());
                            failure(
                                &format!("ERROR, SQLSTATE: {code}"),
                                format,
                                &arguments.delimiter,
                            )
                        }
                    }
                }
            };
            self.screen.text(&text)?;
            match arguments.watch.pause() {
                None => return Ok(()),
                Some(pause) => tokio::time::sleep(pause).await,
            }
        }
    }
}

fn role_text(role: RoleChoice) -> String {
    clap::ValueEnum::to_possible_value(&role)
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default()
}

async fn connect(
    member: &Member,
    user: Option<&str>,
    password: Option<&str>,
    database: Option<&str>,
) -> Option<tokio_postgres::Client> {
    let (host, port) = postgres_address(member.conn_url.as_deref()?)?;
    let mut settings = tokio_postgres::Config::new();
    settings
        .host(&host)
        .port(port)
        .connect_timeout(Duration::from_secs(5))
        .application_name("Patroni ctl");
    if let Some(user) = user {
        settings.user(user);
    }
    if let Some(password) = password {
        settings.password(password);
    }
    if let Some(database) = database.or(user) {
        settings.dbname(database);
    }
    match settings.connect(NoTls).await {
        Ok((client, connection)) => {
            tokio::spawn(async move {
                if let Err(why) = connection.await {
                    tracing::warn!("connection lost: {why}");
                }
            });
            Some(client)
        }
        Err(why) => {
            tracing::warn!("can not connect to {host}:{port}: {why}");
            None
        }
    }
}

async fn in_recovery(client: &tokio_postgres::Client) -> Option<bool> {
    let messages = client
        .simple_query("SELECT pg_catalog.pg_is_in_recovery()")
        .await
        .ok()?;
    messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(|text| text == "t"),
        _ => None,
    })
}

/// One row without heading, exit 0.
fn failure(text: &str, format: Option<Format>, delimiter: &str) -> String {
    let time = local_time(0);
    match format {
        None => String::new(),
        Some(Format::Pretty) => table::boxed(
            &[column(""), column("")],
            &[vec![time, text.to_owned()]],
            None,
            table::PLAIN,
        ),
        Some(_) => format!("{time}{delimiter}{text}\n"),
    }
}

/// What the columns of one statement are; empty where it cannot be known beforehand, as of several statements at once.
async fn types(client: &tokio_postgres::Client, sql: &str) -> Vec<Type> {
    let prepared = client.prepare(sql).await;
    prepared.map_or_else(
        |_| Vec::new(),
        |statement| {
            let columns = statement.columns().iter();
            columns.map(|column| column.type_().clone()).collect()
        },
    )
}

/// Numbers and truth values are such in the output, as in Patroni's; everything else is text.
fn value(text: &str, kind: Option<&Type>) -> Value {
    let typed = match kind {
        Some(&Type::BOOL) => Some(Value::from(text == "t")),
        Some(&(Type::INT2 | Type::INT4 | Type::INT8 | Type::OID)) => {
            text.parse::<i64>().ok().map(Value::from)
        }
        Some(&(Type::FLOAT4 | Type::FLOAT8)) => text
            .parse::<f64>()
            .ok()
            .and_then(serde_json::Number::from_f64)
            .map(Value::from),
        _ => None,
    };
    typed.unwrap_or_else(|| Value::from(text))
}

/// The last result set; a statement without one shows how many rows it touched.
fn results(
    messages: &[SimpleQueryMessage],
    types: &[Type],
    format: Option<Format>,
    delimiter: &str,
) -> String {
    let Some(format) = format else {
        return String::new();
    };
    let mut headings: Vec<String> = Vec::new();
    let mut rows: Vec<Vec<Value>> = Vec::new();
    for message in messages {
        match message {
            SimpleQueryMessage::RowDescription(columns) => {
                headings = columns
                    .iter()
                    .map(|column| column.name().to_owned())
                    .collect();
                rows.clear();
            }
            SimpleQueryMessage::Row(row) => {
                let cells = (0..row.len()).map(|at| {
                    row.get(at)
                        .map_or(Value::Null, |text| value(text, types.get(at)))
                });
                rows.push(cells.collect());
            }
            _ => {}
        }
    }
    if headings.is_empty() {
        let touched = messages.iter().rev().find_map(|message| match message {
            SimpleQueryMessage::CommandComplete(rows) => Some(*rows),
            _ => None,
        });
        return format!("OK{delimiter}{}\n", touched.unwrap_or(0));
    }
    let columns: Vec<Column> = headings.into_iter().map(column).collect();
    table::render(&columns, &rows, format, delimiter)
}
