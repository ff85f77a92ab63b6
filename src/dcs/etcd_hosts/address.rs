//! From the hosts that people configure to the URLs of nodes. Pure text, no lookup.

use anyhow::{Context, bail, ensure};
use hyper::Uri;

/// The port of etcd's client API.
const PORT: u16 = 2379;

/// One URL per host: scheme and port filled in, credentials and path left out.
///
/// # Errors
/// No host at all, or one that is no address.
pub(crate) fn urls(hosts: &[String], protocol: &str) -> anyhow::Result<Vec<String>> {
    let scheme = if protocol.is_empty() {
        "http"
    } else {
        protocol
    };
    ensure!(
        matches!(scheme, "http" | "https"),
        "etcd: protocol must be http or https, not {scheme:?}"
    );
    let urls = hosts
        .iter()
        .flat_map(|host| host.split(','))
        .map(str::trim)
        .filter(|host| !host.is_empty())
        .map(|host| url(host, scheme).with_context(|| format!("etcd: {host:?} is not an address")))
        .collect::<anyhow::Result<Vec<_>>>()?;
    ensure!(!urls.is_empty(), "etcd: no host is configured");
    Ok(urls)
}

fn url(host: &str, scheme: &str) -> anyhow::Result<String> {
    // A bare IPv6 address has no port and needs its brackets.
    let bracketed = if host.parse::<std::net::Ipv6Addr>().is_ok() {
        format!("[{host}]")
    } else {
        host.to_owned()
    };
    let full = if host.contains("://") {
        bracketed
    } else {
        format!("{scheme}://{bracketed}")
    };
    let uri: Uri = full.parse()?;
    let scheme = uri.scheme_str().context("no scheme")?;
    if !matches!(scheme, "http" | "https") {
        bail!("unknown scheme {scheme}");
    }
    let host = uri
        .host()
        .filter(|host| !host.is_empty())
        .context("no host")?;
    Ok(format!(
        "{scheme}://{host}:{}",
        uri.port_u16().unwrap_or(PORT)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(hosts: &[&str]) -> Vec<String> {
        let hosts: Vec<_> = hosts.iter().map(|host| (*host).to_owned()).collect();
        urls(&hosts, "").unwrap()
    }

    #[test]
    fn every_spelling_of_a_host() {
        assert_eq!(all(&["10.0.0.1"]), ["http://10.0.0.1:2379"]);
        assert_eq!(all(&["etcd:4001"]), ["http://etcd:4001"]);
        assert_eq!(
            all(&["a:1, b:2 ,", "c"]),
            ["http://a:1", "http://b:2", "http://c:2379"]
        );
        assert_eq!(
            all(&["::1", "[::2]:5"]),
            ["http://[::1]:2379", "http://[::2]:5"]
        );
        assert_eq!(
            all(&["https://user:secret@etcd/path"]),
            ["https://etcd:2379"]
        );
        assert_eq!(
            urls(&["a".to_owned()], "https").unwrap(),
            ["https://a:2379"]
        );
    }

    #[test]
    fn nonsense_is_refused_with_its_name() {
        for hosts in [
            vec![],
            vec![" , ".to_owned()],
            vec!["a b".to_owned()],
            vec!["ftp://x".to_owned()],
        ] {
            assert!(urls(&hosts, "").is_err(), "{hosts:?}");
        }
        let error = urls(&["a b".to_owned()], "").unwrap_err();
        assert!(format!("{error:#}").contains("a b"), "{error:#}");
        assert!(urls(&["a".to_owned()], "gopher").is_err());
    }
}
