//! The page for people (new beyond Patroni): `GET /ui`, and `GET /` for who asks for HTML. One file without anything else to fetch; the
//! same path is the stream of what it shows for who asks for server-sent events.
//!
//! Reading is as free as `GET /cluster` is. `POST /ui` is guarded like everything that changes something, and besides refuses whoever
//! could not be told from a stranger: on a node without credentials and client certificates the page has no buttons.

use std::convert::Infallible;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, VARY};
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use base64::Engine as _;
use futures_util::stream;
use hyper::body::Bytes;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::sync::OwnedSemaphorePermit;

use crate::node::{NodeView, ViewReceiver};
use crate::types::Moment;
use crate::{clock, topology};

use super::actions::{Answer, name_in};
use super::connections::{Busy, Mark};
use super::{Api, Context, Need, health, read_object};

const PAGE: &str = include_str!("dashboard.html");
/// Pages that may be open at once.
pub(super) const FEEDS: usize = 16;
/// Time between two events of a stream, at least.
const PAUSE: Duration = Duration::from_millis(500);
/// Time between two signs of life; a reader that has gone is noticed by them.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);
/// Changes of the leader that are shown.
const HISTORY: usize = 20;
/// A restart is answered when it is over.
const RESTART_PATIENCE: Duration = Duration::from_secs(3600);

/// What the page may do: run the one script that is in it, and talk to the node it came from.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let script = PAGE
        .split_once("<script>")
        .and_then(|(_, rest)| rest.split_once("</script>"))
        .map_or("", |(script, _)| script);
    let hash = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(script));
    format!(
        "default-src 'none'; script-src 'sha256-{hash}'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
});

/// The caller is a browser that wants a page. Probes say nothing, or that they take anything; some libraries of programs ask for HTML
/// (Java's own), but none for what every browser names beside it.
pub(super) fn wants_page(headers: &HeaderMap) -> bool {
    accepts(headers, "text/html") && accepts(headers, "application/xhtml+xml")
}

fn accepts(headers: &HeaderMap, kind: &str) -> bool {
    headers
        .get(ACCEPT)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.contains(kind))
}

/// The page. At `/` it has the status of the health check there.
pub(super) fn page(api: &Api, status: StatusCode) -> Response<Body> {
    let mut response = api.reply(status, "text/html; charset=utf-8", PAGE);
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(VARY, HeaderValue::from_static("Accept"));
    if let Ok(policy) = HeaderValue::try_from(POLICY.as_str()) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
    response
}

/// `GET /ui`: the page, or what it shows.
pub(super) async fn get(State(api): State<Arc<Api>>, request: Request) -> Response<Body> {
    if !accepts(request.headers(), "text/event-stream") {
        return page(&api, StatusCode::OK);
    }
    let Some(context) = request.extensions().get::<Context>() else {
        return api.text(503, "The stream can not be started");
    };
    let Ok(permit) = api.feeds.clone().try_acquire_owned() else {
        return api.text(503, "Too many pages are open on this node");
    };
    let feed = Feed {
        views: api.view.clone(),
        api: api.clone(),
        mark: context.mark.clone(),
        shown: None,
        _busy: None,
        _permit: permit,
    };
    let events = stream::unfold(feed, |mut feed| async move {
        let event = feed.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(event)), feed))
    });
    let mut response = api.reply(
        StatusCode::OK,
        "text/event-stream",
        Body::from_stream(events),
    );
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// One open page.
struct Feed {
    api: Arc<Api>,
    views: ViewReceiver,
    mark: Arc<Mark>,
    shown: Option<String>,
    _busy: Option<Busy>,
    _permit: OwnedSemaphorePermit,
}

impl Feed {
    /// The next event; `None` when the agent is gone.
    async fn next(&mut self) -> Option<String> {
        if self.shown.is_some() {
            tokio::time::sleep(PAUSE).await;
            if let Ok(Err(_)) = tokio::time::timeout(SIGN_OF_LIFE, self.views.changed()).await {
                return None;
            }
        } else {
            // The answer has begun by now: from here on the connection is neither idle nor late.
            self._busy = Some(self.mark.busy());
        }
        let view = self.views.borrow_and_update().clone();
        let text = contents(&self.api, &view, clock::now());
        if self.shown.as_deref() == Some(&text) {
            return Some(":\n\n".to_owned());
        }
        let event = format!("data: {text}\n\n");
        self.shown = Some(text);
        Some(event)
    }
}

/// Everything the page shows, by the last snapshot. Nobody is asked for it, so that open pages cost the cluster nothing.
fn contents(api: &Api, view: &NodeView, now: Moment) -> String {
    let cluster = view.current_cluster(now);
    let mut explanations = vec![topology::explanation(
        &view.explanation,
        Some(health::json_role(view)),
        &view.name,
    )];
    let mut history = Vec::new();
    if let Some(cluster) = cluster {
        explanations.extend(topology::explanations(cluster, &view.name, &[]));
        history = topology::history_rows(cluster);
        history.drain(..history.len().saturating_sub(HISTORY));
    }
    let rules = &api.live().rules;
    let sign_in = if rules.asks_password() {
        "password"
    } else if rules.asks_certificate() {
        "certificate"
    } else {
        "none"
    };
    json!({
        "scope": view.scope,
        "node": view.name.as_str(),
        "sign_in": sign_in,
        "certificate": rules.asks_certificate(),
        "failsafe": view.failsafe_active(now),
        "cluster": cluster.map(|cluster| topology::document(cluster, &view.scope)),
        "history": history,
        "explanations": explanations,
    })
    .to_string()
}

/// `POST /ui`: whether the caller may act, and `{"restart": member}` on behalf of the page, which can only reach its own node.
pub(super) async fn post(State(api): State<Arc<Api>>, request: Request) -> Answer {
    let mark = request
        .extensions()
        .get::<Context>()
        .map(|context| context.mark.clone());
    let live = api.live();
    if !live.rules.asks_password() && !live.rules.asks_certificate() {
        return Err(api.text(
            403,
            "This node knows nobody: set restapi.authentication to act from here",
        ));
    }
    let body = read_object(request, Need::Optional).await?;
    let Some(name) = name_in(&body, &["restart"])? else {
        return Ok(api.text(200, "OK"));
    };
    let cluster = api.fresh_cluster().await?;
    let Some(api_url) = cluster
        .members
        .get(&name)
        .and_then(|member| member.api_url.as_deref())
    else {
        return Err(api.text(
            404,
            &format!("{name} is no member with a REST address of this cluster"),
        ));
    };
    let _busy = mark.map(|mark| mark.busy());
    let Ok(_permit) = api.long_calls.try_acquire() else {
        return Err(api.text(503, "Too many requests are waiting for this node already"));
    };
    let answer = live
        .client
        .call(
            Method::POST,
            api_url,
            "restart",
            Some("{}"),
            RESTART_PATIENCE,
        )
        .await;
    Ok(match answer {
        // The caller has been let in here; that this node is not let in there is not for them to mend.
        Ok(answer) if answer.status == 401 => {
            api.text(502, &format!("{name} refuses this node: {}", answer.body))
        }
        Ok(answer) => api.text(answer.status, &answer.body),
        Err(error) => api.text(503, &format!("{name} does not answer: {error}")),
    })
}
