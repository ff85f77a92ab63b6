//! `howdah raft-controller`: a node of the embedded store without PostgreSQL, so that two members and a witness have a majority.

use std::path::Path;

use crate::config::{Config, Environment};

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// A configuration that cannot be used (then the error is [`crate::config::Faults`]), or a node that cannot start.
#[cfg(feature = "raft")]
pub fn main(path: Option<&Path>, environment: &dyn Environment) -> anyhow::Result<()> {
    use crate::config::{DcsSection, Purpose};
    use crate::dcs::raft;
    use tokio::signal::unix::{SignalKind, signal};

    let loaded = Config::load_for(Purpose::Client, path, environment)?;
    crate::telemetry::install(&crate::telemetry::Settings::from_config(&loaded.config.log))?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let DcsSection::Raft(section) = &loaded.config.dcs else {
        anyhow::bail!(
            "raft-controller needs a raft section (PATRONI_RAFT_SELF_ADDR, PATRONI_RAFT_PARTNER_ADDRS); {} is configured",
            loaded.config.dcs.name()
        );
    };
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
