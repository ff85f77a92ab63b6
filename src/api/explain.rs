//! `GET /explain` (new beyond Patroni): why each member is or is not the leader. This node tells its own truth; the others it tells of
//! as it sees them, `told_by` says which.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::Response;
use serde_json::json;

use crate::{clock, topology};

use super::{Api, PEER_DEADLINE, health};

pub(super) async fn explain(State(api): State<Arc<Api>>) -> Response<Body> {
    let view = api.view();
    let role = Some(health::json_role(&view));
    let mut members = vec![topology::explanation(&view.explanation, role, &view.name)];
    if let Some(cluster) = view.current_cluster(clock::now()).cloned() {
        let others = cluster
            .members
            .values()
            .filter(|member| member.name != view.name)
            .filter_map(|member| Some((member.name.clone(), member.api_url.clone()?)));
        let mut answers = Vec::new();
        // Nobody is asked while too many long requests are under way.
        if let Ok(_permit) = api.long_calls.try_acquire() {
            let mut coming = api.live().client.poll(others, PEER_DEADLINE);
            while let Some(peer) = coming.recv().await {
                answers.push(peer);
            }
        }
        members.extend(topology::explanations(&cluster, &view.name, &answers));
    }
    api.json(&json!({"scope": view.scope, "name": view.name.as_str(), "members": members}))
}
