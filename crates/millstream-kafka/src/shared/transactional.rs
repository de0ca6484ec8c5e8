//! What transactions ask of the assignments: which deliveries still stand, what is to be committed with their outputs,
//! and that it was.

use millstream_core::{OriginId, Ticket};
use rustc_hash::{FxHashMap, FxHashSet};

use super::{Assignment, Commit, Shared};

/// What there is of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It is this member's, and unsettled.
    Open,
    /// It is settled: its output was committed, though whoever wrote it may not have heard of that.
    Settled,
    /// Its partition was taken away: whoever has it now runs it again.
    Stale,
}

fn standing(assignment: Option<&Assignment>, ticket: &Ticket) -> Standing {
    match assignment {
        Some(assignment) if assignment.generation == ticket.generation => {
            match assignment.offsets.out(ticket.sequence) {
                Some(_) => Standing::Open,
                None => Standing::Settled,
            }
        }
        _ => Standing::Stale,
    }
}

impl Assignment {
    /// Whether this delivery is of what it has: also one from before its log was cut, of what was not.
    fn has_had(&self, ticket: &Ticket) -> bool {
        let before = |(generation, offset)| generation == ticket.generation && ticket.sequence < offset;
        self.generation == ticket.generation || self.cut.is_some_and(before)
    }
}

impl Shared {
    /// What there is of this delivery.
    pub(crate) fn standing(&self, ticket: &Ticket) -> Standing {
        standing(self.state.lock().assignments.get(&ticket.origin), ticket)
    }

    /// All that has come to be settled and was not sent to be committed, once these deliveries are settled too. It counts
    /// as sent. None if one of these no longer stands, or partitions have come or gone since there were so many
    /// rebalances.
    pub(crate) fn uncommitted_with(&self, inputs: &[Ticket], rebalances: u64) -> Option<Vec<Commit>> {
        let mut written: FxHashMap<OriginId, FxHashSet<u64>> = FxHashMap::default();
        let mut state = self.state.lock();
        if self.rebalances() != rebalances {
            return None;
        }
        for ticket in inputs {
            if standing(state.assignments.get(&ticket.origin), ticket) != Standing::Open {
                return None;
            }
            written.entry(ticket.origin).or_default().insert(ticket.sequence);
        }
        let known = state.gaps.len();
        let commits = state.uncommitted(&written);
        // Outputs without their offsets would be written twice.
        (state.gaps.len() == known).then_some(commits)
    }

    /// Settles what was committed with its outputs, where it still stands.
    pub(crate) fn written(&self, inputs: &[Ticket]) {
        let mut state = self.state.lock();
        for ticket in inputs {
            if let Some(assignment) = state.assignments.get_mut(&ticket.origin)
                && assignment.has_had(ticket)
            {
                assignment.offsets.settle(ticket.sequence);
            }
        }
        let free = state.assignments.values().any(|assignment| assignment.stuck);
        drop(state);
        if free {
            self.signal.raise();
        }
    }
}
