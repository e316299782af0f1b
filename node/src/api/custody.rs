//! Routes about custodians.

use super::error::{ApiError, ErrorBody};
use super::routes::{ApiState, LocalUser};
use crate::control::{AuditReport, KeyReport, SetCustodians, Unlock, Unlocked, VerifyReport};
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::Deserialize;

/// Names who is to hold the shares of every secret, and how many are to be needed. All shares become new ones.
#[utoipa::path(post, path = "/v1/custodians", request_body = SetCustodians, responses(
    (status = 200, body = KeyReport, description = "Agreed; `resharing.left` tells how many secrets are to be \
        dealt on yet"),
    (status = "default", body = ErrorBody),
))]
pub(super) async fn set_custodians(
    State(state): State<ApiState>,
    request: Result<Json<SetCustodians>, JsonRejection>,
) -> Result<Json<KeyReport>, ApiError> {
    let Json(request) =
        request.map_err(|error| ApiError::http(error.status(), error.body_text()))?;
    let control = state.clone();
    Ok(Json(state.change(async move { control.control().set_custodians(request).await }).await?))
}

/// Unlocks the custodian of this node. Over the Unix socket only.
#[utoipa::path(post, path = "/v1/keys/unlock", request_body = Unlock, responses(
    (status = 200, body = Unlocked),
    (status = 403, body = ErrorBody, description = "Asked over TCP"),
    (status = "default", body = ErrorBody),
))]
pub(super) async fn unlock_keys(
    State(state): State<ApiState>,
    user: Option<Extension<LocalUser>>,
    request: Result<Json<Unlock>, JsonRejection>,
) -> Result<Json<Unlocked>, ApiError> {
    if user.is_none() {
        let message = "a passphrase is taken over the node's Unix socket only, `--api unix:PATH`: \
                       anybody on the machine may listen on a TCP port";
        return Err(ApiError::http(StatusCode::FORBIDDEN, message));
    }
    // What could not be read is not told, for there may be a passphrase in it.
    let Json(request) = request.map_err(|error| {
        ApiError::http(error.status(), "the body is `{\"passphrase\": ...}`, of 1 to 1024 bytes")
    })?;
    let control = state.clone();
    Ok(Json(state.change(async move { control.control().unlock(request).await }).await?))
}

/// Which nodes are thought away.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VerifyQuery {
    without: Option<String>,
}

/// Has every custodian prove that it has its shares. Nothing of them is told.
#[utoipa::path(get, path = "/v1/keys/verify",
    params(("without" = Option<String>, Query, description = "Names of nodes to think away, with commas between them")),
    responses(
        (status = 200, body = VerifyReport),
        (status = "default", body = ErrorBody),
    ))]
pub(super) async fn verify_keys(
    state: State<ApiState>,
    query: Result<Query<VerifyQuery>, QueryRejection>,
) -> Result<Json<VerifyReport>, ApiError> {
    let Query(VerifyQuery { without }) =
        query.map_err(|error| ApiError::http(error.status(), error.body_text()))?;
    let without = without.iter().flat_map(|names| names.split(',')).map(str::to_owned).collect();
    state.read(state.control().verify_keys(without)).await
}

/// Whose log is meant.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AuditQuery {
    node: Option<String>,
}

/// The logs of custodians, and whether they hold together.
#[utoipa::path(get, path = "/v1/keys/audit",
    params(("node" = Option<String>, Query, description = "Name of a node; else all custodians")),
    responses(
        (status = 200, body = Vec<AuditReport>),
        (status = "default", body = ErrorBody),
    ))]
pub(super) async fn audit_keys(
    state: State<ApiState>,
    query: Result<Query<AuditQuery>, QueryRejection>,
) -> Result<Json<Vec<AuditReport>>, ApiError> {
    let Query(AuditQuery { node }) =
        query.map_err(|error| ApiError::http(error.status(), error.body_text()))?;
    state.read(state.control().audit_keys(node)).await
}
