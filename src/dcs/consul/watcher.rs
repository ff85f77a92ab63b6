//! Keeps the copy fed: one long request after the other.

use std::sync::Arc;
use std::time::Duration;

use super::agent::{Agent, Failure};
use crate::clock;
use crate::dcs::copy::{Copy, heartbeat};
use crate::dcs::keys::Keys;

/// Runs for as long as the store's handle lives.
pub(super) async fn run(agent: Arc<Agent>, copy: Arc<Copy>, keys: Keys) {
    let mut restarted = false;
    loop {
        if let Err(failure) = follow(&agent, &copy, &keys, restarted).await {
            let error = agent.error(failure);
            tracing::debug!(%error, "the watch cannot be kept up, starting it again");
        }
        copy.set_alive(false);
        restarted = true;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// From a first read to the first failure.
async fn follow(agent: &Agent, copy: &Copy, keys: &Keys, restarted: bool) -> Result<(), Failure> {
    let before = copy.index();
    let (contents, mut index) = agent.list(agent.deadline(), keys.prefix(), None).await?;
    copy.replace(contents, index, index < before);
    copy.set_alive(true);
    if restarted {
        copy.announce();
    }
    loop {
        let wait = heartbeat(agent.timings().retry_timeout);
        // Consul adds up to a sixteenth, so that not all clients come back at once.
        let deadline = clock::now() + wait + wait / 16 + Duration::from_millis(500);
        let (contents, next) = agent
            .list(deadline, keys.prefix(), Some((index, wait)))
            .await?;
        // An index that went back: the servers were restored from a backup.
        copy.replace(contents, next, next < index);
        copy.set_alive(true);
        index = next;
    }
}
