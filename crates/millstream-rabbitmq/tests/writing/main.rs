//! The writing side against real brokers.

#![allow(clippy::unwrap_used, reason = "in a test it is a failure")]

#[path = "../common/mod.rs"]
mod common;
mod dial;
#[cfg(feature = "management")]
mod management;
mod retry;
mod silence;
mod sink;
mod tools;
