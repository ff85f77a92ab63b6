//! The one table of environment variables: name, configuration key, type, default and one sentence each.
//!
//! `env` reads the environment by it, `layers` takes the defaults from it, `reference` prints the README's section from it.
//! A key below `bootstrap.dcs` is dynamic configuration: it counts only when this node bootstraps a new cluster.

use std::sync::LazyLock;

/// How the text of a variable becomes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The text itself.
    Text,
    /// One of these words, any case.
    Choice(&'static [&'static str]),
    /// A whole number; `0644` is octal.
    Integer,
    /// A whole number with an optional unit of this family.
    Amount(&'static str),
    /// A number.
    Real,
    /// on/off, true/false, yes/no, 1/0.
    Boolean,
    /// A boolean or a word of this list.
    BooleanOr(&'static [&'static str]),
    /// A YAML list; the brackets may be left out.
    List,
    /// One item per line, or a YAML list.
    Lines,
    /// A YAML map; the braces may be left out.
    Dict,
    /// A printf-style text, or a list of field names.
    Format,
    /// A whole YAML (or JSON) map.
    Document,
}

impl Kind {
    /// The word for the reference.
    #[must_use]
    pub fn describe(self) -> String {
        match self {
            Kind::Text => "text".to_owned(),
            Kind::Choice(words) => words.join(" \\| "),
            Kind::Integer => "integer".to_owned(),
            Kind::Amount(unit) => format!("integer, {unit} unless a unit is given"),
            Kind::Real => "number".to_owned(),
            Kind::Boolean => "boolean".to_owned(),
            Kind::BooleanOr(words) => format!("boolean \\| {}", words.join(" \\| ")),
            Kind::List => "list".to_owned(),
            Kind::Lines => "lines, or a list".to_owned(),
            Kind::Dict => "map".to_owned(),
            Kind::Format => "text, or a list of fields".to_owned(),
            Kind::Document => "YAML or JSON map".to_owned(),
        }
    }
}

/// The default of a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// No default.
    None,
    /// This text, as if the variable had been set to it.
    Is(&'static str),
    /// Computed; these words say how.
    Computed(&'static str),
}

/// One variable.
#[derive(Debug, Clone)]
pub struct Variable {
    /// `PATRONI_…`.
    pub name: String,
    /// Dotted key of the configuration it sets.
    pub key: String,
    /// How it is read.
    pub kind: Kind,
    /// What holds without it.
    pub preset: Preset,
    /// Never printed; has a `…_FILE` form.
    pub secret: bool,
    /// An older or misspelt name of this variable, which is used when the right one is not set.
    pub alias: Option<&'static str>,
    /// One sentence.
    pub about: String,
}

impl Variable {
    /// Sets something that counts only when the cluster is bootstrapped.
    #[must_use]
    pub fn is_dynamic(&self) -> bool {
        self.key.starts_with("bootstrap.dcs")
    }
}

/// Every setting of a PostgreSQL parameter for the first bootstrap: this prefix and the parameter's name; `__` stands for a dot.
pub const PARAMETER_PREFIX: &str = "PATRONI_POSTGRESQL_PARAMETERS_";

/// The table, in the order of the reference.
#[must_use]
pub fn table() -> &'static [Variable] {
    static TABLE: LazyLock<Vec<Variable>> = LazyLock::new(build);
    &TABLE
}

/// The row of a key; the first one where a key has several names.
#[must_use]
pub fn by_key(key: &str) -> Option<&'static Variable> {
    table().iter().find(|row| row.key == key)
}

/// Top-level keys of the store sections, in the order in which the first one present wins (spec/configuration.md §3.7).
pub const STORE_SECTIONS: [&str; 7] = [
    "consul",
    "etcd",
    "etcd3",
    "exhibitor",
    "kubernetes",
    "raft",
    "zookeeper",
];

/// Names of connection options of `postgresql.authentication.<user>` (§3.3), with what they are.
const CONNECTION_OPTIONS: [(&str, &str); 10] = [
    ("SSLMODE", "libpq `sslmode`"),
    ("SSLCERT", "client certificate file"),
    ("SSLKEY", "client key file"),
    ("SSLPASSWORD", "password of the client key"),
    ("SSLROOTCERT", "file of trusted authorities"),
    ("SSLCRL", "certificate revocation list file"),
    ("SSLCRLDIR", "directory of revocation lists"),
    ("GSSENCMODE", "libpq `gssencmode`"),
    ("CHANNEL_BINDING", "libpq `channel_binding`"),
    ("SSLNEGOTIATION", "libpq `sslnegotiation`"),
];

/// Binaries that `postgresql.bin_name` may rename.
pub const BINARIES: [&str; 7] = [
    "pg_ctl",
    "initdb",
    "pg_controldata",
    "pg_basebackup",
    "postgres",
    "pg_isready",
    "pg_rewind",
];

use Kind::{
    Amount, Boolean, BooleanOr, Choice, Dict, Document, Format, Integer, Lines, List, Real, Text,
};
use Preset::{Computed, Is};
const NONE: Preset = Preset::None;

/// Adds rows; the name is made from the prefix and a suffix.
struct Rows(Vec<Variable>);

impl Rows {
    fn add(
        &mut self,
        name: &str,
        key: &str,
        kind: Kind,
        preset: Preset,
        about: &str,
    ) -> &mut Variable {
        self.0.push(Variable {
            name: format!("PATRONI_{name}"),
            key: key.to_owned(),
            kind,
            preset,
            secret: false,
            alias: None,
            about: about.to_owned(),
        });
        let last = self.0.len() - 1;
        &mut self.0[last]
    }

    /// `PATRONI_<SECTION>_<KEY>` sets `<section>.<key>`.
    fn section(&mut self, section: &str, rows: &[(&str, Kind, Preset, &str)]) {
        for (key, kind, preset, about) in rows {
            let name = format!("{section}_{key}").to_uppercase();
            self.add(&name, &format!("{section}.{key}"), *kind, *preset, about)
                .secret = key.contains("password") || *key == "token" || *key == "auth_data";
        }
    }

    /// `PATRONI_<KEY>` sets `bootstrap.dcs.<key>`.
    fn dynamic(&mut self, rows: &[(&str, Kind, Preset, &str)]) {
        for (key, kind, preset, about) in rows {
            let name = key.replace('.', "_").to_uppercase();
            self.add(
                &name,
                &format!("bootstrap.dcs.{key}"),
                *kind,
                *preset,
                about,
            );
        }
    }

    fn alias(&mut self, old: &str, of: &'static str) {
        let Some(row) = self.0.iter().find(|row| row.name == of) else {
            return;
        };
        let mut row = row.clone();
        row.name = format!("PATRONI_{old}");
        row.about = format!("Another name of `{of}`, used when that one is not set.");
        row.alias = Some(of);
        self.0.push(row);
    }
}

fn build() -> Vec<Variable> {
    let mut rows = Rows(Vec::new());
    rows.add(
        "SCOPE",
        "scope",
        Text,
        NONE,
        "Name of the cluster; required.",
    );
    rows.add(
        "NAME",
        "name",
        Text,
        Computed("the host name"),
        "Name of this member, unique in the cluster.",
    );
    rows.add(
        "NAMESPACE",
        "namespace",
        Text,
        Is("service"),
        "Path in the store below which the cluster lives: `/<namespace>/<scope>`.",
    );
    rows.add(
        "CONFIGURATION",
        "",
        Document,
        NONE,
        "A whole configuration; stands for the configuration file, other variables win over it.",
    )
    .secret = true;
    rows.add(
        "THREAD_POOL_SIZE",
        "thread_pool_size",
        Integer,
        Is("5"),
        "Accepted for compatibility; this program sizes its threads itself.",
    );
    rows.add(
        "THREAD_STACK_SIZE",
        "thread_stack_size",
        Amount("B"),
        Is("524288"),
        "Accepted for compatibility.",
    );
    rows.add("GUARD", "guard", BooleanOr(&["auto"]), Is("auto"), "Whether the init process stops PostgreSQL when the agent misses its deadline; `auto`: when it is PID 1.");

    rows.section(
        "log",
        &[
            (
                "type",
                Choice(&["plain", "json"]),
                Is("plain"),
                "Form of the log lines.",
            ),
            (
                "level",
                Choice(&[
                    "DEBUG", "INFO", "WARN", "WARNING", "ERROR", "FATAL", "CRITICAL",
                ]),
                Is("INFO"),
                "Least severe level that is logged.",
            ),
            (
                "traceback_level",
                Choice(&["DEBUG", "ERROR"]),
                Is("ERROR"),
                "Accepted for compatibility: an error is one line with its cause, at every level.",
            ),
            (
                "format",
                Format,
                Is("%(asctime)s %(levelname)s: %(message)s"),
                "Format of a line.",
            ),
            ("dateformat", Text, NONE, "strftime format of the time."),
            (
                "static_fields",
                Dict,
                NONE,
                "Fields added to every JSON record.",
            ),
            (
                "max_queue_size",
                Integer,
                Is("1000"),
                "Records held when the log cannot be written; more are dropped and counted.",
            ),
            (
                "dir",
                Text,
                NONE,
                "Existing directory for `patroni.log`; without it the log goes to standard error.",
            ),
            ("file_num", Integer, Is("4"), "Rotated log files kept."),
            (
                "file_size",
                Integer,
                Is("25000000"),
                "Bytes after which the log file is rotated.",
            ),
            (
                "mode",
                Integer,
                NONE,
                "Mode of the log file; octal with a leading 0.",
            ),
            ("loggers", Dict, NONE, "Level per module."),
            (
                "deduplicate_heartbeat_logs",
                Boolean,
                Is("false"),
                "Leave out a heartbeat line equal to the previous one.",
            ),
        ],
    );
    rows.alias("LOGLEVEL", "PATRONI_LOG_LEVEL");
    rows.alias("LOGFORMAT", "PATRONI_LOG_FORMAT");
    rows.alias("LOG_DATEFMT", "PATRONI_LOG_DATEFORMAT");

    rows.section(
        "restapi",
        &[
            (
                "listen",
                Text,
                Is("0.0.0.0:8008"),
                "Address and port of the REST API.",
            ),
            (
                "connect_address",
                Text,
                Computed("this host's address and the port of `listen`"),
                "Where others reach the REST API.",
            ),
            (
                "certfile",
                Text,
                NONE,
                "Server certificate file; turns HTTPS on.",
            ),
            ("keyfile", Text, NONE, "Server key file."),
            (
                "keyfile_password",
                Text,
                NONE,
                "Password of the server key.",
            ),
            ("cafile", Text, NONE, "Authorities of client certificates."),
            (
                "ciphers",
                Text,
                NONE,
                "Accepted ciphers (OpenSSL's syntax).",
            ),
            (
                "verify_client",
                Choice(&["none", "optional", "required"]),
                Is("none"),
                "Which requests need a client certificate: none, unsafe ones, all.",
            ),
            (
                "allowlist",
                List,
                NONE,
                "Hosts and networks that may send unsafe requests; without it: all.",
            ),
            (
                "allowlist_include_members",
                Boolean,
                Is("false"),
                "Members of the cluster are on the allow list.",
            ),
            (
                "http_extra_headers",
                Dict,
                NONE,
                "Headers added to every answer.",
            ),
            (
                "https_extra_headers",
                Dict,
                NONE,
                "Headers added to every answer over TLS.",
            ),
            (
                "request_queue_size",
                Integer,
                Is("5"),
                "Connections waiting to be accepted; at least 1024, so that a burst of health checks is not dropped.",
            ),
            (
                "thread_pool_size",
                Integer,
                Is("5"),
                "Accepted for compatibility.",
            ),
            (
                "server_tokens",
                Choice(&["original", "minimal", "productonly"]),
                Is("original"),
                "How much the `Server` header tells.",
            ),
            (
                "primary_when",
                Choice(&["lock", "writable"]),
                Is("lock"),
                "When `/primary` answers 200: once this node has the leader lock, as in Patroni, or once PostgreSQL takes writes as well.",
            ),
        ],
    );
    for (section, what) in [
        ("restapi", "unsafe requests must carry"),
        ("ctl", "the command line sends"),
    ] {
        for part in ["username", "password"] {
            let name = format!("{section}_{part}").to_uppercase();
            let about = format!("Basic authentication: the {part} that {what}.");
            rows.add(
                &name,
                &format!("{section}.authentication.{part}"),
                Text,
                NONE,
                &about,
            )
            .secret = part == "password";
        }
    }
    rows.section(
        "ctl",
        &[
            (
                "insecure",
                Boolean,
                Is("false"),
                "Do not verify the REST API's certificate.",
            ),
            (
                "cacert",
                Text,
                Computed("`restapi.cafile`"),
                "Authorities of the REST API's certificate.",
            ),
            ("certfile", Text, NONE, "Client certificate file."),
            ("keyfile", Text, NONE, "Client key file."),
            (
                "keyfile_password",
                Text,
                NONE,
                "Password of the client key.",
            ),
        ],
    );

    rows.section(
        "postgresql",
        &[
            (
                "listen",
                Text,
                Is("0.0.0.0:5432"),
                "Addresses (comma separated) and port PostgreSQL listens on.",
            ),
            (
                "connect_address",
                Text,
                Computed("this host's address and the port of `listen`"),
                "Where others reach PostgreSQL.",
            ),
            (
                "proxy_address",
                Text,
                NONE,
                "Address of a pooler or proxy in front of PostgreSQL.",
            ),
            (
                "data_dir",
                Text,
                Computed("`$PGDATA`, else /var/lib/postgresql/data"),
                "The data directory. Its parent holds the embedded store and generated passwords.",
            ),
            (
                "config_dir",
                Text,
                Computed("the data directory"),
                "Directory of the configuration files.",
            ),
            (
                "config_base_name",
                Text,
                Is("postgresql"),
                "Base name of the configuration files.",
            ),
            (
                "bin_dir",
                Text,
                Computed("newest /usr/lib/postgresql/*/bin, else `PATH`"),
                "Directory of PostgreSQL's programs.",
            ),
            (
                "database",
                Text,
                Is("postgres"),
                "Database for administrative connections.",
            ),
            (
                "pgpass",
                Text,
                Computed("`$HOME/pgpass`"),
                "Password file written for child processes.",
            ),
            (
                "pg_hba",
                Lines,
                NONE,
                "Lines of pg_hba.conf; replace the file.",
            ),
            (
                "pg_ident",
                Lines,
                NONE,
                "Lines of pg_ident.conf; replace the file.",
            ),
            (
                "custom_conf",
                Text,
                NONE,
                "A postgresql.conf to include in place of the generated base file.",
            ),
            (
                "recovery_conf",
                Dict,
                NONE,
                "Recovery settings of a standby, such as `restore_command`.",
            ),
            (
                "use_unix_socket",
                Boolean,
                Is("false"),
                "Administrative connections over the Unix socket.",
            ),
            (
                "use_unix_socket_repl",
                Boolean,
                Is("false"),
                "Local replication connections over the Unix socket.",
            ),
            ("krbsrvname", Text, NONE, "Kerberos service name."),
            (
                "pg_ctl_timeout",
                Integer,
                Is("60"),
                "Seconds to wait for a start or stop.",
            ),
            (
                "use_pg_rewind",
                Boolean,
                Is("false"),
                "Rejoin a former primary with pg_rewind.",
            ),
            ("rewind", List, NONE, "Extra options of pg_rewind."),
            (
                "remove_data_directory_on_rewind_failure",
                Boolean,
                Is("false"),
                "Clone anew when pg_rewind fails.",
            ),
            (
                "remove_data_directory_on_diverged_timelines",
                Boolean,
                Is("false"),
                "Clone anew when the history has diverged.",
            ),
            (
                "keep_diverged",
                Boolean,
                Is("true"),
                "Before it is cloned anew, rename the data directory to `<data_dir>.diverged` if a second one fits beside it; the last one is kept.",
            ),
            (
                "keep_diverged_limit",
                Amount("B"),
                Is("0"),
                "Size above which it is not kept; 0: any.",
            ),
            (
                "create_replica_methods",
                List,
                Is("basebackup"),
                "Methods of creating a standby, in order.",
            ),
            ("basebackup", List, NONE, "Options of pg_basebackup."),
            (
                "pre_promote",
                Text,
                NONE,
                "Command before a promotion; its failure prevents it.",
            ),
            ("before_stop", Text, NONE, "Command before a stop."),
        ],
    );
    for action in [
        "on_start",
        "on_stop",
        "on_restart",
        "on_reload",
        "on_role_change",
    ] {
        let name = format!("POSTGRESQL_CALLBACKS_{}", action.to_uppercase());
        let about = format!("Command run at `{action}` with the action, the role and the scope.");
        rows.add(
            &name,
            &format!("postgresql.callbacks.{action}"),
            Text,
            NONE,
            &about,
        );
    }
    for binary in BINARIES {
        let name = format!("POSTGRESQL_BIN_{}", binary.to_uppercase());
        rows.add(
            &name,
            &format!("postgresql.bin_name.{binary}"),
            Text,
            NONE,
            &format!("Name of the `{binary}` program."),
        );
    }
    rows.alias(
        "POSTGRESQL_BIN_IS_READY",
        "PATRONI_POSTGRESQL_BIN_PG_ISREADY",
    );
    rows.add("POSTGRESQL_LOCAL_PARAMETERS", "postgresql.parameters", Dict, NONE, "PostgreSQL parameters of this node only; those that must agree in the cluster are ignored here.");

    for (user, preset, what) in [
        ("superuser", Is("postgres"), "the superuser"),
        ("replication", Is("replicator"), "the replication user"),
        ("rewind", NONE, "the pg_rewind user"),
    ] {
        let prefix = user.to_uppercase();
        let key = format!("postgresql.authentication.{user}");
        let generated = if user == "rewind" {
            NONE
        } else {
            Computed("generated, when this node is the only member")
        };
        rows.add(
            &format!("{prefix}_USERNAME"),
            &format!("{key}.username"),
            Text,
            preset,
            &format!("Name of {what}."),
        );
        rows.add(
            &format!("{prefix}_PASSWORD"),
            &format!("{key}.password"),
            Text,
            generated,
            &format!("Password of {what}."),
        )
        .secret = true;
        for (option, about) in CONNECTION_OPTIONS {
            let about = format!("Connections of {what}: {about}.");
            rows.add(
                &format!("{prefix}_{option}"),
                &format!("{key}.{}", option.to_lowercase()),
                Text,
                NONE,
                &about,
            )
            .secret = option == "SSLPASSWORD";
        }
    }

    rows.add(
        "BOOTSTRAP_DCS",
        "bootstrap.dcs",
        Document,
        NONE,
        "The initial dynamic configuration.",
    );
    rows.dynamic(&[
        (
            "ttl",
            Integer,
            Is("30"),
            "Seconds after which a silent leader loses the lead.",
        ),
        (
            "loop_wait",
            Integer,
            Is("10"),
            "Seconds between turns of the loop when nothing happens.",
        ),
        (
            "retry_timeout",
            Integer,
            Is("10"),
            "Seconds for which operations on the store and PostgreSQL are retried.",
        ),
        (
            "maximum_lag_on_failover",
            Integer,
            Is("1048576"),
            "Bytes a standby may lag and still become leader.",
        ),
        (
            "maximum_lag_on_syncnode",
            Integer,
            Is("-1"),
            "Bytes after which a lagging synchronous standby is replaced; -1: never.",
        ),
        (
            "max_timelines_history",
            Integer,
            Is("0"),
            "Entries kept in the history; 0: all.",
        ),
        (
            "check_timeline",
            Boolean,
            Is("false"),
            "Refuse candidates behind the cluster's timeline.",
        ),
        (
            "primary_start_timeout",
            Integer,
            Is("300"),
            "Seconds a failed primary may take to recover before a failover.",
        ),
        (
            "primary_stop_timeout",
            Integer,
            Is("0"),
            "Seconds to wait for a primary's stop in synchronous mode; 0: no limit.",
        ),
        (
            "primary_answer_timeout",
            Integer,
            Is("120"),
            "Seconds a running primary may answer no query before it counts as failed; 0: for ever.",
        ),
        (
            "candidate_checks",
            Boolean,
            Is("true"),
            "A member without free space, with an unusable data directory or an unreachable API does not lead while another can.",
        ),
        (
            "candidate_free_space",
            Integer,
            Is("33554432"),
            "Bytes that must be free for data and for WAL by that check; 0: any.",
        ),
        (
            "primary_race_backoff",
            Integer,
            Is("0"),
            "Seconds the leader race waits while WAL still advances.",
        ),
        (
            "failsafe_mode",
            Boolean,
            Is("false"),
            "Keep the primary while the store is down and all members agree.",
        ),
        (
            "isolation_hold",
            Boolean,
            Is("true"),
            "A primary that hears neither the store nor any other member lets commits wait.",
        ),
        ("pause", Boolean, Is("false"), "Start in maintenance mode."),
        (
            "synchronous_mode",
            BooleanOr(&["quorum"]),
            Is("off"),
            "Synchronous replication.",
        ),
        (
            "synchronous_mode_strict",
            Boolean,
            Is("false"),
            "Refuse commits while there is no synchronous standby.",
        ),
        (
            "synchronous_node_count",
            Integer,
            Is("1"),
            "Number of synchronous standbys.",
        ),
        (
            "member_slots_ttl",
            Amount("s"),
            Is("1800"),
            "How long the slot of a lost member is kept.",
        ),
        ("slots", Dict, NONE, "Permanent replication slots."),
        ("ignore_slots", List, NONE, "Slots that are left alone."),
        (
            "standby_cluster.host",
            Text,
            NONE,
            "Remote primary to follow: makes this a standby cluster.",
        ),
        (
            "standby_cluster.port",
            Integer,
            NONE,
            "Port of the remote primary.",
        ),
        (
            "standby_cluster.primary_slot_name",
            Text,
            NONE,
            "Slot on the remote primary.",
        ),
        (
            "standby_cluster.create_replica_methods",
            List,
            NONE,
            "Methods of creating the standby leader.",
        ),
        (
            "standby_cluster.restore_command",
            Text,
            NONE,
            "Command that fetches WAL from the remote archive.",
        ),
        (
            "standby_cluster.archive_cleanup_command",
            Text,
            NONE,
            "Command that cleans the archive.",
        ),
        (
            "standby_cluster.recovery_min_apply_delay",
            Text,
            NONE,
            "Delay of the replay on the standby leader.",
        ),
        (
            "postgresql.parameters",
            Dict,
            NONE,
            "PostgreSQL parameters of the cluster.",
        ),
        (
            "postgresql.use_slots",
            Boolean,
            Is("true"),
            "Use replication slots for members.",
        ),
    ]);
    rows.section(
        "bootstrap",
        &[
            (
                "method",
                Text,
                Is("initdb"),
                "How a new cluster is made: `initdb`, or a section of `bootstrap`.",
            ),
            (
                "initdb",
                List,
                Computed("UTF8 and data checksums, when no file configures `bootstrap`"),
                "Options of initdb.",
            ),
            (
                "pg_hba",
                Lines,
                Computed("password access from everywhere, when no file configures `bootstrap`"),
                "Lines appended to pg_hba.conf of a new cluster.",
            ),
            (
                "post_bootstrap",
                Text,
                NONE,
                "Command run once on a new cluster.",
            ),
        ],
    );

    rows.section(
        "watchdog",
        &[
            (
                "mode",
                BooleanOr(&["automatic", "required"]),
                Is("automatic"),
                "Use of a hardware or kernel watchdog.",
            ),
            (
                "device",
                Text,
                Is("/dev/watchdog"),
                "The watchdog's device.",
            ),
            (
                "safety_margin",
                Integer,
                Is("5"),
                "Seconds the watchdog fires before the leader key expires; -1: half the ttl.",
            ),
            ("driver", Text, Is("default"), "The watchdog's driver."),
        ],
    );
    rows.add(
        "TAGS",
        "tags",
        Dict,
        NONE,
        "Tags of this member, your own ones too.",
    );
    rows.section(
        "tags",
        &[
            (
                "nofailover",
                Boolean,
                Is("false"),
                "This member never becomes leader.",
            ),
            (
                "failover_priority",
                Integer,
                Is("1"),
                "Higher wins a race between equal members; 0: never leader.",
            ),
            (
                "nosync",
                Boolean,
                Is("false"),
                "This member is never a synchronous standby.",
            ),
            (
                "sync_priority",
                Integer,
                Is("1"),
                "Higher is preferred as synchronous standby; 0: never.",
            ),
            (
                "noloadbalance",
                Boolean,
                Is("false"),
                "Health checks for replicas answer 503.",
            ),
            (
                "clonefrom",
                Boolean,
                Is("false"),
                "Preferred source of clones.",
            ),
            ("replicatefrom", Text, NONE, "Member to stream from."),
            (
                "nostream",
                Boolean,
                Is("false"),
                "Receives WAL from an archive only.",
            ),
        ],
    );
    rows.section(
        "citus",
        &[
            ("group", Integer, NONE, "Citus group; 0 is the coordinator."),
            ("database", Text, NONE, "Database in which Citus is set up."),
        ],
    );

    store_rows(&mut rows);
    rows.0
}

/// The store sections (spec/configuration.md §3.7).
fn store_rows(rows: &mut Rows) {
    rows.section(
        "raft",
        &[
            (
                "self_addr",
                Text,
                Computed("this host's address, port 2222"),
                "Address of this member of the embedded store.",
            ),
            (
                "bind_addr",
                Text,
                Computed("`self_addr`; 0.0.0.0 and its port when that was computed"),
                "Address to listen on.",
            ),
            (
                "partner_addrs",
                List,
                NONE,
                "Addresses of the other members; without them this node is the only one.",
            ),
            (
                "data_dir",
                Text,
                Computed("`raft` beside the data directory"),
                "Directory of the embedded store.",
            ),
            ("password", Text, NONE, "Shared password of the members."),
            (
                "min_timeout",
                Real,
                Is("0.4"),
                "Shortest election timeout in seconds.",
            ),
            (
                "max_timeout",
                Real,
                Is("1.4"),
                "Longest election timeout in seconds.",
            ),
            (
                "connection_timeout",
                Real,
                Is("3.5"),
                "Seconds after which a silent connection counts as lost.",
            ),
            (
                "append_entries_period",
                Real,
                Is("0.1"),
                "Seconds between heartbeats.",
            ),
            (
                "connection_retry_time",
                Real,
                Is("5.0"),
                "Seconds between attempts to connect.",
            ),
            (
                "leader_fallback_timeout",
                Real,
                Is("30.0"),
                "Seconds after which a leader without a majority steps down.",
            ),
        ],
    );
    for section in ["etcd3", "etcd"] {
        rows.section(
            section,
            &[
                ("hosts", List, NONE, "Servers, `host:port` each."),
                ("host", Text, NONE, "One server."),
                ("port", Integer, Is("2379"), "Port where none is given."),
                (
                    "url",
                    Text,
                    NONE,
                    "URL of a server, with user and password if need be.",
                ),
                (
                    "proxy",
                    Text,
                    NONE,
                    "URL of a proxy; the topology is not discovered.",
                ),
                (
                    "srv",
                    Text,
                    NONE,
                    "Domain of SRV records to discover the servers.",
                ),
                ("srv_suffix", Text, NONE, "Suffix of the SRV service name."),
                (
                    "protocol",
                    Choice(&["http", "https"]),
                    Is("http"),
                    "Protocol.",
                ),
                (
                    "use_proxies",
                    Boolean,
                    Is("false"),
                    "Use the listed servers only, do not discover others.",
                ),
                ("username", Text, NONE, "User."),
                ("password", Text, NONE, "Password."),
                ("cacert", Text, NONE, "File of trusted authorities."),
                ("cert", Text, NONE, "Client certificate file."),
                ("key", Text, NONE, "Client key file."),
            ],
        );
    }
    rows.section(
        "consul",
        &[
            ("host", Text, Is("127.0.0.1:8500"), "Agent, `host:port`."),
            ("url", Text, NONE, "URL of the agent; wins over `host`."),
            ("port", Integer, NONE, "Port; wins over the one in `host`."),
            (
                "scheme",
                Choice(&["http", "https"]),
                Is("http"),
                "Protocol.",
            ),
            ("token", Text, NONE, "ACL token."),
            (
                "verify",
                Boolean,
                Is("true"),
                "Verify the server's certificate.",
            ),
            ("cacert", Text, NONE, "File of trusted authorities."),
            ("cert", Text, NONE, "Client certificate file."),
            ("key", Text, NONE, "Client key file."),
            ("dc", Text, NONE, "Data centre."),
            (
                "consistency",
                Choice(&["default", "consistent", "stale"]),
                Is("default"),
                "Consistency of reads.",
            ),
            ("checks", List, NONE, "Health checks the session hangs on."),
            (
                "register_service",
                Boolean,
                Is("false"),
                "Register the members as a service.",
            ),
            ("service_tags", List, NONE, "Tags of the service."),
            (
                "service_check_interval",
                Text,
                Is("5s"),
                "Interval of the service's check.",
            ),
            (
                "service_check_tls_server_name",
                Text,
                NONE,
                "TLS server name of the check.",
            ),
        ],
    );
    for (section, hosts) in [
        ("zookeeper", "Servers, `host:port` each."),
        ("exhibitor", "Exhibitor hosts."),
    ] {
        rows.section(section, &[("hosts", List, NONE, hosts)]);
        if section == "exhibitor" {
            rows.section(
                section,
                &[
                    ("port", Integer, NONE, "Port of Exhibitor."),
                    (
                        "poll_interval",
                        Integer,
                        Is("300"),
                        "Seconds between requests to Exhibitor.",
                    ),
                ],
            );
        }
        rows.section(
            section,
            &[
                ("use_ssl", Boolean, Is("false"), "Use TLS."),
                (
                    "verify",
                    Boolean,
                    Is("true"),
                    "Verify the server's certificate.",
                ),
                ("cacert", Text, NONE, "File of trusted authorities."),
                ("cert", Text, NONE, "Client certificate file."),
                ("key", Text, NONE, "Client key file."),
                ("key_password", Text, NONE, "Password of the client key."),
                (
                    "set_acls",
                    Dict,
                    NONE,
                    "Principal → list of permissions of created nodes.",
                ),
                ("auth_data", Dict, NONE, "Scheme → credential."),
            ],
        );
    }
    rows.section(
        "kubernetes",
        &[
            (
                "labels",
                Dict,
                NONE,
                "Labels of the cluster's objects; required.",
            ),
            (
                "scope_label",
                Text,
                Is("cluster-name"),
                "Label with the cluster's name.",
            ),
            ("role_label", Text, Is("role"), "Label with the role."),
            (
                "leader_label_value",
                Text,
                Is("primary"),
                "Role label of the leader.",
            ),
            (
                "follower_label_value",
                Text,
                Is("replica"),
                "Role label of a replica.",
            ),
            (
                "standby_leader_label_value",
                Text,
                Is("primary"),
                "Role label of a standby leader.",
            ),
            (
                "tmp_role_label",
                Text,
                NONE,
                "Second role label, for a change of values.",
            ),
            (
                "bootstrap_labels",
                Dict,
                NONE,
                "Labels of a pod while it bootstraps.",
            ),
            ("namespace", Text, Is("default"), "Kubernetes namespace."),
            (
                "context",
                Text,
                Is("kind-kind"),
                "Context of the kubeconfig; outside a cluster only.",
            ),
            (
                "use_endpoints",
                Boolean,
                Is("false"),
                "Use Endpoints rather than ConfigMaps.",
            ),
            ("pod_ip", Text, NONE, "Address of this pod; for Endpoints."),
            ("ports", List, NONE, "Ports of the leader's Endpoints."),
            (
                "bypass_api_service",
                Boolean,
                Is("false"),
                "Talk to the API servers directly.",
            ),
            (
                "cacert",
                Text,
                Computed("the service account's"),
                "File of trusted authorities.",
            ),
            (
                "retriable_http_codes",
                List,
                NONE,
                "Status codes retried besides 500, 503, 504.",
            ),
        ],
    );
    rows.alias(
        "RETRIABLE_HTTP_CODES",
        "PATRONI_KUBERNETES_RETRIABLE_HTTP_CODES",
    );
}

/// The README's section: one Markdown table, generated.
#[must_use]
pub fn reference() -> String {
    let mut text = String::from(
        "| Variable | Key | Type | Default | Meaning |\n| --- | --- | --- | --- | --- |\n",
    );
    for row in table() {
        let preset = match row.preset {
            Preset::None => String::new(),
            Preset::Is(value) => format!("`{value}`"),
            Preset::Computed(words) => words.to_owned(),
        };
        let key = if row.key.is_empty() {
            "everything".to_owned()
        } else {
            format!("`{}`", row.key)
        };
        let mut about = row.about.clone();
        if row.secret {
            about.push_str(&format!(" Or `{}_FILE`.", row.name));
        }
        if row.is_dynamic() {
            about.push_str(" ¹");
        }
        text.push_str(&format!(
            "| `{}` | {key} | {} | {preset} | {about} |\n",
            row.name,
            row.kind.describe()
        ));
    }
    text.push_str(&format!(
        "| `{PARAMETER_PREFIX}<NAME>` | `bootstrap.dcs.postgresql.parameters.<name>` | text | | One PostgreSQL parameter; the name in any case, `__` for a dot. ¹ |\n"
    ));
    text.push_str("\n¹ Dynamic configuration: used when this node bootstraps a new cluster. Later it is changed in the cluster (`howdah ctl edit-config`, `PATCH /config`); a difference is a warning in the log.\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_documented() {
        let mut seen = BTreeSet::new();
        for row in table() {
            assert!(seen.insert(row.name.clone()), "{} twice", row.name);
            assert!(row.about.ends_with('.'), "{}", row.name);
            assert_eq!(row.name, row.name.to_uppercase());
        }
        assert!(seen.len() > 200, "{}", seen.len());
    }

    #[test]
    fn the_reference_has_every_variable() {
        let text = reference();
        for row in table() {
            assert_eq!(
                text.matches(&format!("| `{}` |", row.name)).count(),
                1,
                "{}",
                row.name
            );
        }
        assert!(text.contains("| `PATRONI_TTL` | `bootstrap.dcs.ttl` | integer | `30` |"));
        assert!(text.contains("Or `PATRONI_REPLICATION_PASSWORD_FILE`."));
    }

    #[test]
    fn what_holds_a_secret_is_marked() {
        for row in table() {
            if row.name.ends_with("PASSWORD") || row.name.ends_with("TOKEN") {
                assert!(row.secret, "{}", row.name);
            }
        }
    }
}
