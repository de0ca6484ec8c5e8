//! The reading side against real brokers.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "in a test it is a failure"
)]

#[path = "../common/mod.rs"]
mod common;
mod demand;
mod letters;
mod losses;
mod pipelines;
mod priorities;
mod settlements;
mod streams;
mod suspects;
mod tools;
