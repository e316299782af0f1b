//! The route that makes tokens.

use super::error::{ApiError, ErrorBody};
use super::routes::ApiState;
use crate::control::{CreateToken, NewToken};
use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;

/// Makes a token with which a node can join. Only a node with the authority's key does.
#[utoipa::path(post, path = "/v1/tokens", request_body = CreateToken, responses(
    (status = 201, body = NewToken, description = "Made; its text is told only here"),
    (status = "default", body = ErrorBody),
))]
pub(super) async fn create_token(
    State(state): State<ApiState>,
    request: Result<Json<CreateToken>, JsonRejection>,
) -> Result<impl IntoResponse, ApiError> {
    let Json(request) =
        request.map_err(|error| ApiError::http(error.status(), error.body_text()))?;
    let control = state.clone();
    let new: NewToken =
        state.change(async move { control.control.create_token(request).await }).await?;
    Ok((StatusCode::CREATED, [(header::CACHE_CONTROL, "no-store")], Json(new)))
}
