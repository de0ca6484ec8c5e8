//! Probes: the messages that run, one at a time, while breakers are half open, and by which rounds they have their turn.
//!
//! A [`Probe`] is a value that goes with its message through the engine, from the take to the end of its run or its batch.
//! Wherever it is dropped, the probe has ended: no way that a message may go holds the next one back.

use std::sync::Arc;

use super::breakers::Breakers;
use crate::rt::{Duration, Instant};

/// What runs have begun with.
#[derive(Debug, Default)]
pub(crate) struct Permit {
    /// The era of the pipeline's own breaker in which they began: in another they say nothing.
    pub(crate) era: u64,
    /// The one run is a probe.
    pub(crate) probe: Option<Box<Probe>>,
}

/// A message probes. Dropped, it does no more: another may.
#[derive(Debug)]
pub(crate) struct Probe {
    pub(super) breakers: Arc<Breakers>,
    pub(super) number: u64,
}

impl Probe {
    /// Whether no other has begun since.
    pub(super) fn is_current(&self) -> bool {
        self.breakers.is_running(self.number)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.breakers.probe_over(self.number);
    }
}

/// Whose turn it is to probe.
#[derive(Debug)]
pub(super) struct Probes {
    /// The probe that runs, by its number, and until when it holds others back.
    pub(super) running: Option<(u64, Instant)>,
    /// Counts probes.
    pub(super) number: u64,
    /// Counts rounds, from one.
    pub(super) round: u32,
    /// All that might probe are doubtful.
    pub(super) ends_round: bool,
    /// Until when no doubtful one probes.
    pub(super) fetches_until: Option<Instant>,
}

impl Default for Probes {
    fn default() -> Self {
        Self {
            running: None,
            number: 0,
            round: 1,
            ends_round: false,
            fetches_until: None,
        }
    }
}

impl Probes {
    /// None is doubtful any more.
    pub(super) fn next_round(&mut self) {
        self.round = self.round.wrapping_add(1).max(1);
        self.ends_round = false;
        self.fetches_until = None;
    }

    /// Whether another may probe: one that takes too long does not hold it back.
    pub(super) fn is_free(&self, now: Instant) -> bool {
        self.running.is_none_or(|(_, until)| now >= until)
    }

    /// One probes from now on, and holds others back for as long, whatever breakers do meanwhile; its number.
    pub(super) fn begin(&mut self, now: Instant, patience: Duration) -> u64 {
        self.number += 1;
        self.running = Some((self.number, now + patience));
        self.number
    }
}
