//! Routes about custodians.

use super::error::{ApiError, ErrorBody};
use super::routes::ApiState;
use crate::control::{AuditReport, KeyReport, SetCustodians, VerifyReport};
use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Query, State};
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
