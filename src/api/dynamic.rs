//! `/config`: the dynamic configuration (spec/rest-api.md §10). Written through the store, then the loop is woken.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Response;
use serde_json::{Map, Value};

use crate::clock;
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
    if merge(&mut data, &patch) {
        let written = api
            .store()?
            .put(
                Document::Config,
                &compact(&data),
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
        .is_some_and(|config| same_text(&config.data, &data));
    if !unchanged {
        let written = api
            .store()?
            .put(Document::Config, &compact(&data), Expect::Anything)
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

/// Compact JSON, as the store keeps it.
#[must_use]
pub(crate) fn compact(data: &Map<String, Value>) -> String {
    serde_json::to_string(data).unwrap_or_else(|_| "{}".to_owned())
}

/// Merges `patch` into `data`; whether anything changed. `null` removes, objects merge, everything else replaces.
/// Equality is of texts: `100` onto `"100"` is no change and keeps the old type.
pub(crate) fn merge(data: &mut Map<String, Value>, patch: &Map<String, Value>) -> bool {
    let mut changed = false;
    for (key, value) in patch {
        match (data.get_mut(key), value) {
            (None, Value::Null) => {}
            (Some(_), Value::Null) => {
                data.shift_remove(key);
                changed = true;
            }
            (Some(Value::Object(old)), Value::Object(new)) => changed |= merge(old, new),
            (Some(old), new) => {
                if text(old) != text(new) {
                    *old = new.clone();
                    changed = true;
                }
            }
            (None, new) => {
                data.insert(key.clone(), new.clone());
                changed = true;
            }
        }
    }
    changed
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        other => other.to_string(),
    }
}

/// Equality as for [`merge`], of whole documents, without regard to the order of keys.
fn same_text(a: &Map<String, Value>, b: &Map<String, Value>) -> bool {
    let equal = |a: &Value, b: &Value| match (a, b) {
        (Value::Object(a), Value::Object(b)) => same_text(a, b),
        (a, b) => text(a) == text(b),
    };
    a.len() == b.len()
        && a.iter()
            .all(|(key, value)| b.get(key).is_some_and(|other| equal(value, other)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn merged(data: Value, patch: Value) -> (Value, bool) {
        let (Value::Object(mut data), Value::Object(patch)) = (data, patch) else {
            panic!()
        };
        let changed = merge(&mut data, &patch);
        (data.into(), changed)
    }

    #[test]
    fn merging() {
        let cases = [
            (
                json!({"a": 1}),
                json!({"a": null, "b": null}),
                json!({}),
                true,
            ),
            (json!({"a": 1}), json!({"b": null}), json!({"a": 1}), false),
            (
                json!({"a": "100"}),
                json!({"a": 100}),
                json!({"a": "100"}),
                false,
            ),
            (
                json!({"a": {"x": 1, "y": 2}}),
                json!({"a": {"x": null, "z": 3}}),
                json!({"a": {"y": 2, "z": 3}}),
                true,
            ),
            (
                json!({"a": {"x": 1}}),
                json!({"a": 5}),
                json!({"a": 5}),
                true,
            ),
            (
                json!({"a": 5}),
                json!({"a": {"x": 1}}),
                json!({"a": {"x": 1}}),
                true,
            ),
            (
                json!({}),
                json!({"a": {"x": null}}),
                json!({"a": {"x": null}}),
                true,
            ),
            (
                json!({"a": true}),
                json!({"a": "true"}),
                json!({"a": "true"}),
                true,
            ),
            (json!({"a": null}), json!({"a": null}), json!({}), true),
        ];
        for (data, patch, want, changed) in cases {
            assert_eq!(
                merged(data.clone(), patch.clone()),
                (want, changed),
                "{data} + {patch}"
            );
        }
    }
}
