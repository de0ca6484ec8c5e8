//! The connector against ElasticMQ, through a proxy that counts its calls and spoils some.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bench;
mod fifo;
mod leases;
mod pipelines;
mod polling;
mod sending;
mod settling;
