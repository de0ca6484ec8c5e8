//! A rate limit that processes share: the contract of what keeps it ([`RateStore`]), and how turns are reckoned
//! ([`Bucket`]).
//!
//! The engine asks for the turns of a chunk's messages before it starts them, all keys in one call. The store answers by a
//! clock of its own, so that the clocks of processes do not matter.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;

use crate::dedup::OnStoreFailure;
use crate::future::BoxFuture;
use crate::rt::Duration;

/// What keeps a pipeline's rate limit for all processes that run it.
#[derive(Clone)]
pub struct SharedRateSpec {
    /// What counts.
    pub store: SharedRateStore,
    /// What happens while it cannot be asked. With [`Run`](OnStoreFailure::Run) each process keeps the whole limit for
    /// itself.
    pub on_store_failure: OnStoreFailure,
}

impl fmt::Debug for SharedRateSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedRateSpec")
            .field("on_store_failure", &self.on_store_failure)
            .finish_non_exhaustive()
    }
}

/// Keeps rate limits for several processes.
///
/// A key that has been idle must be forgotten: see [`Bucket::idle_at`].
pub trait RateStore: Send + Sync + 'static {
    /// Turns for the messages of each of these keys, in this order; no key is among them twice. What is told is taken, and
    /// stays so whatever becomes of the messages.
    ///
    /// # Errors
    /// When the store cannot be asked. The engine tries again later.
    ///
    /// # Cancel safety
    /// Must be cancel safe: it is dropped when it takes too long, or the pipeline drains. Turns may have been taken then.
    fn take<'a>(&'a self, asks: &'a [Ask]) -> BoxFuture<'a, Result<Vec<Turns>, RateError>>;
}

/// A store as pipelines hold it.
pub type SharedRateStore = Arc<dyn RateStore>;

impl fmt::Debug for dyn RateStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RateStore")
    }
}

/// Why a store could not be asked.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct RateError(pub String);

/// How fast the messages of a key may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Between two messages.
    pub each: Duration,
    /// How many may come at once after a quiet time.
    pub burst: NonZeroU32,
}

/// A question to a [`RateStore`].
#[derive(Clone, PartialEq, Eq)]
pub struct Ask {
    /// Whose limit it is; empty for the pipeline's own, and for messages without a key.
    pub key: Bytes,
    /// The limit, as the pipeline has it now.
    pub pace: Pace,
    /// How many messages there are.
    pub number: u32,
    /// Those whose turn is not now wait at the source and are asked for again, by whichever process gets them; whichever
    /// message of the key comes then has the turn. Otherwise this process keeps them, and does not ask again.
    pub returns: bool,
}

/// Without the key, which may name a customer.
impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ask")
            .field("pace", &self.pace)
            .field("number", &self.number)
            .field("returns", &self.returns)
            .finish_non_exhaustive()
    }
}

/// An answer of a [`RateStore`]: when messages of a key have their turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turns {
    /// So many have it now.
    pub now: u32,
    /// The first of the others has it after this time, and the rest follow evenly.
    pub wait: Duration,
}

/// For how long a turn is kept at least for a message that waits at the source: some count whole seconds, and so bring
/// back at once what has its turns in one, and some are late by a while.
pub(crate) const LATE: Duration = Duration::from_secs(2);

/// What is less than this of a message is an error of arithmetic.
const NOTHING: f64 = 1e-6;

/// The turns of one key, as a token bucket that gives out turns to come as well. A change of the limit takes hold with the next ask:
/// what was taken is counted in messages.
///
/// ```
/// use std::num::NonZeroU32;
/// use std::time::Duration;
/// use millstream_core::{Ask, Bucket, Pace};
///
/// let pace = Pace { each: Duration::from_millis(100), burst: NonZeroU32::new(2).unwrap() };
/// let ask = Ask { key: "a".into(), pace, number: 4, returns: false };
/// let mut bucket = Bucket::default();
/// let turns = bucket.take(&ask, 0);
/// assert_eq!((turns.now, turns.wait), (2, Duration::from_millis(100)));
/// assert_eq!(bucket.idle_at(pace.each), 400_000);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bucket {
    /// When the rest was so, in microseconds of any clock.
    pub at: u64,
    /// Turns that are taken and that time has not made up for yet; those above the burst are to come.
    pub taken: f64,
    /// Of them, turns of messages that wait at the source.
    pub waiting: f64,
}

impl Bucket {
    /// Takes turns at this time, in microseconds. Where a clock goes back, time counts from there on.
    pub fn take(&mut self, ask: &Ask, now: u64) -> Turns {
        let each = micros(ask.pace.each);
        let burst = f64::from(ask.pace.burst.get());
        let number = f64::from(ask.number);
        let elapsed = now.saturating_sub(self.at) as f64;
        self.at = now;
        self.taken = (self.taken - elapsed / each).max(0.0);
        // Of the turns that nobody came for, those of the last moments are kept, and a burst at least.
        let to_come = (self.taken - burst - NOTHING).max(0.0).ceil();
        let kept = (micros(LATE) / each).floor().max(burst);
        self.waiting = self.waiting.min(to_come + kept);
        let due = (self.waiting - to_come).max(0.0);
        let promised = number.min(due);
        self.waiting -= promised;
        let fresh = number - promised;
        let free = (burst - self.taken + NOTHING).floor().max(0.0).min(fresh);
        let first = (self.taken + free + 1.0 - burst) * each;
        self.taken += fresh;
        let later = fresh - free;
        if ask.returns {
            self.waiting += later;
        }
        Turns {
            now: (promised + free) as u32,
            wait: match later > 0.0 {
                true => Duration::from_micros(first.max(0.0).ceil() as u64),
                false => Duration::ZERO,
            },
        }
    }

    /// When it may be forgotten, in microseconds of the same clock: it is full by then, and nobody is late.
    pub fn idle_at(&self, each: Duration) -> u64 {
        let late = match self.waiting > 0.0 {
            true => micros(LATE),
            false => 0.0,
        };
        self.at
            .saturating_add((self.taken * micros(each) + late).ceil() as u64)
    }
}

fn micros(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e3
}
