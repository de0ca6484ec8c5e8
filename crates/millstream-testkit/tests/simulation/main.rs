//! The engine under the simulation: evidence for P1 to P8.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod seeds;
