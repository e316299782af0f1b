//! The routes: what is asked, checked, handed to [`Control`], and answered.

use super::contents::{volume_data, volume_image};
use super::custody::{audit_keys, set_custodians, unlock_keys, verify_keys};
use super::error::{ApiError, ErrorBody};
use super::places::{
    change_node, pause_moves, remove_node, replace_node, revoke_keys, rotate_keys, scrub_volume,
    what_if,
};
use super::tokens::create_token;
use super::{metrics, openapi, recovery};
use crate::cluster_file::ClusterFile;
use crate::control::{
    Answer, Control, ControlError, CreateVolume, ErrorKind, KeyReport, NodeFacts, StatusReport,
    VolumeDetail, VolumeFacts, WhyReport,
};
use crate::size::VolumeSize;
use crate::volume_spec;
use axum::body::Body;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Deserialize;
use smalti_storage::ids::VolumeId;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

/// No request has a reason to be larger.
const BODY_BYTES_MAX: usize = 64 << 10;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Facts come from the node's own memory, but for a short look at custodians.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Pieces of volumes' contents in memory, of clients that take them or not.
const PIECES_MAX: usize = 4;
/// Longer than a client that takes nothing is waited for.
const PIECE_TIMEOUT: Duration = Duration::from_secs(70);
/// A change waits for the metadata group, which may be electing a leader.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(60);

/// What the routes work with.
#[derive(Clone)]
pub struct ApiState {
    pub(super) control: Arc<dyn Control>,
    local_cluster: Option<PathBuf>,
    changes: TaskTracker,
    pieces: Arc<Semaphore>,
}

impl fmt::Debug for ApiState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiState").field("local_cluster", &self.local_cluster).finish()
    }
}

impl ApiState {
    /// Routes to `control`. Changes of volumes are noted in `cluster.json` of `local_cluster`.
    /// They run on `changes`, so a shutdown can wait for them.
    pub fn new(
        control: Arc<dyn Control>,
        local_cluster: Option<PathBuf>,
        changes: TaskTracker,
    ) -> Self {
        let pieces = Arc::new(Semaphore::new(PIECES_MAX));
        Self { control, local_cluster, changes, pieces }
    }

    /// Waits for leave to hold a piece of a volume's contents for a client.
    pub(super) async fn piece(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let piece = Arc::clone(&self.pieces).acquire_owned();
        let late = |_| ControlError::new(ErrorKind::Timeout, "others take their answers slowly");
        let piece = tokio::time::timeout(PIECE_TIMEOUT, piece).await.map_err(late)?;
        Ok(piece.map_err(|error| ControlError::new(ErrorKind::Internal, error))?)
    }

    /// The node.
    pub(super) fn control(&self) -> &dyn Control {
        self.control.as_ref()
    }

    pub(super) async fn read<'a, T>(&self, answer: Answer<'a, T>) -> Result<Json<T>, ApiError> {
        let late = |_| ControlError::new(ErrorKind::Timeout, "the node did not answer in time");
        Ok(Json(tokio::time::timeout(READ_TIMEOUT, answer).await.map_err(late)??))
    }

    /// Runs a change to its end even if the client goes away: half a change is what nobody could
    /// reason about.
    pub(super) async fn change<T: Send + 'static>(
        &self,
        change: impl Future<Output = Result<T, ControlError>> + Send + 'static,
    ) -> Result<T, ApiError> {
        let late = |_| {
            ControlError::new(ErrorKind::Timeout, "the change has not ended in time and goes on")
        };
        let task = self.changes.spawn(change);
        let ended = tokio::time::timeout(CHANGE_TIMEOUT, task).await.map_err(late)?;
        let lost = |error| {
            tracing::error!(%error, "a change ended in a panic");
            ControlError::new(ErrorKind::Internal, "the change failed; the node's log says more")
        };
        Ok(ended.map_err(lost)??)
    }

    /// The volume is what it is whether or not a file says so: a failure is only logged.
    async fn note_volume(&self, name: String, exists: bool) {
        let Some(dir) = self.local_cluster.clone() else { return };
        let note = move || ClusterFile::note_volume(&dir, &name, exists);
        let noted = tokio::task::spawn_blocking(note).await;
        if let Err(error) = noted.map_err(anyhow::Error::from).flatten() {
            tracing::warn!(error = format!("{error:#}"), "cluster.json was not kept current");
        }
    }
}

/// Whoever asks has come by the Unix socket, which only the node's own user can open.
#[derive(Clone, Copy, Debug)]
pub struct LocalUser;

/// All routes. Those that are for the node's own user take requests only that bear [`LocalUser`].
pub fn router(state: ApiState) -> Router {
    Router::new()
        .route("/v1/keys/recover", post(recovery::recover_keys))
        .route("/v1/status", get(status))
        .route("/v1/why", get(why))
        .route("/v1/volumes", get(volumes).post(create_volume))
        .route("/v1/volumes/{name}", get(volume).delete(delete_volume))
        .route("/v1/volumes/{name}/data", get(volume_data))
        .route("/v1/volumes/{name}/image", get(volume_image))
        .route("/v1/volumes/{name}/scrub", post(scrub_volume))
        .route("/v1/volumes/{name}/keys", post(rotate_keys))
        .route("/v1/volumes/{name}/keys/revoke", post(revoke_keys))
        .route("/v1/nodes", get(nodes))
        .route("/v1/nodes/{name}", post(change_node).delete(remove_node))
        .route("/v1/nodes/{name}/replace", post(replace_node))
        .route("/v1/tokens", post(create_token))
        .route("/v1/moves", post(pause_moves))
        .route("/v1/what-if", get(what_if))
        .route("/v1/keys", get(keys))
        .route("/v1/keys/verify", get(verify_keys))
        .route("/v1/keys/audit", get(audit_keys))
        .route("/v1/keys/unlock", post(unlock_keys))
        .route("/v1/custodians", post(set_custodians))
        .route("/metrics", get(metrics_text))
        .route("/openapi.json", get(async || Json(openapi::document())))
        .fallback(async || ApiError::http(StatusCode::NOT_FOUND, "there is no such path"))
        .method_not_allowed_fallback(async || {
            ApiError::http(StatusCode::METHOD_NOT_ALLOWED, "the path does not take this method")
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn(body_in_time))
        .with_state(state)
}

/// A body that does not come holds one of the connections that there are.
async fn body_in_time(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    // One byte more, so that whoever looks at the body sees that it is too large.
    let body = Limited::new(body, BODY_BYTES_MAX + 1).collect();
    let refused = match tokio::time::timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(body)) => {
            return next.run(Request::from_parts(parts, Body::from(body.to_bytes()))).await;
        }
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let message = format!("a body has at most {BODY_BYTES_MAX} bytes");
            ApiError::http(StatusCode::PAYLOAD_TOO_LARGE, message)
        }
        Ok(Err(error)) => ApiError::http(StatusCode::BAD_REQUEST, error),
        Err(_) => ApiError::http(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"),
    };
    refused.into_response()
}

/// Health in short.
#[utoipa::path(get, path = "/v1/status", responses(
    (status = 200, body = StatusReport),
    (status = "default", body = ErrorBody),
))]
pub(super) async fn status(state: State<ApiState>) -> Result<Json<StatusReport>, ApiError> {
    state.read(state.control.status()).await
}

/// Why health is not `ok`.
#[utoipa::path(get, path = "/v1/why", responses(
    (status = 200, body = WhyReport),
    (status = "default", body = ErrorBody),
))]
pub(super) async fn why(state: State<ApiState>) -> Result<Json<WhyReport>, ApiError> {
    state.read(state.control.why()).await
}

/// Every volume.
#[utoipa::path(get, path = "/v1/volumes", responses(
    (status = 200, body = Vec<VolumeFacts>),
    (status = "default", body = ErrorBody),
))]
pub(super) async fn volumes(state: State<ApiState>) -> Result<Json<Vec<VolumeFacts>>, ApiError> {
    state.read(state.control.volumes()).await
}

/// Makes a volume.
#[utoipa::path(post, path = "/v1/volumes", request_body = CreateVolume, responses(
    (status = 201, body = VolumeDetail),
    (status = "default", body = ErrorBody),
))]
pub(super) async fn create_volume(
    State(state): State<ApiState>,
    request: Result<Json<CreateVolume>, JsonRejection>,
) -> Result<(StatusCode, Json<VolumeDetail>), ApiError> {
    let Json(request) =
        request.map_err(|error| ApiError::http(error.status(), error.body_text()))?;
    check(&request)?;
    let name = request.name.clone();
    let control = state.clone();
    let detail = state
        .change(async move {
            let detail = control.control.create_volume(request).await?;
            control.note_volume(name, true).await;
            Ok(detail)
        })
        .await?;
    Ok((StatusCode::CREATED, Json(detail)))
}

fn check(request: &CreateVolume) -> Result<(), ControlError> {
    volume_spec::check_name(&request.name).map_err(ControlError::invalid)?;
    VolumeSize::new(request.size).map_err(ControlError::invalid)?;
    volume_spec::given(request.data, request.parity).map_err(ControlError::invalid)?;
    if let Some(bytes) = request.shard_size {
        volume_spec::check_shard_size(bytes).map_err(ControlError::invalid)?;
    }
    Ok(())
}

/// One volume and its placement.
#[utoipa::path(get, path = "/v1/volumes/{name}",
    params(("name" = String, Path, description = "Name of the volume")),
    responses(
        (status = 200, body = VolumeDetail),
        (status = "default", body = ErrorBody),
    ))]
pub(super) async fn volume(
    state: State<ApiState>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<VolumeDetail>, ApiError> {
    let name = volume_name(name)?;
    state.read(state.control.volume(name)).await
}

/// A name that no volume can have is not found, whatever else is wrong with it.
pub(super) fn volume_name(name: Result<Path<String>, PathRejection>) -> Result<String, ApiError> {
    let Path(name) = name.map_err(|error| ApiError::http(error.status(), error.body_text()))?;
    if volume_spec::check_name(&name).is_err() {
        let error = ApiError::http(StatusCode::NOT_FOUND, "there is no volume of that name");
        return Err(error);
    }
    Ok(name)
}

/// Which volume is meant, beyond its name.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeleteQuery {
    id: VolumeId,
    #[serde(default)]
    force: bool,
}

/// Removes a volume, provided that the name still stands for the volume with that identity and no client is
/// attached to it.
#[utoipa::path(delete, path = "/v1/volumes/{name}",
    params(
        ("name" = String, Path, description = "Name of the volume"),
        ("id" = String, Query, description = "Its identity, as listed"),
        ("force" = Option<bool>, Query, description = "Though clients are attached: they get errors from then on"),
    ),
    responses(
        (status = 204, description = "Removed"),
        (status = "default", body = ErrorBody),
    ))]
pub(super) async fn delete_volume(
    State(state): State<ApiState>,
    name: Result<Path<String>, PathRejection>,
    query: Result<Query<DeleteQuery>, QueryRejection>,
) -> Result<StatusCode, ApiError> {
    let name = volume_name(name)?;
    let Query(DeleteQuery { id, force }) =
        query.map_err(|error| ApiError::http(error.status(), error.body_text()))?;
    let control = state.clone();
    state
        .change(async move {
            control.control.delete_volume(name.clone(), id, force).await?;
            control.note_volume(name, false).await;
            Ok(())
        })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Every node.
#[utoipa::path(get, path = "/v1/nodes", responses(
    (status = 200, body = Vec<NodeFacts>),
    (status = "default", body = ErrorBody),
))]
pub(super) async fn nodes(state: State<ApiState>) -> Result<Json<Vec<NodeFacts>>, ApiError> {
    state.read(state.control.nodes()).await
}

/// Custody and key epochs. No key.
#[utoipa::path(get, path = "/v1/keys", responses(
    (status = 200, body = KeyReport),
    (status = "default", body = ErrorBody),
))]
pub(super) async fn keys(state: State<ApiState>) -> Result<Json<KeyReport>, ApiError> {
    state.read(state.control.keys()).await
}

/// The status in the text format of Prometheus.
#[utoipa::path(get, path = "/metrics", responses(
    (status = 200, body = String, content_type = "text/plain"),
    (status = "default", body = ErrorBody),
))]
pub(super) async fn metrics_text(state: State<ApiState>) -> Result<impl IntoResponse, ApiError> {
    let Json(report) = state.read(state.control.status()).await?;
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    Ok((kind, metrics::text(&report)))
}
