//! The connector against a real Kafka: rebalances, crashes, gaps, kills. Tests named after bugs of other projects' say
//! whose.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod damaged;
mod ends;
mod gaps;
mod group;
mod lag;
mod letters;
mod once_later;
mod outage;
mod rebalances;
mod retries;
#[cfg(all(feature = "ssl", feature = "zstd"))]
mod secured;
mod slow;
mod stuck;
mod support;
mod transactions;
