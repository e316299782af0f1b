//! The route that takes recovery shares. It is served over the Unix socket only.

use super::error::{ApiError, ErrorBody};
use super::routes::{ApiState, LocalUser};
use crate::control::{RecoverKeys, RecoveryReport};
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::{Extension, Json};

/// Opens every secret with recovery shares and deals it anew to custodians, or says what could be opened. Over the
/// Unix socket only.
#[utoipa::path(post, path = "/v1/keys/recover", request_body = RecoverKeys, responses(
    (status = 200, body = RecoveryReport),
    (status = "default", body = ErrorBody),
))]
pub(super) async fn recover_keys(
    State(state): State<ApiState>,
    user: Option<Extension<LocalUser>>,
    request: Result<Json<RecoverKeys>, JsonRejection>,
) -> Result<Json<RecoveryReport>, ApiError> {
    if user.is_none() {
        let message = "recovery shares are taken over the node's Unix socket only, `--api unix:PATH`: anybody on \
                       the machine may listen on a TCP port";
        return Err(ApiError::http(StatusCode::FORBIDDEN, message));
    }
    // What is said of a body that makes no sense may have parts of it.
    let Json(request) = request.map_err(|error| {
        ApiError::http(error.status(), "that is no request with recovery shares")
    })?;
    let control = state.clone();
    Ok(Json(state.change(async move { control.control().recover_keys(request).await }).await?))
}
