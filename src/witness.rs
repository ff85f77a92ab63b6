//! `howdah raft-controller`: a node of the embedded store without PostgreSQL, so that two members and a witness have a majority.

use std::path::Path;

use crate::config::{Config, Environment};

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// A configuration that cannot be used (then the error is [`crate::config::Faults`]), or a node that cannot start.
#[cfg(feature = "raft")]
pub fn main(path: Option<&Path>, environment: &dyn Environment) -> anyhow::Result<()> {
    use crate::config::{DcsSection, Fault, Faults, Purpose};
    use crate::dcs::raft;
    use tokio::signal::unix::{SignalKind, signal};

    let loaded = Config::load_for(Purpose::Client, path, environment)?;
    let DcsSection::Raft(section) = &loaded.config.dcs else {
        anyhow::bail!(
            "raft-controller needs a raft section (PATRONI_RAFT_SELF_ADDR, PATRONI_RAFT_PARTNER_ADDRS); {} is configured",
            loaded.config.dcs.name()
        );
    };
    if section.partner_addrs.is_empty() {
        return Err(Faults(vec![Fault::new(
            "PATRONI_RAFT_PARTNER_ADDRS",
            "is required: the addresses of the members that this voter votes with",
        )])
        .into());
    }
    let _log =
        crate::telemetry::install(&crate::telemetry::Settings::from_config(&loaded.config.log))?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let settings = raft::Settings::from_section(section, "");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(async {
        let (mut terminate, mut interrupt) = (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        );
        let shutdown = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        raft::witness(settings, shutdown).await
    });
    runtime.shutdown_background();
    result
}

/// This build has no embedded store.
///
/// # Errors
/// Always.
#[cfg(not(feature = "raft"))]
pub fn main(_path: Option<&Path>, _environment: &dyn Environment) -> anyhow::Result<()> {
    anyhow::bail!("this build has no embedded store (feature `raft`)")
}

#[cfg(all(test, feature = "raft"))]
mod tests {
    use super::*;
    use crate::config::{FakeEnvironment, Faults};

    #[test]
    fn a_voter_needs_others() {
        let environment = FakeEnvironment::new(&[("PATRONI_RAFT_SELF_ADDR", "127.0.0.1:1")]);
        let error = main(None, &environment).unwrap_err();
        let faults = error.downcast_ref::<Faults>().unwrap();
        assert_eq!(faults.0[0].name, "PATRONI_RAFT_PARTNER_ADDRS");
    }
}
