//! Bisecting: what failed as a whole is run again in halves, until the message at fault stands alone.
//!
//! The parts of one batch are run in its order, one after the other where that matters (P3): what follows a part waits
//! until that part has an outcome. A run of several that fails counts no attempt and feeds no breaker, since it says
//! which messages are in doubt and not which one failed. Each message has one outcome: that of the run it succeeds in,
//! or fails in alone.
//!
//! Where everything fails, the messages are not to blame. After so many failed runs in a row that one message at fault
//! cannot explain them, the search ends: what is left of the batch counts one attempt and waits together. Only what
//! would then be given up goes on, message by message, so that none is given up for its neighbour.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::shard::Closed;
use crate::mutants::{Mutant, mutant};

/// Failed runs in a row, beyond those that lead to one message, that end the search.
const MORE: u32 = 4;

/// What the parts of one batch share.
#[derive(Debug)]
pub(crate) struct Split {
    /// Failed runs since one of its parts succeeded.
    in_a_row: AtomicU32,
    most: u32,
}

impl Split {
    fn of(messages: usize) -> Self {
        Self {
            in_a_row: AtomicU32::new(0),
            most: usize::BITS - messages.leading_zeros() + MORE,
        }
    }

    /// A part of it has succeeded: what it needs is there.
    pub(crate) fn succeeded(&self) {
        self.in_a_row.store(0, Ordering::Relaxed);
    }

    /// Counts a failed run. Says whether that was one too many.
    fn failed(&self) -> bool {
        self.in_a_row.fetch_add(1, Ordering::Relaxed) + 1 >= self.most
    }
}

impl<T> Closed<T> {
    /// What to run in place of a batch or part that failed as a whole; the batch itself where nothing is and its failure
    /// is to be decided on, which includes one message alone. `rest` takes the parts that still wait; `is_last` says
    /// whether messages would be given up.
    pub(crate) fn bisect(
        mut self,
        is_last: impl Fn(&Self) -> bool,
        rest: impl FnOnce(&Arc<Split>) -> Vec<Self>,
    ) -> Result<Vec<Self>, Self> {
        let split = self
            .split
            .get_or_insert_with(|| Arc::new(Split::of(self.envelopes.len())));
        let split = Arc::clone(split);
        let hopeless = split.failed();
        if self.len() == 1 || (self.len() == 2 && mutant(Mutant::NeighbourBlamed)) {
            return Err(self);
        }
        if !hopeless {
            let second = self.split_off(self.len() / 2);
            return Ok(vec![self, second]);
        }
        for part in rest(&split) {
            self.envelopes.extend(part.envelopes);
            self.items.extend(part.items);
        }
        if is_last(&self) {
            return Ok(self.into_singles());
        }
        Err(self)
    }

    fn split_off(&mut self, at: usize) -> Self {
        Self {
            key: self.key.clone(),
            items: self.items.split_off(at),
            envelopes: self.envelopes.split_off(at),
            by: self.by,
            runs: self.runs,
            split: self.split.clone(),
        }
    }

    fn into_singles(mut self) -> Vec<Self> {
        let mut singles = VecDeque::with_capacity(self.len());
        while self.len() > 1 {
            singles.push_front(self.split_off(self.len() - 1));
        }
        singles.push_front(self);
        singles.into()
    }
}
