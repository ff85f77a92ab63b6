//! Who founds the cluster, who joins it, and where its nodes are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::error::{ClientWriteError, RaftError};
use openraft::{BasicNode, ChangeMembers, Raft, ServerState};
use sha2::{Digest as _, Sha256};
use tokio::time::{sleep, timeout};

use super::super::disk::{Directory, NodeFile, NodeId, TypeConfig, lock};
use super::super::transport::{Reply, Request, Stage};
use super::{ATTEMPT, KEEP_ENTRIES, Node, PAUSE, REVIVE};

/// A voter that sees no leader for that long asks whether it still is one.
const LEADERLESS: Duration = Duration::from_secs(5);

/// The id of a founding node: the same on every node that computes it.
fn founder_id(address: &str) -> NodeId {
    let digest = Sha256::digest(address.as_bytes());
    let bytes = digest.first_chunk::<8>().copied().unwrap_or_default();
    u64::from_be_bytes(bytes).max(1)
}

impl Node {
    /// An empty disk decides who it is: a founder if every configured node is there and none is part of a cluster, else a
    /// new node that asks for admission. The decision is durable before anyone hears of it.
    pub(super) async fn settle(&self, directory: &Directory) -> NodeFile {
        let address = &self.settings().self_addr;
        let founder = loop {
            let survey = self.survey().await;
            if let Some(formed) = survey.formed {
                tracing::warn!(
                    "raft: the disk of this node ({}) is empty and {formed} says that the cluster exists: joining it as a new \
                     node; it does not vote before the leader has admitted it",
                    directory.path().display()
                );
                break false;
            }
            if survey.obstacles.is_empty() {
                break true;
            }
            self.report_obstacles(&survey);
            sleep(PAUSE * 3).await;
        };
        let id = if founder {
            founder_id(address)
        } else {
            rand::random::<u64>().max(1)
        };
        let file = NodeFile {
            id,
            address: address.clone(),
            founder,
        };
        while let Err(error) = directory.write_node(&file) {
            tracing::error!("raft: {error:#}");
            sleep(REVIVE).await;
        }
        *lock(&self.who.id) = Some(id);
        *lock(&self.founder) = founder;
        // Connections made so far introduced a node without id.
        lock(&self.peers).clear();
        file
    }

    fn report_obstacles(&self, survey: &Survey) {
        let text = format!(
            "waiting for every configured node once before the cluster is formed: {}",
            survey.obstacles.join("; ")
        );
        self.troubles
            .say(&self.settings().self_addr, &text, (self.clock)());
    }

    /// Asks every partner how far it is.
    async fn survey(&self) -> Survey {
        let mut survey = Survey::default();
        let configured = self.settings().configured();
        let partners = self.settings().partners();
        let asked = partners
            .iter()
            .map(|address| self.ask(address, &Request::Status));
        let answers = futures_util::future::join_all(asked).await;
        for (address, answer) in partners.iter().zip(answers) {
            match answer {
                Ok(Reply::Status(status)) if status.stage == Stage::Formed => {
                    survey.formed.get_or_insert_with(|| address.clone());
                    survey.founding.insert(address.clone());
                }
                Ok(Reply::Status(status)) if status.configured != configured => {
                    survey.obstacles.push(format!(
                        "{address} is configured for {:?}, this node for {configured:?} (raft.self_addr and raft.partner_addrs)",
                        status.configured
                    ));
                }
                Ok(Reply::Status(status)) => {
                    if status.stage == Stage::Founding {
                        survey.founding.insert(address.clone());
                    }
                }
                Ok(Reply::Failed(text)) => survey.obstacles.push(format!("{address}: {text}")),
                Ok(_) => survey
                    .obstacles
                    .push(format!("{address}: unexpected answer")),
                Err(text) => survey.obstacles.push(text),
            }
        }
        survey
    }

    /// A founder starts the cluster once all founders have taken their places. Never returns.
    pub(super) async fn found(&self, raft: &Raft<TypeConfig>, me: &NodeFile) {
        if me.founder {
            let mut seen = BTreeSet::new();
            let partners: BTreeSet<String> = self.settings().partners().into_iter().collect();
            while !raft.is_initialized().await.unwrap_or(true) {
                let mut survey = self.survey().await;
                seen.append(&mut survey.founding);
                if partners.is_subset(&seen) {
                    let members: BTreeMap<NodeId, BasicNode> = self
                        .settings()
                        .configured()
                        .iter()
                        .map(|address| (founder_id(address), BasicNode::new(address)))
                        .collect();
                    tracing::info!(
                        "raft: forming the cluster of {:?}",
                        self.settings().configured()
                    );
                    match raft.initialize(members).await {
                        Ok(()) | Err(RaftError::APIError(_)) => break,
                        Err(RaftError::Fatal(error)) => {
                            tracing::error!("raft: {error}");
                            break;
                        }
                    }
                }
                if !survey.obstacles.is_empty() {
                    self.report_obstacles(&survey);
                }
                sleep(PAUSE).await;
            }
            self.troubles.over(&self.settings().self_addr);
        }
        std::future::pending().await
    }

    /// A node that is not in the membership, or has moved, asks to be admitted. Never returns.
    pub(super) async fn seek_admission(&self, raft: &Raft<TypeConfig>, me: &NodeFile) {
        let mut metrics = raft.server_metrics();
        let address = &self.settings().self_addr;
        let mut asked = 0;
        let mut outside = false;
        let mut leaderless = None;
        loop {
            let (formed, admitted, led, leading) = {
                let metrics = metrics.borrow_and_update();
                let membership = metrics.membership_config.membership();
                let formed = !membership.get_joint_config().is_empty();
                let admitted = formed.then(|| is_voter_at(membership, me.id, address));
                let leading = metrics.state == ServerState::Leader;
                (formed, admitted, metrics.current_leader.is_some(), leading)
            };
            let admitted = admitted.unwrap_or(me.founder);
            if admitted {
                if std::mem::take(&mut outside) {
                    tracing::info!("raft: this node has been admitted as {address} and votes");
                }
                // A disk that was replaced by another one in the meantime is not told; it only sees no leader.
                let now = (self.clock)();
                let patience = if led || !formed {
                    leaderless = None;
                    Duration::MAX
                } else {
                    now.until(*leaderless.get_or_insert(now) + LEADERLESS)
                };
                match timeout(patience, metrics.changed()).await {
                    Ok(Ok(())) => continue,
                    Ok(Err(_)) => break,
                    Err(_) => {}
                }
            } else {
                outside = true;
            }
            let reply = if leading {
                Ok(self.admit(raft, me.id, address).await)
            } else {
                let partners = self.settings().partners();
                let request = Request::Admit {
                    id: me.id,
                    address: address.clone(),
                    forwarded: false,
                };
                match partners.get(asked % partners.len().max(1)) {
                    Some(partner) => self.ask(partner, &request).await,
                    None => Err("no partner is configured".to_owned()),
                }
            };
            let trouble = match reply {
                Ok(Reply::Admitted) => None,
                Ok(Reply::Pending(text) | Reply::Failed(text)) | Err(text) => Some(text),
                Ok(_) => Some("unexpected answer".to_owned()),
            };
            if let Some(text) = trouble
                && !admitted
            {
                let text = format!("not admitted yet: {text}");
                self.troubles.say(address, &text, (self.clock)());
            }
            asked += 1;
            sleep(PAUSE * 3).await;
        }
        std::future::pending().await
    }

    /// As the leader: makes a new node a voter in the place of the one that had its address. One step per call; the new
    /// node asks again.
    pub(super) async fn admit(&self, raft: &Raft<TypeConfig>, id: NodeId, address: &str) -> Reply {
        let Ok(_busy) = self.admission.try_lock() else {
            return Reply::Pending("another membership change is under way".to_owned());
        };
        let metrics = raft.metrics().borrow().clone();
        let membership = metrics.membership_config.membership();
        let configs = membership.get_joint_config();
        let voters: BTreeSet<NodeId> = configs.last().cloned().unwrap_or_default();
        if is_voter_at(membership, id, address) {
            return Reply::Admitted;
        }
        let former: BTreeSet<NodeId> = membership
            .nodes()
            .filter(|(other, node)| **other != id && node.addr == address)
            .map(|(other, _)| *other)
            .collect();
        let step = async {
            if membership.get_node(&id).is_none() {
                let learners: BTreeSet<NodeId> = membership
                    .learner_ids()
                    .filter(|other| former.contains(other))
                    .collect();
                if !learners.is_empty() {
                    raft.change_membership(ChangeMembers::RemoveNodes(learners), false)
                        .await?;
                }
                tracing::info!(
                    "raft: {address} comes with an empty disk: adding it, without a vote until it has caught up"
                );
                raft.add_learner(id, BasicNode::new(address), false).await?;
                return Ok(Some("it is being brought up to date".to_owned()));
            }
            if membership
                .get_node(&id)
                .is_some_and(|node| node.addr != address)
            {
                tracing::info!("raft: a node has moved to {address}");
                let nodes = BTreeMap::from([(id, BasicNode::new(address))]);
                raft.change_membership(ChangeMembers::SetNodes(nodes), true)
                    .await?;
                return Ok(Some("its address has been noted".to_owned()));
            }
            let matched = metrics
                .replication
                .as_ref()
                .and_then(|replication| replication.get(&id).copied().flatten());
            let behind = metrics
                .last_log_index
                .unwrap_or(0)
                .saturating_sub(matched.map_or(0, |at| at.index));
            if matched.is_none() || behind > KEEP_ENTRIES {
                return Ok(Some(format!("it is {behind} entries behind")));
            }
            let target: BTreeSet<NodeId> = voters
                .iter()
                .filter(|other| !former.contains(other))
                .copied()
                .chain([id])
                .collect();
            tracing::info!("raft: {address} has caught up: it votes from now on");
            raft.change_membership(ChangeMembers::ReplaceAllVoters(target), false)
                .await?;
            Ok::<_, RaftError<NodeId, ClientWriteError<NodeId, BasicNode>>>(None)
        };
        match timeout(ATTEMPT, step).await {
            Ok(Ok(None)) => Reply::Admitted,
            Ok(Ok(Some(text))) => Reply::Pending(text),
            Ok(Err(error)) => Reply::Failed(error.to_string()),
            Err(_) => Reply::Failed("a majority of the present voters does not answer".to_owned()),
        }
    }
}

/// What [`Node::survey`] found.
#[derive(Default)]
struct Survey {
    /// A partner that is part of a cluster.
    formed: Option<String>,
    /// Partners that have taken their place in a formation, or are beyond it.
    founding: BTreeSet<String>,
    /// Why the cluster cannot be formed yet.
    obstacles: Vec<String>,
}

/// Whether a node is a voter, at this address, and no change of the membership is under way.
pub(super) fn is_voter_at(
    membership: &openraft::Membership<NodeId, BasicNode>,
    id: NodeId,
    address: &str,
) -> bool {
    match membership.get_joint_config().as_slice() {
        [voters] => {
            voters.contains(&id) && membership.get_node(&id).is_some_and(|n| n.addr == address)
        }
        _ => false,
    }
}
