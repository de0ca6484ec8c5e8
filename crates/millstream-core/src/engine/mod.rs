//! The engine: one pipeline from demand to settlement.
//!
//! The way of a message, by file: [`link`] and [`intake`] read it, [`ready`] keeps it until its turn, in [`lanes`] or
//! [`unordered`], and [`parked`] between attempts, [`worker`] runs the processor on it and [`round`] hands over what came of that,
//! [`batcher`], [`shard`] and [`batch_worker`] run the batch handler, [`bisect`] finds the message at fault in a batch,
//! [`settling`] tells the broker. [`outbox`], [`timers`], [`breakers`] and [`adaptive`] stand beside it; [`hub`] is what they
//! share, [`twins`] and [`sequence`] what was done already or comes too early, [`fate`] what comes of a message, [`losses`]
//! what happens when a lease is gone; [`suspects`] run alone; [`pipeline`] supervises and drains.

mod adaptive;
#[cfg(test)]
mod adaptive_simulation;
mod any_batcher;
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
mod entrance;
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
mod parked;
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
mod round;
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
mod suspects;
mod timers;
mod turns;
mod twins;
mod unordered;
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

pub(crate) use any_batcher::AnyBatcher;
pub(crate) use batcher::Batcher;
pub(crate) use drain::Order;
pub(crate) use entrance::{Entrance, Entries};
pub(crate) use envelope::Envelope;
pub(crate) use guard::text_of;
pub(crate) use hub::Hub;
pub(crate) use pipeline::{End, Machine, Supervisor};
pub(crate) use retry::{longest_wait, patience};
pub(crate) use sequence::Sequence;
pub(crate) use settings::take_over;
pub(crate) use turns::waits_there;
pub(crate) use worker::Worker;
