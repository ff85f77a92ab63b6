//! The REST API (spec/rest-api.md). GET answers come from the agent's published view alone; nothing here decides anything
//! about the cluster. Health checks touch no store, no PostgreSQL, and no lock that is held across an await.
//!
//! The way of a request: `listener` (accept, TLS; `connections` has deadlines and the cap) → [`Api::answer`] (health checks, liveness) → the route table below
//! (`access` in front of everything that changes something) → `actions`, `dynamic`, or the snapshot.

#![expect(
    clippy::result_large_err,
    reason = "an answer that ends a handler early is its error; boxing it would only cost"
)]

pub(crate) mod access;
mod actions;
mod connections;
mod dashboard;
mod dynamic;
mod explain;
pub mod health;
mod listener;
mod metrics;
pub mod status;
mod tls;
pub mod values;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, SERVER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, Method, Response, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::routing::{get, patch, post};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Bytes, Incoming};
use serde_json::{Map, Value};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

pub use access::Credentials;

use crate::cluster::{CONTRACT_VERSION, Cluster};
use crate::dcs::{Freshness, Store};
use crate::node::{CommandSender, NodeView, ViewReceiver};
use crate::types::Moment;
use crate::{clock, config, json_text, peers, topology};
use access::{Caller, Friends, Refused, Rules};
use connections::Mark;
use health::Query;

/// Open connections. Each holds up to 20 kB once it has been used, so that all of them stay below 25 MB.
const MAX_CONNECTIONS: usize = 1024;
/// Largest request body.
const BODY_LIMIT: usize = 1 << 20;
/// Time for a request body to arrive.
const BODY_DEADLINE: Duration = Duration::from_secs(5);
/// Restarts, switchovers and their like that may wait at once.
const LONG_CALLS: usize = 32;
/// Time PostgreSQL has to show its status to a peer, which itself waits two seconds.
const LIVE_DEADLINE: Duration = Duration::from_millis(1500);
/// Time a peer has to show its status before a switchover.
const PEER_DEADLINE: Duration = Duration::from_secs(2);

/// `restapi.*` (spec §16).
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// `host:port`; empty host or `*` = all addresses.
    pub listen: String,
    /// `host:port` that others use; `None` = `listen`.
    pub connect_address: Option<String>,
    /// Credentials that guarded calls need.
    pub authentication: Option<Credentials>,
    /// Present exactly when `certfile` is non-empty.
    pub tls: Option<TlsSettings>,
    /// Networks, addresses and host names that guarded calls may come from; empty = all.
    pub allowlist: Vec<String>,
    /// Members of the cluster count as allowed.
    pub allowlist_include_members: bool,
    /// Added to every normal answer.
    pub http_extra_headers: Vec<(String, String)>,
    /// Added over TLS; wins over the former.
    pub https_extra_headers: Vec<(String, String)>,
    /// Backlog of the listening socket; at least 1024 is used.
    pub request_queue_size: u32,
    /// `original`, `productonly` or `minimal`, in any case.
    pub server_tokens: String,
    /// Cap on open connections; fewer where the process may not have that many files.
    pub max_connections: usize,
    /// How this node calls its peers (precheck of a switchover).
    pub client: peers::ClientSettings,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            listen: "127.0.0.1:8008".to_owned(),
            connect_address: None,
            authentication: None,
            tls: None,
            allowlist: Vec::new(),
            allowlist_include_members: false,
            http_extra_headers: Vec::new(),
            https_extra_headers: Vec::new(),
            request_queue_size: 5,
            server_tokens: "original".to_owned(),
            max_connections: MAX_CONNECTIONS,
            client: peers::ClientSettings::default(),
        }
    }
}

impl Settings {
    /// The settings a node's configuration asks for.
    #[must_use]
    pub fn from_config(config: &config::Config) -> Settings {
        let rest = &config.restapi;
        let pairs = |map: &BTreeMap<String, String>| {
            map.iter()
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect()
        };
        let tls = rest.certfile.as_ref().map(|certfile| TlsSettings {
            certfile: peers::path_text(certfile),
            keyfile: rest.keyfile.as_deref().map(peers::path_text),
            keyfile_password: rest
                .keyfile_password
                .as_ref()
                .map(|password| password.expose().to_owned()),
            cafile: rest.cafile.as_deref().map(peers::path_text),
            verify_client: match rest.verify_client {
                config::VerifyClient::None => VerifyClient::None,
                config::VerifyClient::Optional => VerifyClient::Optional,
                config::VerifyClient::Required => VerifyClient::Required,
            },
        });
        let server_tokens = match rest.server_tokens {
            config::ServerTokens::Original => "original",
            config::ServerTokens::Minimal => "minimal",
            config::ServerTokens::ProductOnly => "productonly",
        };
        Settings {
            listen: rest.listen.or_port(8008).to_string(),
            connect_address: Some(rest.connect_address.to_string()),
            authentication: rest.authentication.as_ref().map(Credentials::from_config),
            tls,
            allowlist: rest.allowlist.clone(),
            allowlist_include_members: rest.allowlist_include_members,
            http_extra_headers: pairs(&rest.http_extra_headers),
            https_extra_headers: pairs(&rest.https_extra_headers),
            request_queue_size: rest.request_queue_size,
            server_tokens: server_tokens.to_owned(),
            client: peers::ClientSettings::for_daemon(config),
            ..Settings::default()
        }
    }

    /// The `api_url` of the member document (spec §1).
    #[must_use]
    pub fn api_url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!(
            "{scheme}://{}/patroni",
            self.connect_address.as_ref().unwrap_or(&self.listen)
        )
    }
}

/// Files and rules of the TLS listener (spec §3.3).
#[derive(Debug, Clone, PartialEq)]
pub struct TlsSettings {
    /// PEM chain.
    pub certfile: String,
    /// Key, if not in `certfile`.
    pub keyfile: Option<String>,
    /// Passphrase of an encrypted key.
    pub keyfile_password: Option<String>,
    /// CA bundle for client certificates.
    pub cafile: Option<String>,
    /// Whether clients must show a certificate.
    pub verify_client: VerifyClient,
}

/// `verify_client`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VerifyClient {
    /// Not asked for.
    #[default]
    None,
    /// Asked for; needed by guarded calls only.
    Optional,
    /// Needed by everyone, health checks included.
    Required,
}

/// Where the store is put as soon as it is open; the port opens before that (D12).
pub type StoreSlot = Arc<OnceLock<Store>>;

/// A bound, not yet serving API.
pub struct Bound {
    api: Arc<Api>,
    listener: TcpListener,
    settings: watch::Receiver<Arc<Settings>>,
}

/// Binds the port and loads certificates: everything that can be wrong in the settings is found here. Needs a runtime.
///
/// # Errors
/// A port that is taken or not ours, a certificate that cannot be loaded.
pub async fn bind(
    settings: watch::Receiver<Arc<Settings>>,
    view: ViewReceiver,
    commands: CommandSender,
    store: StoreSlot,
) -> anyhow::Result<Bound> {
    let current = settings.borrow().clone();
    if let Some(tls) = &current.tls {
        tls::server_config(tls)?;
    }
    let listener =
        listener::bind(&current.listen, current.request_queue_size).map_err(|error| {
            error.context(format!(
                "REST API can not listen on {} (restapi.listen)",
                current.listen
            ))
        })?;
    let api = Arc::new(Api {
        view,
        commands,
        store,
        live: RwLock::new(Arc::new(Live::new(&current).await?)),
        rendered: Mutex::new(None),
        long_calls: Semaphore::new(LONG_CALLS),
        feeds: Arc::new(Semaphore::new(dashboard::FEEDS)),
        router: OnceLock::new(),
    });
    let _ = api.router.set(routes(&api));
    Ok(Bound {
        api,
        listener,
        settings,
    })
}

impl Bound {
    /// The bound address.
    ///
    /// # Errors
    /// None in practice.
    pub fn local_addr(&self) -> std::io::Result<std::net::SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until dropped. New settings are applied in place.
    ///
    /// # Errors
    /// Only when the certificate vanished since [`bind`].
    pub async fn serve(self) -> anyhow::Result<()> {
        let mut changes = self.settings.clone();
        let api = self.api.clone();
        // Beside the accept loop, because an allowlist may hold names that take a while to resolve.
        let applying = async move {
            while changes.changed().await.is_ok() {
                let settings = changes.borrow_and_update().clone();
                api.apply(&settings).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = listener::run(self.api, self.settings, self.listener) => ended,
            () = applying => Ok(()),
        }
    }
}

/// [`bind`] and [`Bound::serve`] in one.
///
/// # Errors
/// See [`bind`].
pub async fn serve(
    settings: watch::Receiver<Arc<Settings>>,
    view: ViewReceiver,
    commands: CommandSender,
    store: StoreSlot,
) -> anyhow::Result<()> {
    bind(settings, view, commands, store).await?.serve().await
}

/// What follows from the settings.
struct Live {
    rules: Rules,
    headers: Vec<(HeaderName, HeaderValue)>,
    client: peers::Client,
}

impl Live {
    async fn new(settings: &Settings) -> anyhow::Result<Live> {
        let mut headers: Vec<(HeaderName, HeaderValue)> =
            vec![(SERVER, server_token(&settings.server_tokens))];
        let https: &[_] = if settings.tls.is_some() {
            &settings.https_extra_headers
        } else {
            &[]
        };
        for (name, value) in settings.http_extra_headers.iter().chain(https) {
            let (Ok(name), Ok(value)) = (
                HeaderName::try_from(name.as_str()),
                HeaderValue::try_from(value.as_str()),
            ) else {
                tracing::error!("restapi extra header {name:?} is no valid header; it is ignored");
                continue;
            };
            headers.retain(|(other, _)| *other != name);
            headers.push((name, value));
        }
        Ok(Live {
            rules: Rules::new(settings).await,
            headers,
            client: peers::Client::new(&settings.client)?,
        })
    }
}

fn server_token(tokens: &str) -> HeaderValue {
    let text = match tokens.to_lowercase().as_str() {
        "productonly" => "Patroni".to_owned(),
        "minimal" => format!("Patroni/{CONTRACT_VERSION}"),
        other => {
            if other != "original" {
                tracing::warn!(
                    "restapi.server_tokens {tokens:?} is none of original, productonly, minimal; original is used"
                );
            }
            concat!("Howdah/", env!("CARGO_PKG_VERSION")).to_owned()
        }
    };
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("Howdah"))
}

/// A status document rendered once per published view, and what it depends on besides the view.
struct Rendered {
    view: Arc<NodeView>,
    has_cluster: bool,
    failsafe: bool,
    body: Bytes,
}

pub(crate) struct Api {
    view: ViewReceiver,
    commands: CommandSender,
    store: StoreSlot,
    live: RwLock<Arc<Live>>,
    rendered: Mutex<Option<Rendered>>,
    long_calls: Semaphore,
    feeds: Arc<Semaphore>,
    router: OnceLock<Router>,
}

/// The request target as the client sent it; the router sees only the first segment.
#[derive(Clone)]
struct Context {
    caller: Caller,
    mark: Arc<Mark>,
}

/// The route table. GET, HEAD and OPTIONS of anything else are health checks and never arrive here.
fn routes(api: &Arc<Api>) -> Router {
    let guarded = Router::new()
        .route("/config", patch(dynamic::patch).put(dynamic::put))
        .route(
            "/switchover",
            post(actions::switchover).delete(actions::delete_switchover),
        )
        .route("/failover", post(actions::failover))
        .route(
            "/restart",
            post(actions::restart).delete(actions::delete_restart),
        )
        .route("/reload", post(actions::reload))
        .route("/reinitialize", post(actions::reinitialize))
        .route("/failsafe", post(actions::failsafe))
        .route("/citus", post(actions::citus))
        .route("/mpp", post(actions::citus))
        .route("/sigterm", post(actions::sigterm))
        .route("/ui", post(dashboard::post))
        .route_layer(middleware::from_fn_with_state(api.clone(), guard));
    Router::new()
        .route("/patroni", get(patroni))
        .route("/cluster", get(cluster))
        .route("/history", get(history))
        .route("/metrics", get(metrics_page))
        .route("/config", get(dynamic::get))
        .route("/failsafe", get(failsafe_topology))
        .route("/explain", get(explain::explain))
        .route("/ui", get(dashboard::get))
        .merge(guarded)
        .fallback(unsupported)
        .method_not_allowed_fallback(unsupported)
        .with_state(api.clone())
}

/// Segments with a GET handler of their own.
const GET_ROUTES: [&str; 8] = [
    "patroni", "cluster", "history", "metrics", "config", "failsafe", "explain", "ui",
];

impl Api {
    fn live(&self) -> Arc<Live> {
        self.live
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// New settings, applied in place; bad ones leave the old in force.
    pub(crate) async fn apply(&self, settings: &Settings) {
        match Live::new(settings).await {
            Ok(live) => *self.live.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(live),
            Err(error) => tracing::error!("REST API keeps its settings: {error}"),
        }
    }

    fn view(&self) -> Arc<NodeView> {
        self.view.borrow().clone()
    }

    fn store(&self) -> Result<&Store, Response<Body>> {
        self.store
            .get()
            .ok_or_else(|| self.text(503, "The distributed configuration store is not open yet"))
    }

    /// A fresh snapshot, or the 503 that says why there is none (D7).
    async fn fresh_cluster(&self) -> Result<Cluster, Response<Body>> {
        let loaded = self.store()?.load(Freshness::Latest).await;
        loaded.map_err(|error| {
            self.text(
                503,
                &format!("The distributed configuration store does not answer: {error}"),
            )
        })
    }

    /// Answers one request.
    pub(crate) async fn answer(
        &self,
        request: hyper::Request<Incoming>,
        caller: Caller,
        mark: Arc<Mark>,
    ) -> Response<Body> {
        let started = clock::now();
        let line = tracing::enabled!(tracing::Level::DEBUG).then(|| {
            format!(
                "{} {} {:?}",
                request.method(),
                request.uri(),
                request.version()
            )
        });
        let response = self.dispatch(request, caller, mark, started).await;
        if let Some(line) = line {
            let latency = clock::now().since(started).as_secs_f64() * 1000.0;
            tracing::debug!(
                "API thread: {} - - \"{line}\" {} - latency: {latency:.3} ms",
                caller.address,
                response.status().as_u16()
            );
        }
        response
    }

    async fn dispatch(
        &self,
        request: hyper::Request<Incoming>,
        caller: Caller,
        mark: Arc<Mark>,
        now: Moment,
    ) -> Response<Body> {
        let path = request.uri().path();
        let segment = path.split('/').find(|part| !part.is_empty()).unwrap_or("");
        let safe = matches!(
            *request.method(),
            Method::GET | Method::HEAD | Method::OPTIONS
        );
        if safe && matches!(segment, "liveness" | "readiness") {
            return self.probe(segment, &Query::parse(request.uri().query()), now);
        }
        if safe && !(request.method() == Method::GET && GET_ROUTES.contains(&segment)) {
            let view = self.view();
            let healthy =
                health::is_healthy(&view, now, path, &Query::parse(request.uri().query()));
            let status = if healthy {
                StatusCode::OK
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            };
            return if request.method() == Method::GET
                && path == "/"
                && dashboard::wants_page(request.headers())
            {
                dashboard::page(self, status)
            } else if request.method() == Method::GET {
                self.status_document(status, &view, now)
            } else {
                status_only(status)
            };
        }
        // The router matches whole paths; remaining segments are ignored (spec §2).
        let Ok(uri) = Uri::try_from(format!("/{segment}")) else {
            return error_page(
                501,
                &format!("Unsupported method ('{}')", request.method()),
                "Server does not support this operation",
            );
        };
        let (mut head, body) = request.into_parts();
        head.uri = uri;
        head.extensions.insert(Context { caller, mark });
        let request = Request::from_parts(head, Body::new(body));
        let Some(router) = self.router.get() else {
            return status_only(StatusCode::SERVICE_UNAVAILABLE);
        };
        let service = hyper_util::service::TowerToHyperService::new(router.clone());
        match hyper::service::Service::call(&service, request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }

    fn probe(&self, segment: &str, query: &Query, now: Moment) -> Response<Body> {
        let view = self.view();
        if segment == "readiness" {
            let ready = health::readiness(&view, now, query);
            if let Err(reason) = &ready {
                tracing::debug!("Readiness check failure: {reason}");
            }
            return status_only(if ready.is_ok() {
                StatusCode::OK
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            });
        }
        let live = health::is_live(&view, now);
        let mut response = status_only(if live {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        });
        if let Ok(instance) = HeaderValue::try_from(view.instance.as_str()) {
            response
                .headers_mut()
                .insert(HeaderName::from_static(peers::INSTANCE_HEADER), instance);
        }
        response
    }

    fn status_document(
        &self,
        status: StatusCode,
        view: &Arc<NodeView>,
        now: Moment,
    ) -> Response<Body> {
        let has_cluster = view.current_cluster(now).is_some();
        let failsafe = view.failsafe_active(now);
        let mut rendered = self.rendered.lock().unwrap_or_else(PoisonError::into_inner);
        let body = match &*rendered {
            Some(last)
                if Arc::ptr_eq(&last.view, view)
                    && last.has_cluster == has_cluster
                    && last.failsafe == failsafe =>
            {
                last.body.clone()
            }
            _ => {
                let body = Bytes::from(json_text::render(&status::document(view, now)));
                *rendered = Some(Rendered {
                    view: view.clone(),
                    has_cluster,
                    failsafe,
                    body: body.clone(),
                });
                body
            }
        };
        drop(rendered);
        self.reply(status, "application/json", body)
    }

    fn reply(
        &self,
        status: StatusCode,
        content_type: &'static str,
        body: impl Into<Body>,
    ) -> Response<Body> {
        let mut response = Response::new(body.into());
        *response.status_mut() = status;
        let live = self.live();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        for (name, value) in &live.headers {
            headers.insert(name, value.clone());
        }
        response
    }

    /// A plain message. Statuses are literals of this module, so an invalid one cannot occur.
    fn text(&self, status: u16, message: &str) -> Response<Body> {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        self.reply(status, "text/html", message.to_owned())
    }

    fn json(&self, value: &impl serde::Serialize) -> Response<Body> {
        self.reply(StatusCode::OK, "application/json", json_text::render(value))
    }
}

/// `HTTP/1.x 200 OK` and nothing else: what HEAD, OPTIONS and the probes get.
fn status_only(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// The small HTML page of spec §1, "send error".
fn error_page(status: u16, message: &str, explanation: &str) -> Response<Body> {
    let escape = |text: &str| {
        text.replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;")
    };
    let (message, explanation) = (escape(message), escape(explanation));
    let page = format!(
        "<!DOCTYPE HTML>\n<html lang=\"en\">\n    <head>\n        <meta charset=\"utf-8\">\n        <title>Error response</title>\n    </head>\n    \
         <body>\n        <h1>Error response</h1>\n        <p>Error code: {status}</p>\n        <p>Message: {message}.</p>\n        \
         <p>Error code explanation: {status} - {explanation}.</p>\n    </body>\n</html>\n"
    );
    let mut response = Response::new(Body::from(page));
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/html;charset=utf-8"),
    );
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

async fn guard(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response<Body> {
    let Some(context) = request.extensions().get::<Context>().cloned() else {
        return api.text(403, "Access is denied");
    };
    if is_cross_site(request.headers()) {
        return api.text(403, "Access is denied");
    }
    let friends = match request.uri().path() {
        "/failsafe" => Friends::FailsafeTopology,
        _ => Friends::Members,
    };
    let live = api.live();
    let checked = live
        .rules
        .check(
            context.caller,
            request.headers(),
            &api.view(),
            clock::now(),
            friends,
        )
        .await;
    match checked {
        Ok(()) => next.run(request).await,
        Err(Refused(status, message)) => {
            let mut response = api.text(status, message);
            if status == 401 {
                response.headers_mut().insert(
                    WWW_AUTHENTICATE,
                    HeaderValue::from_static("Basic realm=\"Patroni\""),
                );
            }
            response
        }
    }
}

/// A browser sends this for a page of somebody else. It would add what it remembers of the user, certificates included.
fn is_cross_site(headers: &axum::http::HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match (text("sec-fetch-site"), text("origin")) {
        (Some(site), _) => !matches!(site, "same-origin" | "none"),
        (None, Some(origin)) => {
            let authority = origin.split_once("://").map(|(_, authority)| authority);
            authority != text("host")
        }
        (None, None) => false,
    }
}

async fn unsupported(request: Request) -> Response<Body> {
    error_page(
        501,
        &format!("Unsupported method ('{}')", request.method()),
        "Server does not support this operation",
    )
}

/// What peers read in an election: the position must be of this moment, or not be there at all (spec/ha.md §6.2).
async fn patroni(State(api): State<Arc<Api>>) -> Response<Body> {
    let mut view = api.view();
    if view.postgres.is_some()
        && let Some(live) = view.live.clone()
    {
        let postgres = live.ask(LIVE_DEADLINE).await;
        view = Arc::new(NodeView {
            postgres,
            ..(*view).clone()
        });
    }
    api.status_document(StatusCode::OK, &view, clock::now())
}

async fn metrics_page(State(api): State<Arc<Api>>) -> Response<Body> {
    api.reply(
        StatusCode::OK,
        "text/plain",
        metrics::page(&api.view(), clock::now()),
    )
}

async fn cluster(State(api): State<Arc<Api>>) -> Result<Response<Body>, Response<Body>> {
    let cluster = api.fresh_cluster().await?;
    let view = api.view();
    Ok(api.json(&topology::document(&cluster, &view.scope)))
}

async fn history(State(api): State<Arc<Api>>) -> Result<Response<Body>, Response<Body>> {
    let cached = api.view().current_cluster(clock::now()).cloned();
    let cluster = match cached {
        Some(cluster) => cluster,
        None => Arc::new(api.fresh_cluster().await?),
    };
    Ok(api.json(&topology::history_rows(&cluster)))
}

async fn failsafe_topology(State(api): State<Arc<Api>>) -> Response<Body> {
    let view = api.view();
    match &view.failsafe_topology {
        Some(names) => {
            let object: Map<String, Value> = names
                .iter()
                .map(|(name, url)| (name.to_string(), url.as_str().into()))
                .collect();
            api.json(&object)
        }
        None => error_page(502, "Bad Gateway", "There is no failsafe topology"),
    }
}

/// Whether a body must be there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Body,
    Optional,
}

/// Reads a JSON object (spec §10, last paragraph).
async fn read_object(request: Request, need: Need) -> Result<Map<String, Value>, Response<Body>> {
    let (head, body) = request.into_parts();
    if !head.headers.contains_key(CONTENT_LENGTH) {
        return match need {
            Need::Optional => Ok(Map::new()),
            Need::Body => Err(error_page(
                411,
                "Length Required",
                "Client must specify Content-Length",
            )),
        };
    }
    let bad = |why: &str| error_page(400, "Bad Request", why);
    let collected =
        tokio::time::timeout(BODY_DEADLINE, Limited::new(body, BODY_LIMIT).collect()).await;
    let bytes = match collected {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(_)) => return Err(bad("The request body is incomplete or too long")),
        Err(_) => {
            return Err(error_page(
                408,
                "Request Timeout",
                "The request body did not arrive in time",
            ));
        }
    };
    if bytes.is_empty() && need == Need::Optional {
        return Ok(Map::new());
    }
    match serde_json::from_slice::<Value>(&bytes) {
        Ok(Value::Object(object)) if need == Need::Optional || !object.is_empty() => Ok(object),
        Ok(_) => Err(bad(
            "The request body must be a JSON object that is not empty",
        )),
        Err(_) => Err(bad("The request body is not valid JSON")),
    }
}

#[cfg(test)]
#[path = "api/tests.rs"]
pub(crate) mod tests;
