//! The reading side against real brokers.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "in a test it is a failure"
)]

mod demand;
mod losses;
mod pipelines;
mod settlements;
mod suspects;
mod tools;
