//! The engine under the simulation: evidence for P1 to P8.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod mutants;
#[path = "../../../../tests/src/scale.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the tests of brokers")]
mod scale;
mod seeds;
