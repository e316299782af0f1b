//! The OpenAPI document, gathered from the routes.

use super::{contents, custody, places, recovery, routes, tokens};
use utoipa::OpenApi;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Smalti control API",
        description = "Facts about a cluster, and changes to its volumes. Served by every node.",
    ),
    paths(
        routes::status,
        routes::why,
        routes::volumes,
        routes::create_volume,
        routes::volume,
        routes::delete_volume,
        contents::volume_data,
        contents::volume_image,
        routes::nodes,
        places::change_node,
        places::replace_node,
        places::remove_node,
        tokens::create_token,
        places::pause_moves,
        places::scrub_volume,
        places::rotate_keys,
        places::revoke_keys,
        places::what_if,
        routes::keys,
        custody::set_custodians,
        custody::verify_keys,
        custody::audit_keys,
        custody::unlock_keys,
        recovery::recover_keys,
        routes::metrics_text,
    )
)]
struct Document;

/// The document.
pub fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}
