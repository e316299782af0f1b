//! Contents of volumes over the API: a piece of one, or all of it as a stream.

use super::error::{ApiError, ErrorBody};
use super::patient::Patient;
use super::routes::{ApiState, volume_name};
use crate::control::{ControlError, Export};
use axum::body::{Body, Bytes};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::IntoResponse;
use serde::Deserialize;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio_util::io::ReaderStream;

/// Most bytes of one answer; a client with more to read asks again, or takes the image.
const DATA_BYTES_MAX: u64 = 32 << 20;
/// Bytes read ahead of a client that takes an image.
const IMAGE_BYTES_AHEAD: usize = 4 << 20;

/// Bytes of a piece on their way to a client.
const PIECE_BYTES_AHEAD: usize = 256 << 10;

/// A client that takes nothing for so long keeps the volume's keys in memory for nothing.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

const CONTENTS: [(header::HeaderName, &str); 2] =
    [(header::CONTENT_TYPE, "application/octet-stream"), (header::CACHE_CONTROL, "no-store")];

/// Which bytes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DataQuery {
    offset: u64,
    size: u64,
}

/// Bytes of a volume, at most 32 MiB at once.
#[utoipa::path(get, path = "/v1/volumes/{name}/data",
    params(
        ("name" = String, Path, description = "Name of the volume"),
        ("offset" = u64, Query, description = "First byte"),
        ("size" = u64, Query, description = "Number of bytes"),
    ),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = "default", body = ErrorBody),
    ))]
pub(super) async fn volume_data(
    State(state): State<ApiState>,
    name: Result<Path<String>, PathRejection>,
    query: Result<Query<DataQuery>, QueryRejection>,
) -> Result<impl IntoResponse, ApiError> {
    let name = volume_name(name)?;
    let Query(DataQuery { offset, size }) =
        query.map_err(|error| ApiError::http(error.status(), error.body_text()))?;
    if size > DATA_BYTES_MAX {
        let text = format!("{size} bytes are more than the {DATA_BYTES_MAX} of one answer");
        return Err(ControlError::invalid(text).into());
    }
    let held = state.piece().await?;
    let bytes: Bytes = state.control().read_volume(name, offset, size).await?;
    let length = [(header::CONTENT_LENGTH, bytes.len().to_string())];
    let (out, body) = tokio::io::duplex(PIECE_BYTES_AHEAD);
    tokio::spawn(async move {
        let mut out = Patient::new(out, STALL_TIMEOUT);
        if let Err(error) = out.write_all(&bytes).await {
            tracing::debug!(%error, "a client did not take its answer");
        }
        drop((bytes, held));
    });
    Ok((CONTENTS, length, Body::from_stream(ReaderStream::with_capacity(body, 256 << 10))))
}

/// All of a volume, in order. A stream that ends before its announced length is not the volume:
/// the reading failed on the way.
#[utoipa::path(get, path = "/v1/volumes/{name}/image",
    params(("name" = String, Path, description = "Name of the volume")),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = "default", body = ErrorBody),
    ))]
pub(super) async fn volume_image(
    State(state): State<ApiState>,
    name: Result<Path<String>, PathRejection>,
) -> Result<impl IntoResponse, ApiError> {
    let name = volume_name(name)?;
    // What keeps the volume from being read shows here, while there is an answer to say it in.
    let Export { size, run } = state.control().export_volume(name.clone()).await?;
    let (out, body) = tokio::io::duplex(IMAGE_BYTES_AHEAD);
    tokio::spawn(async move {
        // The client sees a stream that is too short.
        if let Err(error) = run(Box::new(Patient::new(out, STALL_TIMEOUT))).await {
            tracing::warn!(volume = name, %error, "the export ended early");
        }
    });
    let length = [(header::CONTENT_LENGTH, size.to_string())];
    Ok((CONTENTS, length, Body::from_stream(ReaderStream::with_capacity(body, 256 << 10))))
}
