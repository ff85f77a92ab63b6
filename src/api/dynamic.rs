//! `/config`: the dynamic configuration (spec/rest-api.md §10). Written through the store, then the loop is woken.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Response;

use crate::clock;
use crate::cluster::wire;
use crate::config::value;
use crate::dcs::{Document, Expect, Write};
use crate::node::Command;

use super::{Api, Need, error_page, read_object};

pub(super) async fn get(State(api): State<Arc<Api>>) -> Result<Response<Body>, Response<Body>> {
    let cached = api
        .view()
        .current_cluster(clock::now())
        .and_then(|cluster| cluster.config.clone());
    let config = match cached {
        Some(config) => Some(config),
        None => api.fresh_cluster().await?.config,
    };
    match config {
        Some(config) => Ok(api.json(&config.data)),
        None => Err(error_page(
            502,
            "Bad Gateway",
            "There is no valid dynamic configuration",
        )),
    }
}

pub(super) async fn patch(
    State(api): State<Arc<Api>>,
    request: Request,
) -> Result<Response<Body>, Response<Body>> {
    let patch = read_object(request, Need::Body).await?;
    let Some(config) = api.fresh_cluster().await?.config else {
        return Err(error_page(
            503,
            "Service Unavailable",
            "There is no valid dynamic configuration",
        ));
    };
    let mut data = config.data;
    if value::patch(&mut data, &patch) {
        let written = api
            .store()?
            .put(
                Document::Config,
                &wire::config_text(&data),
                Expect::At(config.revision),
            )
            .await;
        wake(&api);
        if !matches!(written, Write::Done(_)) {
            tracing::warn!("PATCH /config was not written: {written:?}");
            return Err(error_page(
                409,
                "Conflict",
                "The configuration was changed by someone else, or the store did not answer; try again",
            ));
        }
    } else {
        wake(&api);
    }
    Ok(api.json(&data))
}

pub(super) async fn put(
    State(api): State<Arc<Api>>,
    request: Request,
) -> Result<Response<Body>, Response<Body>> {
    let data = read_object(request, Need::Body).await?;
    let unchanged = api
        .fresh_cluster()
        .await?
        .config
        .is_some_and(|config| value::same_map(&config.data, &data));
    if !unchanged {
        let written = api
            .store()?
            .put(
                Document::Config,
                &wire::config_text(&data),
                Expect::Anything,
            )
            .await;
        wake(&api);
        if !matches!(written, Write::Done(_)) {
            tracing::warn!("PUT /config was not written: {written:?}");
            return Err(error_page(
                502,
                "Bad Gateway",
                "The store did not accept the configuration, or did not answer",
            ));
        }
    }
    Ok(api.json(&data))
}

fn wake(api: &Api) {
    // A full queue means that the loop has reasons enough to wake up.
    let _ = api.commands.try_send(Command::Wake);
}
