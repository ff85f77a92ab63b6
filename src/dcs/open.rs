//! The registry: which store a configuration names, and how it is opened. Adding a store touches its own file and this one.

use anyhow::bail;

use super::{Identity, Store};
use crate::config::{Config, DcsSection};

/// The sections of the configuration that this build has a store for.
const STORES: &[&str] = &[
    #[cfg(feature = "consul")]
    "consul",
    #[cfg(feature = "etcd")]
    "etcd",
    #[cfg(feature = "etcd3")]
    "etcd3",
    #[cfg(feature = "zookeeper")]
    "exhibitor",
    #[cfg(feature = "kubernetes")]
    "kubernetes",
    #[cfg(feature = "raft")]
    "raft",
    #[cfg(feature = "zookeeper")]
    "zookeeper",
];

/// Opens the configured store for a member. Does not wait until it answers.
///
/// # Errors
/// Settings that can never work, or a store this binary was built without.
pub async fn open(config: &Config, identity: Identity) -> anyhow::Result<Store> {
    match &config.dcs {
        // This member may be a node of the store itself.
        #[cfg(feature = "raft")]
        DcsSection::Raft(section) => {
            let settings = super::raft::Settings::from_section(section, &config.base_path());
            super::raft::open(settings, &identity).await
        }
        _ => connect(config, &identity),
    }
}

/// Opens the configured store for the command line, which is no member: no session, no node of its own.
///
/// # Errors
/// See [`open`].
pub fn open_client(config: &Config, identity: &Identity) -> anyhow::Result<Store> {
    match &config.dcs {
        #[cfg(feature = "raft")]
        DcsSection::Raft(section) => {
            let mut addresses = section.partner_addrs.clone();
            addresses.insert(0, section.self_addr.clone());
            let password = section.password.clone();
            Ok(super::raft::client(addresses, password, identity))
        }
        _ => connect(config, identity),
    }
}

/// The stores that are servers elsewhere.
fn connect(config: &Config, identity: &Identity) -> anyhow::Result<Store> {
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
        #[cfg(feature = "kubernetes")]
        DcsSection::Kubernetes(section) => Ok(super::kubernetes::connect(
            identity,
            &kubernetes_settings(section, &config.scope)?,
        )?),
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
        other => {
            // A build without any store has no use for it.
            let _ = identity;
            bail!(
                "the store {:?} is not supported by this build, which has {}",
                other.name(),
                STORES.join(", ")
            )
        }
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

#[cfg(feature = "kubernetes")]
fn kubernetes_settings(
    section: &crate::config::Kubernetes,
    scope: &str,
) -> anyhow::Result<super::kubernetes::Settings> {
    let access = super::kubernetes::access::Access::find(
        &crate::config::ProcessEnvironment,
        section.cacert.as_deref(),
        &section.context,
    )?;
    Ok(super::kubernetes::Settings {
        access,
        namespace: section.namespace.clone(),
        scope: scope.to_owned(),
        use_endpoints: section.use_endpoints,
        labels: section.labels.clone(),
        scope_label: section.scope_label.clone(),
        role_label: section.role_label.clone(),
        leader_label_value: section.leader_label_value.clone(),
        follower_label_value: section.follower_label_value.clone(),
        standby_leader_label_value: section.standby_leader_label_value.clone(),
        tmp_role_label: section.tmp_role_label.clone(),
        bootstrap_labels: section.bootstrap_labels.clone(),
        pod_ip: section.pod_ip.clone(),
        ports: section
            .ports
            .iter()
            .map(|port| serde_json::Value::Object(port.clone()))
            .collect(),
        bypass_api_service: section.bypass_api_service,
        retriable_http_codes: section.retriable_http_codes.clone(),
    })
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
        key_password: section
            .key_password
            .as_ref()
            .map(|secret| secret.expose().to_owned()),
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
