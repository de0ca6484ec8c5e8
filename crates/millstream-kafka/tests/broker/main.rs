//! The connector against a real Kafka: rebalances, crashes, gaps, kills. Tests named after bugs of other projects' say
//! whose.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod gaps;
mod group;
mod outage;
mod stuck;
mod support;
mod transactions;
