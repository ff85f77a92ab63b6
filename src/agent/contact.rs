//! Listens for the other members while this node leads: is anybody there? Cheap as long as somebody is: one request a second to one of
//! them, in turn, over a kept connection to an endpoint that runs no SQL.
//!
//! It only listens; what silence means is decided in the core (`ha::isolation`).

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;

use crate::clock;
use crate::peers::Client;
use crate::peers::kept::Kept;
use crate::types::{MemberName, Moment};

/// The time between two questions.
const BEAT: Duration = Duration::from_secs(1);
/// The first one asked has so long before all the others are asked, too.
const ALONE: Duration = Duration::from_millis(300);
/// Nobody has answered within this time: silence.
const ANSWER: Duration = Duration::from_millis(800);

/// What was heard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Round {
    /// When the last question that was answered had been asked.
    heard: Option<Moment>,
    /// Nobody answered the last question.
    silent: bool,
}

/// The listening task's handle; it ends with it.
pub(super) struct Contact {
    whom: watch::Sender<Vec<(MemberName, String)>>,
    round: watch::Receiver<Round>,
}

impl Contact {
    pub(super) fn new(client: Client) -> Self {
        let (whom, asked) = watch::channel(Vec::new());
        let (sender, round) = watch::channel(Round::default());
        tokio::spawn(listen(client, asked, sender));
        Contact { whom, round }
    }

    /// Whom to listen to from now on; nobody: rest.
    pub(super) fn listen_to(&self, whom: Vec<(MemberName, String)>) {
        self.whom.send_if_modified(|now| {
            let changed = *now != whom;
            *now = whom;
            changed
        });
    }

    /// When somebody was last heard.
    pub(super) fn heard(&self) -> Option<Moment> {
        self.round.borrow().heard
    }

    /// Nobody answers.
    pub(super) fn is_silent(&self) -> bool {
        self.round.borrow().silent
    }

    /// Resolves when silence begins.
    pub(super) async fn fell_silent(&mut self) {
        loop {
            if self.round.changed().await.is_err() {
                return std::future::pending().await;
            }
            if self.round.borrow_and_update().silent {
                return;
            }
        }
    }

    /// Resolves while there is silence.
    pub(super) async fn silence(&self) {
        let mut round = self.round.clone();
        if round.wait_for(|round| round.silent).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

async fn listen(
    client: Client,
    mut whom: watch::Receiver<Vec<(MemberName, String)>>,
    round: watch::Sender<Round>,
) {
    let mut members: VecDeque<Kept> = VecDeque::new();
    loop {
        let Ok(others) = whom.has_changed() else {
            return;
        };
        if others || members.is_empty() {
            let now = whom.borrow_and_update().clone();
            members = now
                .iter()
                .map(|(_, api_url)| Kept::new(client.clone(), api_url, "/liveness"))
                .collect();
        }
        if members.is_empty() {
            round.send_if_modified(|round| std::mem::take(&mut round.silent));
            if whom.changed().await.is_err() {
                return;
            }
            whom.mark_changed();
            continue;
        }
        members.rotate_left(1);
        let asked = clock::now();
        let answered = tokio::select! {
            answered = is_anybody_there(members.make_contiguous()) => answered,
            changed = whom.changed() => match changed {
                Ok(()) => {
                    whom.mark_changed();
                    continue;
                }
                Err(_) => return,
            },
        };
        round.send_if_modified(|round| {
            let was = *round;
            if answered {
                round.heard = Some(asked);
            }
            round.silent = !answered;
            // Nobody waits to hear that all is well.
            was.silent != round.silent
        });
        let rest = BEAT.saturating_sub(clock::now().since(asked));
        tokio::select! {
            () = tokio::time::sleep(rest) => {}
            changed = whom.changed() => match changed {
                Ok(()) => whom.mark_changed(),
                Err(_) => return,
            },
        }
    }
}

/// Whether one of them answers, whatever it says. The first is asked alone for a while.
async fn is_anybody_there(members: &mut [Kept]) -> bool {
    let mut calls: FuturesUnordered<_> = members
        .iter_mut()
        .enumerate()
        .map(async |(at, member)| {
            if at > 0 {
                tokio::time::sleep(ALONE).await;
            }
            member.answers(ANSWER).await
        })
        .collect();
    let anybody = async {
        while let Some(answered) = calls.next().await {
            if answered {
                return true;
            }
        }
        false
    };
    tokio::time::timeout(ANSWER, anybody).await.unwrap_or(false)
}
