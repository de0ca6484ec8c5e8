//! `check --connect` on real brokers: each finding with a setting that causes it, and none with one that does not.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod files;
mod kafka;
mod letters;
mod rabbitmq;
mod sqs;
#[cfg(test)]
mod support;
