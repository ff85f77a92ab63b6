//! Where ctl's settings come from (spec/ctl.md §1): a file, the daemon's environment, `-d`.
//!
//! ctl needs a store and REST settings, and a scope for most commands; what only a member needs is not asked for.

use std::path::PathBuf;

use crate::config::{Config, Environment, FakeEnvironment, Purpose};

use super::{Failure, Globals, error};

/// Scheme, default port and the variable of its address, in the order in which a bare port is looked up.
const STORES: [(&str, u16, &str); 5] = [
    ("zookeeper", 2181, "PATRONI_ZOOKEEPER_HOSTS"),
    ("exhibitor", 8181, "PATRONI_EXHIBITOR_HOSTS"),
    ("consul", 8500, "PATRONI_CONSUL_HOST"),
    ("etcd", 2379, "PATRONI_ETCD_HOST"),
    ("etcd3", 2379, "PATRONI_ETCD3_HOST"),
];

/// The configuration for one cluster.
pub(super) fn load(
    globals: &Globals,
    cluster: Option<&str>,
    environment: &dyn Environment,
) -> Result<Config, Failure> {
    let path = config_path(globals, environment)?;
    let mut config = Config::load_for(Purpose::Client, path.as_deref(), environment)
        .map_err(|faults| Failure::Error(faults.to_string()))?
        .config;
    if let Some(cluster) = cluster {
        config.scope = cluster.to_owned();
    }
    if let Some(url) = &globals.dcs_url {
        let (dcs, namespace) = parse_dcs_url(url)?;
        config.dcs = dcs;
        if let Some(namespace) = namespace {
            config.namespace = namespace;
        }
    }
    Ok(config)
}

fn config_path(
    globals: &Globals,
    environment: &dyn Environment,
) -> Result<Option<PathBuf>, Failure> {
    if let Some(path) = &globals.config_file {
        let path = PathBuf::from(path);
        if !path.exists() {
            return error(format!(
                "Provided config file {} not existing or no read rights. Check the -c/--config-file parameter",
                path.display()
            ));
        }
        return Ok(Some(path));
    }
    let variables = environment.variables();
    if variables.contains_key("PATRONI_CONFIGURATION") {
        return Ok(None);
    }
    let base = match (variables.get("XDG_CONFIG_HOME"), variables.get("HOME")) {
        (Some(base), _) if !base.is_empty() => PathBuf::from(base),
        (_, Some(home)) => PathBuf::from(home).join(".config"),
        _ => return Ok(None),
    };
    let default = base.join("patroni/patronictl.yaml");
    Ok(default.exists().then_some(default))
}

/// `[scheme://][host][:port][/namespace]` (spec/ctl.md §1.2).
fn parse_dcs_url(url: &str) -> Result<(crate::config::DcsSection, Option<String>), Failure> {
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (Some(scheme), rest),
        None => (None, url),
    };
    let (authority, path) = rest
        .split_once('/')
        .map_or((rest, ""), |(authority, path)| (authority, path));
    let (host, port) = match crate::peers::address_of(authority) {
        Some((host, port)) => (host, port),
        None if authority.is_empty() => (String::new(), None),
        None => return error(format!("{url} is not a DCS URL")),
    };
    let store = match scheme {
        Some(scheme) => STORES.iter().find(|(name, _, _)| *name == scheme),
        None => STORES
            .iter()
            .find(|(_, default, _)| Some(*default) == port)
            .or(Some(&STORES[3])),
    };
    let Some((name, default_port, variable)) = store else {
        return error(format!("Unknown dcs scheme: {}", scheme.unwrap_or("")));
    };
    let host = if host.is_empty() {
        "localhost".to_owned()
    } else {
        host
    };
    let port = port.unwrap_or(*default_port);
    let bracketed = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.clone()
    };
    let address = match *name {
        "zookeeper" => format!("'{bracketed}:{port}'"),
        "exhibitor" => format!("'{host}'"),
        _ => format!("{bracketed}:{port}"),
    };
    let mut variables = vec![(*variable, address)];
    if *name == "exhibitor" {
        variables.push(("PATRONI_EXHIBITOR_PORT", port.to_string()));
    }
    let pairs: Vec<(&str, &str)> = variables
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let loaded = Config::load_for(Purpose::Client, None, &FakeEnvironment::new(&pairs))
        .map_err(|faults| Failure::Error(faults.to_string()))?;
    let namespace = (!path.is_empty()).then(|| format!("/{path}"));
    Ok((loaded.config.dcs, namespace))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DcsSection;

    fn globals() -> Globals {
        Globals {
            config_file: None,
            dcs_url: None,
            insecure: false,
        }
    }

    #[test]
    fn urls_of_stores() {
        let url = |url: &str| {
            parse_dcs_url(url).map(|(dcs, namespace)| (dcs, namespace.unwrap_or_default()))
        };
        let (dcs, namespace) = url("etcd3://10.0.0.1:1234/prod").unwrap();
        assert_eq!((dcs.name(), namespace.as_str()), ("etcd3", "/prod"));
        let DcsSection::Etcd3(etcd) = dcs else {
            panic!()
        };
        assert_eq!(etcd.endpoints, ["http://10.0.0.1:1234"]);
        assert_eq!(url("localhost").unwrap().0.name(), "etcd");
        assert_eq!(url("localhost:8500").unwrap().0.name(), "consul");
        assert_eq!(url(":2181").unwrap().0.name(), "zookeeper");
        assert!(
            matches!(url("ldap://x"), Err(Failure::Error(text)) if text == "Unknown dcs scheme: ldap")
        );
    }

    #[test]
    fn a_file_for_ctl_alone_is_enough() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ctl.yml");
        std::fs::write(
            &path,
            "scope: demo\netcd3:\n  host: 10.0.0.1:2379\nctl:\n  insecure: true\n",
        )
        .unwrap();
        let globals = Globals {
            config_file: Some(path.to_str().unwrap().to_owned()),
            ..globals()
        };
        let config = load(&globals, None, &crate::config::ProcessEnvironment).unwrap();
        assert_eq!(
            (
                config.scope.as_str(),
                config.dcs.name(),
                config.ctl.insecure
            ),
            ("demo", "etcd3", true)
        );
        let config = load(&globals, Some("other"), &crate::config::ProcessEnvironment).unwrap();
        assert_eq!(config.scope, "other");
    }

    #[test]
    fn the_environment_of_a_node_is_enough() {
        let environment = FakeEnvironment::new(&[
            ("PATRONI_SCOPE", "demo"),
            ("PATRONI_ETCD3_HOSTS", "a:2379,b:2379"),
        ]);
        let config = load(&globals(), None, &environment).unwrap();
        assert_eq!(
            (config.scope.as_str(), config.dcs.name()),
            ("demo", "etcd3")
        );
    }

    #[test]
    fn a_missing_file_is_named() {
        let globals = Globals {
            config_file: Some("/nonexistent/x.yml".to_owned()),
            ..globals()
        };
        let failed = load(&globals, None, &FakeEnvironment::default());
        assert!(
            matches!(failed, Err(Failure::Error(text)) if text.starts_with("Provided config file /nonexistent/x.yml not existing"))
        );
    }
}
