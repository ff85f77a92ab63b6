//! The registry: which store a configuration names, and how it is opened. Adding a store touches its own file and this one.

use anyhow::bail;

use super::{Identity, Store};
use crate::config::{Config, DcsSection};

/// Opens the configured store for a member. Does not wait until it answers.
///
/// # Errors
/// Settings that can never work, or a store this binary was built without.
pub async fn open(config: &Config, identity: Identity) -> anyhow::Result<Store> {
    match &config.dcs {
        #[cfg(feature = "consul")]
        DcsSection::Consul(section) => Ok(super::consul::connect(
            &identity,
            &consul_settings(section, &config.scope),
        )?),
        #[cfg(feature = "etcd")]
        DcsSection::Etcd(section) => Ok(super::etcd::connect(&identity, &etcd_settings(section))?),
        #[cfg(feature = "etcd3")]
        DcsSection::Etcd3(section) => {
            Ok(super::etcd3::connect(&identity, &etcd3_settings(section))?)
        }
        #[cfg(feature = "raft")]
        DcsSection::Raft(section) => {
            let settings = super::raft::Settings::from_section(section, &config.base_path());
            super::raft::open(settings, &identity).await
        }
        #[cfg(feature = "zookeeper")]
        DcsSection::Zookeeper(section) => Ok(super::zookeeper::connect(
            &identity,
            &zookeeper_settings(section),
        )?),
        #[cfg(feature = "zookeeper")]
        DcsSection::Exhibitor(section) => Ok(super::zookeeper::exhibitor::connect(
            &identity,
            &exhibitor_settings(section),
        )?),
        other => bail!(
            "the store {:?} is not supported by this build; use consul, etcd3 or raft",
            other.name()
        ),
    }
}

/// Opens the configured store for the command line, which is no member: no session, no node of its own.
///
/// # Errors
/// See [`open`].
pub fn open_client(config: &Config, identity: &Identity) -> anyhow::Result<Store> {
    match &config.dcs {
        #[cfg(feature = "consul")]
        DcsSection::Consul(section) => Ok(super::consul::connect(
            identity,
            &consul_settings(section, &config.scope),
        )?),
        #[cfg(feature = "etcd")]
        DcsSection::Etcd(section) => Ok(super::etcd::connect(identity, &etcd_settings(section))?),
        #[cfg(feature = "etcd3")]
        DcsSection::Etcd3(section) => {
            Ok(super::etcd3::connect(identity, &etcd3_settings(section))?)
        }
        #[cfg(feature = "raft")]
        DcsSection::Raft(section) => {
            let mut addresses = section.partner_addrs.clone();
            addresses.insert(0, section.self_addr.clone());
            Ok(super::raft::client(
                addresses,
                section.password.clone(),
                identity,
            ))
        }
        #[cfg(feature = "zookeeper")]
        DcsSection::Zookeeper(section) => Ok(super::zookeeper::connect(
            identity,
            &zookeeper_settings(section),
        )?),
        #[cfg(feature = "zookeeper")]
        DcsSection::Exhibitor(section) => Ok(super::zookeeper::exhibitor::connect(
            identity,
            &exhibitor_settings(section),
        )?),
        other => bail!(
            "the store {:?} is not supported by this build; use consul, etcd3 or raft",
            other.name()
        ),
    }
}

#[cfg(feature = "etcd")]
fn etcd_settings(section: &crate::config::Etcd) -> super::etcd::Settings {
    super::etcd::Settings {
        hosts: section.endpoints.clone(),
        srv: section.srv.clone(),
        srv_suffix: section.srv_suffix.clone(),
        protocol: if section.https { "https" } else { "http" }.to_owned(),
        username: section.username.clone(),
        password: section
            .password
            .as_ref()
            .map(|secret| secret.expose().to_owned()),
        cacert: section.tls.cacert.clone(),
        cert: section.tls.cert.clone(),
        key: section.tls.key.clone(),
        use_proxies: section.use_proxies,
    }
}

#[cfg(feature = "etcd3")]
fn etcd3_settings(section: &crate::config::Etcd) -> super::etcd3::Settings {
    super::etcd3::Settings {
        hosts: section.endpoints.clone(),
        srv: section.srv.clone(),
        srv_suffix: section.srv_suffix.clone(),
        protocol: if section.https { "https" } else { "http" }.to_owned(),
        username: section.username.clone(),
        password: section
            .password
            .as_ref()
            .map(|secret| secret.expose().to_owned()),
        cacert: section.tls.cacert.clone(),
        cert: section.tls.cert.clone(),
        key: section.tls.key.clone(),
        use_proxies: section.use_proxies,
    }
}

#[cfg(feature = "consul")]
fn consul_settings(section: &crate::config::Consul, scope: &str) -> super::consul::Settings {
    super::consul::Settings {
        url: section.url.clone(),
        token: section
            .token
            .as_ref()
            .map(|token| token.expose().to_owned()),
        verify: section.verify,
        cacert: section.tls.cacert.clone(),
        cert: section.tls.cert.clone(),
        key: section.tls.key.clone(),
        dc: section.dc.clone(),
        consistency: section.consistency.clone(),
        checks: section.checks.clone(),
        scope: scope.to_owned(),
        service: section
            .register_service
            .then(|| super::consul::ServiceSettings {
                tags: section.service_tags.clone(),
                check_interval: section.service_check_interval.clone(),
                check_tls_server_name: section.service_check_tls_server_name.clone(),
            }),
    }
}

#[cfg(feature = "zookeeper")]
fn zookeeper_settings(section: &crate::config::Zookeeper) -> super::zookeeper::Settings {
    let auth = section.auth_data.iter();
    super::zookeeper::Settings {
        hosts: section.hosts.clone(),
        use_ssl: section.use_ssl,
        verify: section.verify,
        cacert: section.tls.cacert.clone(),
        cert: section.tls.cert.clone(),
        key: section.tls.key.clone(),
        set_acls: section.set_acls.clone().into_iter().collect(),
        auth_data: auth
            .map(|(scheme, credential)| (scheme.clone(), credential.expose().to_owned()))
            .collect(),
    }
}

#[cfg(feature = "zookeeper")]
fn exhibitor_settings(section: &crate::config::Exhibitor) -> super::zookeeper::exhibitor::Settings {
    super::zookeeper::exhibitor::Settings {
        hosts: section.hosts.clone(),
        port: section.port,
        poll_interval: section.poll_interval,
        zookeeper: zookeeper_settings(&section.zookeeper),
    }
}
