//! Asks other members for their status, each no longer than the core's patience with it. The seam for a live channel between peers.

use std::time::Duration;

use tokio::task::JoinSet;

use crate::clock;
use crate::ha::decision::Asked;
use crate::ha::observation::Peer;
use crate::peers::{Client, Disagreement};
use crate::types::{Lsn, MemberName};

/// The way to the other members.
pub(super) struct Peers {
    client: Client,
}

impl Peers {
    pub(super) fn new(client: Client) -> Self {
        Peers { client }
    }

    /// Asks members in failsafe mode whether they agree, all in parallel, each a second time if the first attempt brings no answer
    /// (spec/ha.md §14). A yes may tell the member's position.
    pub(super) async fn agree(
        &self,
        whom: &[Asked],
        body: &str,
        limit: Duration,
        attempt: Duration,
    ) -> Vec<(MemberName, Result<Option<Lsn>, String>)> {
        let attempt = attempt.min(limit / 2);
        let mut calls = JoinSet::new();
        for asked in whom {
            let (client, name, api_url) = (
                self.client.clone(),
                asked.name.clone(),
                asked.api_url.clone(),
            );
            let body = body.to_owned();
            calls.spawn(async move {
                let mut answer = client.agrees(&api_url, &body, attempt).await;
                if let Err(Disagreement::Unreachable(_)) = answer {
                    answer = client.agrees(&api_url, &body, attempt).await;
                }
                (
                    name,
                    answer.map_err(|disagreement| disagreement.to_string()),
                )
            });
        }
        let mut answers = Vec::new();
        while let Some(answer) = calls.join_next().await {
            answers.extend(answer);
        }
        for asked in whom {
            if !answers.iter().any(|(name, _)| *name == asked.name) {
                answers.push((asked.name.clone(), Err("asking it failed".to_owned())));
            }
        }
        answers
    }

    /// One answer per asked member, in the order asked. A member that stays silent for its patience counts as unreachable.
    pub(super) async fn ask(&self, whom: &[Asked], longest: Duration) -> Vec<Peer> {
        let mut answers: Vec<Peer> = whom
            .iter()
            .map(|asked| Peer {
                name: asked.name.clone(),
                answer: None,
            })
            .collect();
        let mut open: Vec<bool> = vec![true; whom.len()];
        let began = clock::now();
        let wanted = whom
            .iter()
            .map(|asked| (asked.name.clone(), asked.api_url.clone()));
        let mut replies = self.client.poll(wanted, longest);
        loop {
            let waited = clock::now().since(began);
            // The longest patience among those who have not answered yet decides how long to go on.
            let patience = whom
                .iter()
                .zip(&open)
                .filter(|(_, open)| **open)
                .map(|(asked, _)| asked.patience.min(longest))
                .max();
            let Some(left) = patience
                .and_then(|patience| patience.checked_sub(waited))
                .filter(|left| !left.is_zero())
            else {
                return answers;
            };
            match tokio::time::timeout(left, replies.recv()).await {
                Ok(Some(peer)) => {
                    if let Some(at) = whom.iter().position(|asked| asked.name == peer.name) {
                        open[at] = false;
                        answers[at] = peer;
                    }
                }
                Ok(None) | Err(_) => return answers,
            }
        }
    }
}
