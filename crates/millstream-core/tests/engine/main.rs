//! The engine against a queue in memory, on paused time: each test tries to break a promise.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod adapting;
mod batching;
mod bisecting;
mod breaking;
mod changing;
mod dependencies;
mod draining;
mod dropping;
mod ending;
mod fairness;
mod halting;
mod idling;
mod isolation;
mod live;
mod measuring;
mod order;
mod probes;
mod probing;
mod processing;
mod redelivery;
mod resizing;
mod retrying;
mod revoking;
mod sequences;
mod settling;
mod sharing;
mod storing;
mod supervision;
mod support;
mod suspects;
mod twins;
mod watching;
