//! How much a batcher holds, and when intake waits for it (P4, P5): [`Fullness`].
//!
//! What enters is counted before the batcher's lock is taken, what leaves is counted under it, and whether the batcher is
//! full is decided under it by whoever has counted. So whoever comes last sees what all others have counted.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::rt::{self, Duration, Instant};
use crate::spec::Limits;

/// How long a batcher may be full, with no batch ending, before the others go on without it (P5).
const STUCK_AFTER: Duration = Duration::from_secs(1);

/// What a batcher holds, and what it may. Since when it has been full stands under its lock.
#[derive(Debug)]
pub(crate) struct Fullness {
    held: AtomicUsize,
    share: AtomicUsize,
    stuck: AtomicBool,
}

impl Fullness {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            held: AtomicUsize::new(0),
            share: AtomicUsize::new(share(limits)),
            stuck: AtomicBool::new(false),
        }
    }

    /// From now on it may hold what these give it.
    pub(crate) fn set(&self, limits: Limits) {
        self.share.store(share(limits), Ordering::Relaxed);
    }

    /// Messages in it and on their way into it.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Acquire)
    }

    /// Whether no batch has ended for long while it was full.
    pub(crate) fn is_stuck(&self) -> bool {
        self.stuck.load(Ordering::Acquire)
    }

    /// So many are on their way into it.
    pub(crate) fn enter(&self, messages: usize) {
        self.held.fetch_add(messages, Ordering::AcqRel);
    }

    /// So many of those were not let in.
    pub(crate) fn turned_away(&self, messages: usize) {
        self.held.fetch_sub(messages, Ordering::AcqRel);
    }

    /// Whether it is full since now. To be asked under the lock, by whoever has entered.
    pub(crate) fn fills(&self, full: &mut Option<Instant>) -> bool {
        let fills = full.is_none() && !self.is_stuck() && self.held() >= self.share.load(Ordering::Relaxed);
        if fills {
            *full = Some(rt::now());
        }
        fills
    }

    /// So many have left; under the lock. Whether it was full and is no more.
    pub(crate) fn leave(&self, full: &mut Option<Instant>, gone: usize) -> bool {
        let held = self.held.fetch_sub(gone, Ordering::AcqRel) - gone;
        if gone > 0 {
            self.stuck.store(false, Ordering::Release);
        }
        let opens = full.is_some() && held < self.share.load(Ordering::Relaxed);
        if opens {
            *full = None;
        } else if gone > 0
            && let Some(since) = full
        {
            *since = rt::now();
        }
        opens
    }

    /// It has been full since then; under the lock. If that is long enough, it is stuck, and full no more; else this is
    /// when to look again.
    pub(crate) fn give_up(&self, full: &mut Option<Instant>, since: Instant) -> Option<Instant> {
        let then = since + STUCK_AFTER;
        if rt::now() < then {
            return Some(then);
        }
        self.stuck.store(true, Ordering::Release);
        *full = None;
        None
    }
}

/// How many messages a batcher may hold before intake waits for it.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of a usize"
)]
fn share(limits: Limits) -> usize {
    ((limits.in_flight.get() as f64 * limits.per_batcher) as usize).max(1)
}
