//! Raft's outgoing requests.

use std::io;
use std::sync::Arc;

use openraft::error::{InstallSnapshotError, NetworkError, RPCError, RaftError, Unreachable};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{BasicNode, RaftNetwork, RaftNetworkFactory};

use super::super::disk::{NodeId, TypeConfig, lock};
use super::super::peer::CallError;
use super::super::transport::{Reply, Request};
use super::{Node, PAUSE};

/// Makes the outgoing links of Raft.
pub(super) struct Network(pub(super) Arc<Node>);

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: NodeId, node: &BasicNode) -> Link {
        Link {
            target,
            address: node.addr.clone(),
            node: Arc::clone(&self.0),
        }
    }
}

/// Raft's way to one node. Cheap; the connection behind it is shared.
pub(super) struct Link {
    target: NodeId,
    /// Where it was when the link was made.
    address: String,
    node: Arc<Node>,
}

type Rpc<T, E = RaftError<NodeId>> = Result<T, RPCError<NodeId, BasicNode, E>>;

impl Link {
    async fn call<E: std::error::Error>(&self, request: Request) -> Rpc<Reply, E> {
        // Nodes move: the membership has the present address.
        let moved = self.node.raft().and_then(|raft| {
            let metrics = raft.server_metrics();
            let metrics = metrics.borrow();
            let node = metrics
                .membership_config
                .membership()
                .get_node(&self.target);
            node.map(|node| node.addr.clone())
        });
        let address = moved.as_ref().unwrap_or(&self.address);
        match self
            .node
            .peer(address, Some(self.target))
            .call(&request)
            .await
        {
            Ok(Reply::Failed(text)) => Err(RPCError::Network(NetworkError::new(
                &io::Error::other(text),
            ))),
            Ok(reply) => Ok(reply),
            Err(error @ CallError::NotSent(_)) => {
                Err(RPCError::Unreachable(Unreachable::new(&error)))
            }
            Err(error @ CallError::Lost(_)) => Err(RPCError::Network(NetworkError::new(&error))),
        }
    }
}

fn unexpected<E: std::error::Error>() -> RPCError<NodeId, BasicNode, E> {
    let error = io::Error::from(io::ErrorKind::InvalidData);
    RPCError::Network(NetworkError::new(&error))
}

impl RaftNetwork<TypeConfig> for Link {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<NodeId>> {
        let sent = (self.node.clock)();
        let term = rpc.vote.leader_id().term;
        match self.call(Request::Append(rpc)).await? {
            Reply::Append(response) => {
                let followed = matches!(
                    response,
                    AppendEntriesResponse::Success
                        | AppendEntriesResponse::PartialSuccess(_)
                        | AppendEntriesResponse::Conflict
                );
                if followed {
                    let mut contact = lock(&self.node.contact);
                    let last = contact.followers.entry(self.target).or_insert((term, sent));
                    *last = (*last).max((term, sent));
                }
                Ok(response)
            }
            _ => Err(unexpected()),
        }
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Rpc<InstallSnapshotResponse<NodeId>, RaftError<NodeId, InstallSnapshotError>> {
        match self.call(Request::Snapshot(rpc.into())).await? {
            Reply::Snapshot(response) => Ok(response),
            Reply::SnapshotMismatch(mismatch) => {
                let error = RaftError::APIError(InstallSnapshotError::SnapshotMismatch(mismatch));
                Err(RPCError::RemoteError(openraft::error::RemoteError::new(
                    self.target,
                    error,
                )))
            }
            _ => Err(unexpected()),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<NodeId>,
        _option: RPCOption,
    ) -> Rpc<VoteResponse<NodeId>> {
        match self.call(Request::Vote(rpc)).await? {
            Reply::Vote(response) => Ok(response),
            _ => Err(unexpected()),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(PAUSE * 2))
    }
}
