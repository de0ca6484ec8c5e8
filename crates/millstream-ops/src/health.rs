//! Whether the process lives, and whether it is ready, as an orchestrator wants to know.
//!
//! *Alive* is whether a restart would help. A process that answers is alive, also with a pipeline that gave up or a
//! broker that is away: its other pipelines work on, and to restart it would only interrupt them. Whoever wants a
//! restart when a pipeline gives up says `on_give_up = "exit"`. A process whose threads are all blocked does not
//! answer, and is restarted for that.
//!
//! *Ready* is whether every pipeline does its work, which is what a rollout waits for and an alert watches. A paused
//! pipeline is ready: somebody wanted it so. One in which nothing moves that should, or in which a promise was found
//! broken, is degraded, paused or not.

use axum::extract::State;
use axum::http::StatusCode;
use millstream_core::{Condition, Host};

pub(crate) async fn alive() -> &'static str {
    "alive\n"
}

pub(crate) async fn ready(State(host): State<Host>) -> (StatusCode, String) {
    let mut all = true;
    let lines = host
        .pipelines()
        .map(|pipeline| {
            let condition = pipeline.status().condition;
            all &= is_ready(&condition);
            format!("{}: {condition}\n", pipeline.name())
        })
        .collect();
    let status = if all {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, lines)
}

fn is_ready(condition: &Condition) -> bool {
    match condition {
        Condition::Running | Condition::Paused => true,
        Condition::Starting
        | Condition::Degraded(_)
        | Condition::Draining
        | Condition::Ended
        | Condition::GaveUp(_) => false,
    }
}
