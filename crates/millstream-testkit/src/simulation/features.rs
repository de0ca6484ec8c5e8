//! What of a pipeline a seed decides beside its plan: policies that few pipelines have.

use std::time::Duration;

use fastrand::Rng;
use millstream_core::OnStoreFailure;

use super::plan::{Kind, Letters, Order, Plan, Rate, ms, one_of};

/// Policies that few pipelines have.
#[derive(Clone, Debug, Default)]
pub(super) struct Features {
    /// Batches that fail as a whole are split.
    pub(super) bisects: bool,
    /// Of a thousand messages, so many fail every batch that they are in.
    pub(super) poison: u32,
    /// A message that is given up stops its partition, until somebody has mended it.
    pub(super) halts: bool,
    pub(super) deduplicates: Option<Deduplicates>,
    pub(super) sequence: Option<Numbers>,
}

/// Messages are published more than once, and are to be done once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deduplicates {
    pub(super) window: Duration,
    /// The store of ids may fail, and what happens then.
    pub(super) fails: bool,
    pub(super) on_store_failure: OnStoreFailure,
}

/// The messages of a key have numbers, some of which come late or never.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbers {
    /// Whether what comes behind a gap is held, or the gap reported only.
    pub(super) holds: bool,
    pub(super) held: usize,
    pub(super) wait: Duration,
}

impl Deduplicates {
    /// Whether each message is looked up, so that none runs that is known.
    pub(super) fn is_strict(self) -> bool {
        !self.fails || self.on_store_failure == OnStoreFailure::Wait
    }
}

impl Plan {
    /// Decides what is beside the plan. Chance of its own: the rest of a seed's plan does not depend on it.
    pub(super) fn decide(&mut self, seed: u64) {
        let rng = &mut Rng::with_seed(seed.wrapping_mul(0xd6e8_feb8_6659_fd93));
        let mut features = Features::default();
        if let Kind::Log { counts_ends, .. } = &mut self.broker {
            *counts_ends = rng.bool();
            features.halts = self.letters == Letters::Sink && !self.breaker && rng.u8(..4) > 0;
        }
        if features.halts {
            self.letters = Letters::Halt;
            self.spice.rejects = self.spice.rejects.max(20);
            // Nobody could mend it.
            self.spice.undecodable = 0;
        }
        if !self.batchers.is_empty() && rng.u8(..5) < 2 {
            features.bisects = true;
            // With a breaker, what fails for ever may keep it open for ever.
            if !self.breaker {
                features.poison = one_of([rng.u32(5..30), rng.u32(5..300)], rng);
            }
        }
        let by_key = matches!(self.ordering, Order::Key | Order::Header);
        if by_key && self.rate != Rate::Keys && rng.u8(..3) == 0 {
            features.sequence = Some(Numbers {
                holds: rng.u8(..4) > 0,
                held: 1_000.min(self.in_flight - 1),
                wait: ms(rng.u64(300..3_000)),
            });
        } else if rng.u8(..4) == 0 {
            features.deduplicates = Some(Deduplicates {
                window: one_of([Duration::from_secs(7_200), ms(rng.u64(100..3_000))], rng),
                fails: rng.bool(),
                on_store_failure: one_of([OnStoreFailure::Run, OnStoreFailure::Wait], rng),
            });
        }
        self.features = features;
    }
}
