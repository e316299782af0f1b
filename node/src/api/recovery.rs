//! The route that takes recovery shares. It is served over the Unix socket only.

use super::error::{ApiError, ErrorBody};
use super::routes::ApiState;
use crate::control::{RecoverKeys, RecoveryReport};
use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;

/// Opens every secret with recovery shares and deals it anew to custodians, or says what could be opened. Over the
/// Unix socket only.
#[utoipa::path(post, path = "/v1/keys/recover", request_body = RecoverKeys, responses(
    (status = 200, body = RecoveryReport),
    (status = "default", body = ErrorBody),
))]
pub(super) async fn recover_keys(
    State(state): State<ApiState>,
    request: Result<Json<RecoverKeys>, JsonRejection>,
) -> Result<Json<RecoveryReport>, ApiError> {
    // What is said of a body that makes no sense may have parts of it.
    let Json(request) = request.map_err(|error| {
        ApiError::http(error.status(), "that is no request with recovery shares")
    })?;
    let control = state.clone();
    Ok(Json(state.change(async move { control.control().recover_keys(request).await }).await?))
}

/// The same over TCP, which other users of the machine can listen to or stand in for.
pub(super) async fn refuse() -> ApiError {
    let message = "recovery shares are taken over the node's Unix socket only";
    ApiError::http(StatusCode::FORBIDDEN, message)
}
