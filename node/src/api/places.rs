//! Routes about nodes and what lies on them.

use super::error::{ApiError, ErrorBody};
use super::routes::{ApiState, volume_name};
use crate::control::{
    ChangeNode, MovesStatus, NodeFacts, PauseMoves, ReplaceNode, RevokeKeys, ScrubStatus,
    VolumeKeys, WhatIfReport,
};
use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::Deserialize;

fn node_name(name: Result<Path<String>, PathRejection>) -> Result<String, ApiError> {
    let Path(name) = name.map_err(|error| ApiError::http(error.status(), error.body_text()))?;
    Ok(name)
}

/// Changes weight, failure domain or drain of a node.
#[utoipa::path(post, path = "/v1/nodes/{name}", request_body = ChangeNode,
    params(("name" = String, Path, description = "Name of the node")),
    responses(
        (status = 200, body = NodeFacts, description = "Agreed; slots move as it asks"),
        (status = "default", body = ErrorBody),
    ))]
pub(super) async fn change_node(
    State(state): State<ApiState>,
    name: Result<Path<String>, PathRejection>,
    request: Result<Json<ChangeNode>, JsonRejection>,
) -> Result<Json<NodeFacts>, ApiError> {
    let name = node_name(name)?;
    let Json(request) =
        request.map_err(|error| ApiError::http(error.status(), error.body_text()))?;
    let control = state.clone();
    Ok(Json(state.change(async move { control.control.change_node(name, request).await }).await?))
}

/// Has a node take another one's place: weight, failure domain, and in the end what it holds.
#[utoipa::path(post, path = "/v1/nodes/{name}/replace", request_body = ReplaceNode,
    params(("name" = String, Path, description = "Name of the node that leaves")),
    responses(
        (status = 200, body = NodeFacts, description = "Agreed; it is drained, and can be removed when it \
            is empty"),
        (status = "default", body = ErrorBody),
    ))]
pub(super) async fn replace_node(
    State(state): State<ApiState>,
    name: Result<Path<String>, PathRejection>,
    request: Result<Json<ReplaceNode>, JsonRejection>,
) -> Result<Json<NodeFacts>, ApiError> {
    let name = node_name(name)?;
    let Json(request) =
        request.map_err(|error| ApiError::http(error.status(), error.body_text()))?;
    let control = state.clone();
    Ok(Json(state.change(async move { control.control.replace_node(name, request).await }).await?))
}

/// Removes a node that has been emptied and stopped.
#[utoipa::path(delete, path = "/v1/nodes/{name}",
    params(("name" = String, Path, description = "Name of the node")),
    responses(
        (status = 204, description = "Removed"),
        (status = "default", body = ErrorBody),
    ))]
pub(super) async fn remove_node(
    State(state): State<ApiState>,
    name: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, ApiError> {
    let name = node_name(name)?;
    let control = state.clone();
    state.change(async move { control.control.remove_node(name).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Has every group of a volume scrubbed.
#[utoipa::path(post, path = "/v1/volumes/{name}/scrub",
    params(("name" = String, Path, description = "Name of the volume")),
    responses(
        (status = 200, body = ScrubStatus, description = "Agreed; `due` tells how many are to come"),
        (status = "default", body = ErrorBody),
    ))]
pub(super) async fn scrub_volume(
    State(state): State<ApiState>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<ScrubStatus>, ApiError> {
    let name = volume_name(name)?;
    let control = state.clone();
    Ok(Json(state.change(async move { control.control.scrub_volume(name).await }).await?))
}

/// Has a volume get new keys: a new key epoch begins, and older records are sealed anew under it.
#[utoipa::path(post, path = "/v1/volumes/{name}/keys",
    params(("name" = String, Path, description = "Name of the volume")),
    responses(
        (status = 200, body = VolumeKeys, description = "Agreed; `wanted` until the key epoch begins"),
        (status = "default", body = ErrorBody),
    ))]
pub(super) async fn rotate_keys(
    State(state): State<ApiState>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<VolumeKeys>, ApiError> {
    let name = volume_name(name)?;
    let control = state.clone();
    Ok(Json(state.change(async move { control.control.rotate_keys(name).await }).await?))
}

/// Says that key epochs of a volume may have leaked: new keys are made if new records are under them, and what is
/// under them is sealed anew before anything else.
#[utoipa::path(post, path = "/v1/volumes/{name}/keys/revoke", request_body = RevokeKeys,
    params(("name" = String, Path, description = "Name of the volume")),
    responses(
        (status = 200, body = VolumeKeys, description = "Agreed; `revoked` until they have ended"),
        (status = "default", body = ErrorBody),
    ))]
pub(super) async fn revoke_keys(
    State(state): State<ApiState>,
    name: Result<Path<String>, PathRejection>,
    request: Result<Json<RevokeKeys>, JsonRejection>,
) -> Result<Json<VolumeKeys>, ApiError> {
    let name = volume_name(name)?;
    let Json(request) =
        request.map_err(|error| ApiError::http(error.status(), error.body_text()))?;
    let control = state.clone();
    let answer = async move { control.control.revoke_keys(name, request).await };
    Ok(Json(state.change(answer).await?))
}

/// Lets no slot begin to move, or lets them again.
#[utoipa::path(post, path = "/v1/moves", request_body = PauseMoves, responses(
    (status = 200, body = MovesStatus),
    (status = "default", body = ErrorBody),
))]
pub(super) async fn pause_moves(
    State(state): State<ApiState>,
    request: Result<Json<PauseMoves>, JsonRejection>,
) -> Result<Json<MovesStatus>, ApiError> {
    let Json(request) =
        request.map_err(|error| ApiError::http(error.status(), error.body_text()))?;
    let control = state.clone();
    Ok(Json(state.change(async move { control.control.pause_moves(request).await }).await?))
}

/// Which nodes are thought of.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WhatIfQuery {
    stop: String,
}

/// What would be if nodes were stopped.
#[utoipa::path(get, path = "/v1/what-if",
    params(("stop" = String, Query, description = "Names of nodes, with commas between them")),
    responses(
        (status = 200, body = WhatIfReport),
        (status = "default", body = ErrorBody),
    ))]
pub(super) async fn what_if(
    state: State<ApiState>,
    query: Result<Query<WhatIfQuery>, QueryRejection>,
) -> Result<Json<WhatIfReport>, ApiError> {
    let Query(WhatIfQuery { stop }) =
        query.map_err(|error| ApiError::http(error.status(), error.body_text()))?;
    let stop = stop.split(',').map(str::to_owned).collect();
    state.read(state.control().what_if(stop)).await
}
