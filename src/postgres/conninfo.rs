//! Connection strings: building, parsing and comparing them (spec/postgres-management.md §6.2, §6.4).
//!
//! Pure. Passwords appear in a string only for versions that cannot read a password file (`primary_conninfo` below 10).

use std::collections::BTreeMap;
use std::fmt;

use super::{Credentials, LocalHost};
use crate::types::{Malformed, PgVersion};

/// libpq's keywords in the order in which they are written; others are not written.
const KEYS: [&str; 20] = [
    "dbname",
    "user",
    "passfile",
    "password",
    "host",
    "port",
    "sslmode",
    "sslcompression",
    "sslcert",
    "sslkey",
    "sslpassword",
    "sslrootcert",
    "sslcrl",
    "sslcrldir",
    "application_name",
    "krbsrvname",
    "gssencmode",
    "channel_binding",
    "target_session_attrs",
    "sslnegotiation",
];

/// Keys that libpq learned after 9.3, with the first version that knows them. A server or a tool refuses what it does not know.
const SINCE: [(&str, u32); 7] = [
    ("passfile", 10),
    ("target_session_attrs", 10),
    ("gssencmode", 12),
    ("channel_binding", 13),
    ("sslpassword", 13),
    ("sslcrldir", 14),
    ("sslnegotiation", 17),
];

/// Keys whose absence means the same as this value.
const DEFAULTS: [(&str, &str); 4] = [
    ("sslmode", "prefer"),
    ("gssencmode", "prefer"),
    ("channel_binding", "prefer"),
    ("sslnegotiation", "postgres"),
];

/// The server on the other side: what a member's `conn_url` or the `standby_cluster` section says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Upstream {
    /// Host, or several separated by commas. Without brackets around IPv6. Empty: the default socket.
    pub host: String,
    /// Port, or several; empty: the default.
    pub port: String,
    /// Database, if the address names one.
    pub dbname: Option<String>,
}

impl Upstream {
    /// The local server, as seen from this node.
    #[must_use]
    pub fn local(host: &LocalHost, port: u16) -> Self {
        let host = match host {
            LocalHost::Tcp(name) => name.clone(),
            LocalHost::Socket(directory) => directory.display().to_string(),
            LocalHost::DefaultSocket => String::new(),
        };
        Upstream {
            host,
            port: port.to_string(),
            dbname: None,
        }
    }

    /// Reads a member's `conn_url`: `postgres://[user[:password]@]host[:port][,host[:port]…][/database][?…]`. User and query are ignored.
    ///
    /// # Errors
    /// Another scheme, no host, a port that is no number, an unclosed bracket.
    pub fn from_url(url: &str) -> Result<Self, Malformed> {
        let err = || Malformed {
            kind: "connection URL",
            text: url.to_owned(),
        };
        let rest = url
            .strip_prefix("postgres://")
            .or_else(|| url.strip_prefix("postgresql://"))
            .ok_or_else(err)?;
        let rest = rest.split_once('?').map_or(rest, |(before, _)| before);
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let places = authority
            .rsplit_once('@')
            .map_or(authority, |(_, places)| places);
        let (mut hosts, mut ports) = (Vec::new(), Vec::new());
        for place in places.split(',') {
            let (host, port) = match place.strip_prefix('[') {
                Some(bracketed) => {
                    let (host, after) = bracketed.split_once(']').ok_or_else(err)?;
                    (host, after.strip_prefix(':').unwrap_or(after))
                }
                None => place.split_once(':').unwrap_or((place, "")),
            };
            let port_is_number = port.is_empty() || port.parse::<u16>().is_ok();
            if host.is_empty() || !port_is_number {
                return Err(err());
            }
            hosts.push(percent_decoded(host));
            ports.push(port);
        }
        ports.dedup();
        Ok(Upstream {
            host: hosts.join(","),
            port: ports.join(","),
            dbname: (!database.is_empty()).then(|| percent_decoded(database)),
        })
    }
}

fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes
            .get(at + 1..at + 3)
            .and_then(|pair| std::str::from_utf8(pair).ok());
        match hex.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(byte) if bytes[at] == b'%' => {
                decoded.push(byte);
                at += 3;
            }
            _ => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// A connection string as keys and values. `Display` writes `key=value` pairs in Patroni's order.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Conninfo(BTreeMap<String, String>);

impl Conninfo {
    /// A connection to `upstream` with these credentials, without the password. Keys newer than `version` are left out.
    #[must_use]
    pub fn new(
        upstream: &Upstream,
        credentials: &Credentials,
        database: &str,
        version: PgVersion,
    ) -> Self {
        let mut conninfo = Conninfo::default();
        conninfo.set("dbname", upstream.dbname.as_deref().unwrap_or(database));
        conninfo.set("host", &upstream.host);
        conninfo.set("port", &upstream.port);
        let options = [
            ("user", &credentials.username),
            ("sslmode", &credentials.sslmode),
            ("sslcert", &credentials.sslcert),
            ("sslkey", &credentials.sslkey),
            ("sslpassword", &credentials.sslpassword),
            ("sslrootcert", &credentials.sslrootcert),
            ("sslcrl", &credentials.sslcrl),
            ("sslcrldir", &credentials.sslcrldir),
            ("gssencmode", &credentials.gssencmode),
            ("channel_binding", &credentials.channel_binding),
            ("sslnegotiation", &credentials.sslnegotiation),
        ];
        for (key, value) in options {
            conninfo.set(key, value.as_deref().unwrap_or_default());
        }
        conninfo.0.retain(|key, _| is_supported(key, version));
        conninfo
    }

    /// Sets a key; an empty value removes it.
    pub fn set(&mut self, key: &str, value: &str) {
        if value.is_empty() {
            self.0.remove(key);
        } else {
            self.0.insert(key.to_owned(), value.to_owned());
        }
    }

    /// `set`, for building in one expression.
    #[must_use]
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.set(key, value);
        self
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Reads libpq's `key=value` form, with quotes and escapes.
    ///
    /// # Errors
    /// A key without `=`, or an unterminated quote.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let err = || Malformed {
            kind: "connection string",
            text: text.to_owned(),
        };
        let mut conninfo = Conninfo::default();
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let (key, after) = rest.split_once('=').ok_or_else(err)?;
            let key = key.trim();
            if key.is_empty() || key.contains(char::is_whitespace) {
                return Err(err());
            }
            let after = after.trim_start();
            let (quoted, body) = after
                .strip_prefix('\'')
                .map_or((false, after), |body| (true, body));
            let mut value = String::new();
            let mut chars = body.char_indices();
            let end = loop {
                match chars.next() {
                    Some((_, '\\')) => match chars.next() {
                        Some((_, c)) => value.push(c),
                        None => break body.len(),
                    },
                    Some((at, '\'')) if quoted => break at + 1,
                    Some((at, c)) if !quoted && c.is_whitespace() => break at,
                    Some((_, c)) => value.push(c),
                    None if quoted => return Err(err()),
                    None => break body.len(),
                }
            };
            conninfo.0.insert(key.to_owned(), value);
            rest = body[end..].trim_start();
        }
        Ok(conninfo)
    }

    /// Whether `running` does what `self` wants: every wanted key is equal, with libpq's defaults assumed on both sides (§6.4).
    ///
    /// `dbname` counts from 17 on (slot synchronisation uses it). The caller compares the content of the password file.
    #[must_use]
    pub fn is_satisfied_by(&self, running: &Conninfo, version: PgVersion) -> bool {
        let value = |conninfo: &Conninfo, key: &str| {
            let default = DEFAULTS.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
            conninfo.get(key).or(default).map(str::to_owned)
        };
        let relevant = |key: &&String| key.as_str() != "dbname" || version.at_least(17);
        self.0
            .keys()
            .filter(relevant)
            .chain(
                running
                    .0
                    .keys()
                    .filter(|key| DEFAULTS.iter().any(|(k, _)| k == key)),
            )
            .all(|key| value(self, key) == value(running, key))
    }
}

impl fmt::Display for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for key in KEYS {
            let Some(value) = self.get(key) else { continue };
            write!(f, "{separator}{key}=")?;
            separator = " ";
            for c in value.chars() {
                if matches!(c, '\'' | '\\' | ' ') {
                    f.write_str("\\")?;
                }
                write!(f, "{c}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Conninfo {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.iter().filter(|(key, _)| !key.contains("password"));
        f.debug_map().entries(shown).finish()
    }
}

fn is_supported(key: &str, version: PgVersion) -> bool {
    SINCE
        .iter()
        .all(|(k, since)| *k != key || version.at_least(*since))
}

/// What `primary_conninfo` is made of, besides the server to follow.
#[derive(Debug, Clone, Copy)]
pub struct PrimaryConninfo<'a> {
    /// Replication credentials.
    pub credentials: &'a Credentials,
    /// This member's name.
    pub application_name: &'a str,
    /// `postgresql.database`, for addresses without a database.
    pub database: &'a str,
    /// `postgresql.krbsrvname`.
    pub krbsrvname: Option<&'a str>,
    /// Path of the password file (10+).
    pub passfile: &'a str,
    /// Data directory's major.
    pub version: PgVersion,
    /// The remote host is a list and a slot is used on it: connect to the one that takes writes (10+).
    pub read_write: bool,
}

/// `primary_conninfo` for following `upstream`, and the content of the password file it needs.
#[must_use]
pub fn primary_conninfo(
    upstream: &Upstream,
    parts: &PrimaryConninfo<'_>,
) -> (Conninfo, Option<String>) {
    let version = parts.version;
    let mut conninfo = Conninfo::new(upstream, parts.credentials, parts.database, version);
    conninfo.set("application_name", parts.application_name);
    for (key, value) in DEFAULTS {
        if conninfo.get(key).is_none() && is_supported(key, version) {
            conninfo.set(key, value);
        }
    }
    conninfo.set("krbsrvname", parts.krbsrvname.unwrap_or_default());
    if parts.read_write && is_supported("target_session_attrs", version) {
        conninfo.set("target_session_attrs", "read-write");
    }
    let password = parts
        .credentials
        .password
        .as_deref()
        .filter(|password| !password.is_empty());
    let Some(password) = password else {
        return (conninfo, None);
    };
    if !is_supported("passfile", version) {
        return (conninfo.with("password", password), None);
    }
    let user = parts.credentials.username.as_deref().unwrap_or_default();
    let passwords = super::render::pgpass(&upstream.host, &upstream.port, user, password);
    (conninfo.with("passfile", parts.passfile), Some(passwords))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials() -> Credentials {
        Credentials {
            username: Some("rep".into()),
            password: Some("it's \\ secret".into()),
            ..Credentials::default()
        }
    }

    fn parts(credentials: &Credentials, version: u32) -> PrimaryConninfo<'_> {
        PrimaryConninfo {
            credentials,
            application_name: "node 1",
            database: "postgres",
            krbsrvname: None,
            passfile: "/home/pg/pgpass",
            version: PgVersion(version),
            read_write: false,
        }
    }

    #[test]
    fn member_urls_are_read_with_ipv6_and_several_hosts() {
        let read = |url: &str| {
            Upstream::from_url(url).map(|u| (u.host, u.port, u.dbname.unwrap_or_default()))
        };
        let ok = |h: &str, p: &str, d: &str| Ok((h.to_owned(), p.to_owned(), d.to_owned()));
        assert_eq!(
            read("postgres://10.0.0.1:5433/postgres"),
            ok("10.0.0.1", "5433", "postgres")
        );
        assert_eq!(read("postgres://u:p%40@host/db"), ok("host", "", "db"));
        assert_eq!(
            read("postgresql://[::1]:5432/a%20b?x=y"),
            ok("::1", "5432", "a b")
        );
        assert_eq!(read("postgres://[fe80::1]"), ok("fe80::1", "", ""));
        assert_eq!(read("postgres://a:1,b:2/x"), ok("a,b", "1,2", "x"));
        assert_eq!(read("postgres://a:1,b:1/x"), ok("a,b", "1", "x"));
        for bad in [
            "http://a",
            "postgres://",
            "postgres://a:x",
            "postgres://[::1",
            "postgres://a,",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn primary_conninfo_fits_the_version() {
        let upstream = Upstream::from_url("postgres://10.0.0.1:5432/postgres").unwrap();
        let credentials = credentials();
        let text = |version| {
            let (conninfo, passwords) = primary_conninfo(&upstream, &parts(&credentials, version));
            (conninfo.to_string(), passwords.is_some())
        };
        assert_eq!(
            text(170_000),
            (
                "dbname=postgres user=rep passfile=/home/pg/pgpass host=10.0.0.1 port=5432 sslmode=prefer application_name=node\\ 1 \
                 gssencmode=prefer channel_binding=prefer sslnegotiation=postgres"
                    .into(),
                true
            )
        );
        assert_eq!(
            text(90_600),
            (
                "dbname=postgres user=rep password=it\\'s\\ \\\\\\ secret host=10.0.0.1 port=5432 sslmode=prefer application_name=node\\ 1".into(),
                false
            )
        );
    }

    #[test]
    fn what_is_written_can_be_read_back() {
        let upstream = Upstream {
            host: "a,b".into(),
            port: "1,2".into(),
            dbname: Some("it's a \\ db".into()),
        };
        let conninfo = Conninfo::new(&upstream, &credentials(), "x", PgVersion(150_000))
            .with("application_name", "ä b");
        assert_eq!(Conninfo::parse(&conninfo.to_string()).unwrap(), conninfo);
    }

    #[test]
    fn libpqs_own_spellings_are_read() {
        let conninfo = Conninfo::parse(" host = 'a b' port=5 user='it''' dbname='x\\'y' empty='' ");
        assert!(conninfo.is_err(), "two quoted strings in a row have no key");
        let conninfo = Conninfo::parse(" host = 'a b' port=5  dbname='x\\'y' empty=''").unwrap();
        assert_eq!(conninfo.get("host"), Some("a b"));
        assert_eq!(conninfo.get("port"), Some("5"));
        assert_eq!(conninfo.get("dbname"), Some("x'y"));
        assert_eq!(conninfo.get("empty"), Some(""));
        assert!(Conninfo::parse("host='a").is_err());
        assert!(Conninfo::parse("host").is_err());
    }

    #[test]
    fn defaults_are_equal_to_absence() {
        let wanted =
            Conninfo::parse("dbname=a user=rep host=h port=5432 sslmode=prefer gssencmode=prefer")
                .unwrap();
        let satisfied = |running: &str, version| {
            wanted.is_satisfied_by(&Conninfo::parse(running).unwrap(), PgVersion(version))
        };
        assert!(satisfied(
            "user=rep host=h port=5432 dbname=replication options='-c x'",
            160_000
        ));
        assert!(!satisfied(
            "user=rep host=h port=5432 dbname=replication",
            170_000
        ));
        assert!(!satisfied(
            "user=rep host=h port=5432 sslmode=require",
            160_000
        ));
        assert!(!satisfied("user=rep host=h", 160_000));
        assert!(!satisfied(
            "user=rep host=h port=5432 channel_binding=require",
            160_000
        ));
    }

    #[test]
    fn debugging_shows_no_password() {
        let conninfo = Conninfo::default()
            .with("password", "hidden")
            .with("host", "h");
        assert_eq!(format!("{conninfo:?}"), r#"{"host": "h"}"#);
    }
}
