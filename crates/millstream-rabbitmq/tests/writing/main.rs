//! The writing side against real brokers.

#![allow(clippy::unwrap_used, reason = "in a test it is a failure")]

mod dial;
#[cfg(feature = "management")]
mod management;
mod retry;
mod sink;
mod tools;
