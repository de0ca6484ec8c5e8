//! The engine against a queue in memory, on paused time: each test tries to break a promise.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod batching;
mod breaking;
mod draining;
mod dropping;
mod halting;
mod isolation;
mod measuring;
mod order;
mod processing;
mod redelivery;
mod settling;
mod supervision;
mod support;
mod suspects;
