//! What is served where:
//!
//! | path | answers |
//! |---|---|
//! | `GET /metrics` | all that is counted and measured, as Prometheus reads it |
//! | `GET /healthz` | 200 while the process can answer at all: whether to restart it |
//! | `GET /readyz` | 200 while every pipeline does its work, otherwise 503; a line for each pipeline: whether to wait for it |
//!
//! There is no way to change anything, and no secret to read; who may reach it is for the address to say.

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use millstream_core::Host;

use crate::{health, metrics};

/// The routes of the listener, for a server of one's own.
pub fn router(host: Host) -> Router {
    Router::new()
        .route("/metrics", get(exposition))
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .with_state(host)
}

async fn exposition(State(host): State<Host>) -> impl IntoResponse {
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::metrics(&host))
}
