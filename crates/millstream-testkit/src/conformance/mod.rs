//! One suite for every connector, driven by what the connector declares.
//!
//! The cases are the sixteen of Watermill's Pub/Sub suite, six of Benthos' stream suite, and those of Millstream's
//! own promises that neither has: drain, stale generations, redelivery counts, order by key, delays, bounds. Each
//! [`Case`] says where it comes from and which promise it guards (P1 to P8 of `ARCHITECTURE.md`). A case that is
//! about a connector alone works on its [`Source`](millstream_core::Source),
//! [`Acknowledger`](millstream_core::Acknowledger) and [`Sink`](millstream_core::Sink); one that is about what a
//! user sees runs a whole pipeline on a [`Host`](millstream_core::Host).
//!
//! # Time
//!
//! Brokers are real and so is time: whatever shall happen is waited for as a condition, with a deadline of a
//! minute. That nothing happens can only be believed after a while: 100 milliseconds, as in Watermill.
//!
//! # The page
//!
//! [`Report`] prints a row per case. [`page::update`] keeps a table of several reports in a Markdown page, a column
//! for each connector, so that each connector's column can come from a test run of its own.

mod cases;
mod features;
mod gauge;
pub mod page;
mod pipe;
mod publisher;
mod reader;
mod report;
mod runner;
mod scale;
mod subject;
mod subscribers;
mod tally;
mod trial;

pub use cases::Case;
pub use features::{Feature, Features};
pub use report::{Report, Row, Verdict};
pub use runner::{cases, run, run_one};
pub use scale::Scale;
pub use subject::{Place, Rejected, Subject};
