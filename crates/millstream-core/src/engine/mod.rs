//! The engine: one pipeline from demand to settlement.
//!
//! The way of a message, by file: [`link`] and [`intake`] read it, [`ready`] and [`lanes`] keep it until its turn,
//! [`worker`] runs the processor on it, [`batcher`], [`shard`] and [`batch_worker`] the batch handler,
//! [`bisect`] finds the message at fault in a batch, [`settling`] tells the broker. [`outbox`], [`timers`],
//! [`breakers`] and [`adaptive`] stand beside it; [`hub`] is what they share, [`twins`] and [`sequence`] what was done
//! already or comes too early, [`fate`] what comes of a message, [`losses`] what happens when a lease is gone;
//! [`pipeline`] supervises and
//! drains.

mod adaptive;
#[cfg(test)]
mod adaptive_simulation;
mod balance;
mod batch_worker;
mod batcher;
#[cfg(test)]
mod batcher_model;
mod bisect;
mod breaker;
mod breakers;
mod budget;
mod cancelling;
mod counters;
mod drain;
mod elsewhere;
mod envelope;
mod fate;
mod fullness;
mod gate;
mod gradient;
mod guard;
mod histogram;
mod hub;
mod intake;
mod keyed;
mod lanes;
mod link;
mod losses;
mod outbox;
#[cfg(test)]
mod permit_tests;
mod pipeline;
mod places;
mod probes;
mod rare;
mod rate;
mod ready;
#[cfg(test)]
mod ready_model;
mod receipts;
mod restarts;
mod retry;
mod returning;
mod seat;
mod sentinels;
mod sequence;
mod settings;
mod settling;
mod shard;
#[cfg(test)]
mod shard_model;
mod shared_rate;
mod stage;
mod stall;
mod stores;
mod timers;
mod turns;
mod twins;
mod watchdog;
mod window;
mod worker;

pub(crate) use breaker::Runs;
pub use breaker::{BreakerState, OpenedBy};
pub(crate) use breakers::{Breakers, Named};
pub use counters::Counts;
pub use drain::DrainReport;
pub use sentinels::Sentinel;
pub use settings::Change;
pub use stall::Stall;

pub(crate) use batcher::{AnyBatcher, Batcher, Entrance, Entries};
pub(crate) use drain::Order;
pub(crate) use envelope::Envelope;
pub(crate) use guard::text_of;
pub(crate) use hub::Hub;
pub(crate) use pipeline::{End, Machine, Supervisor};
pub(crate) use retry::{longest_wait, patience};
pub(crate) use sequence::Sequence;
pub(crate) use settings::take_over;
pub(crate) use turns::waits_there;
pub(crate) use worker::Worker;
