//! The engine against a queue in memory, on paused time: each test tries to break a promise.

mod batching;
mod breaking;
mod draining;
mod isolation;
mod order;
mod processing;
mod settling;
mod supervision;
mod support;
mod suspects;
