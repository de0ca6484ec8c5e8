//! Fault tests: processes that are killed, that kill themselves, that hang, that hold all they may.
//!
//! Each needs the machine for itself: figures of two at once mean nothing.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod blows;
mod breaker;
mod culprit;
mod drain;
mod fates;
mod kafka_crew;
mod kafka_exactly_once;
mod kafka_faults;
mod kafka_topic;
mod memory;
mod place;
mod rabbit_faults;
mod sqlite_kills;
mod sqlite_twins;
mod sqs_crew;
mod sqs_faults;
mod stores;
mod tenants;

use parking_lot::{Mutex, MutexGuard};

/// The machine, for one test at a time.
static MACHINE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    MACHINE.lock()
}
