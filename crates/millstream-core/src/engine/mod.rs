//! The engine: one pipeline from demand to settlement.
//!
//! The way of a message, by file: [`link`] and [`intake`] read it, [`ready`] and [`lanes`] keep it until its turn,
//! [`worker`] runs the processor on it, [`batcher`], [`shard`] and [`batch_worker`] the batch handler,
//! [`settling`] tells the broker. [`outbox`], [`timers`] and [`breaker`] stand beside it; [`hub`] is what they
//! share, [`fate`] what comes of a message, [`losses`] what happens when a lease is gone; [`pipeline`] supervises and
//! drains.

mod batch_worker;
mod batcher;
mod breaker;
mod counters;
mod drain;
mod elsewhere;
mod envelope;
mod fate;
mod gate;
mod guard;
mod histogram;
mod hub;
mod intake;
mod lanes;
mod link;
mod losses;
mod outbox;
mod pipeline;
mod places;
mod rare;
mod rate;
mod ready;
mod receipts;
mod retry;
mod returning;
mod seat;
mod settling;
mod shard;
mod stage;
mod timers;
mod worker;

pub(crate) use breaker::Breaker;
pub use breaker::BreakerState;
pub use counters::Counts;
pub use drain::DrainReport;

pub(crate) use batcher::{AnyBatcher, Batcher, Entrance, Entries};
pub(crate) use drain::Order;
pub(crate) use envelope::Envelope;
pub(crate) use guard::text_of;
pub(crate) use hub::Hub;
pub(crate) use pipeline::{End, Machine, Supervisor};
pub(crate) use retry::{longest_wait, patience};
pub(crate) use worker::Worker;
