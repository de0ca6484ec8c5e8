//! Settlements.

use millstream_core::{Outcome, Settle, Settlement, rt};

use super::{Phase, Shared, State};

impl Shared {
    /// Settles what is still assigned.
    pub(crate) fn settle(&self, settlements: &[Settle], mut answer: impl FnMut(&Settle, Outcome)) {
        let (mut free, mut again, mut holding) = (false, Vec::new(), Vec::new());
        let mut state = self.state.lock();
        let running = state.phase == Phase::Running;
        let State {
            buffer,
            assignments,
            suspicious,
            suspect,
            halts_changed,
            ..
        } = &mut *state;
        let same = |a: &Settle, b: &Settle| {
            (a.ticket.origin, a.ticket.generation) == (b.ticket.origin, b.ticket.generation)
        };
        for run in settlements.chunk_by(same) {
            let assignment = run.first().and_then(|Settle { ticket, .. }| {
                let assigned = assignments.get_mut(&ticket.origin);
                assigned.filter(|assignment| assignment.generation == ticket.generation)
            });
            let Some(assignment) = assignment else {
                run.iter().for_each(|settle| answer(settle, Outcome::Stale));
                continue;
            };
            for settle in run {
                let ticket = settle.ticket;
                match settle.settlement {
                    Settlement::Reject(_) if self.rules.halts => {
                        assignment.gate.halt(ticket.sequence);
                        *halts_changed = true;
                        buffer.withdraw(ticket.origin);
                    }
                    Settlement::Ack | Settlement::Reject(_) => assignment.offsets.settle(ticket.sequence),
                    // It stays unsettled, and is handed out again from memory: the broker hands out positions, and
                    // would have to be asked for all that follows too.
                    Settlement::Release | Settlement::Retry { .. } if running => {
                        if let Some(message) = assignment.offsets.out_mut(ticket.sequence) {
                            let mut due = None;
                            if let Settlement::Retry { after, failures } = settle.settlement {
                                message.failures = failures;
                                due = (!after.is_zero()).then(|| rt::after(after));
                            }
                            let size = message.size();
                            if assignment.gate.is_open() && due.is_none() {
                                again.push((ticket, size));
                            } else {
                                assignment.gate.hold(ticket.sequence, due, size);
                                if !holding.contains(&ticket.origin) {
                                    holding.push(ticket.origin);
                                }
                            }
                        }
                    }
                    Settlement::Release | Settlement::Retry { .. } => {}
                }
                answer(settle, Outcome::Sent);
            }
            if let Some(mark) = assignment.offsets.mark() {
                assignment.gate.ends.settled_before(mark);
            }
            free |= assignment.stuck && (self.is_free(assignment) || assignment.may_go_on());
        }
        if let Some((origin, generation, sequence)) = *suspect {
            let is_suspect = |Settle { ticket, .. }: &Settle| {
                (ticket.origin, ticket.generation, ticket.sequence) == (origin, generation, sequence)
            };
            if settlements.iter().any(is_suspect) {
                *suspect = None;
            }
        }
        // In front of what follows them.
        again.sort_by_key(|(ticket, _)| (ticket.origin, ticket.sequence));
        let came_back = !again.is_empty();
        for (ticket, size) in again.into_iter().rev() {
            buffer.push_front(ticket, size);
        }
        // What was read ahead of a place that holds follows what it holds.
        if !holding.is_empty() {
            buffer.take_out(
                |ticket| holding.contains(&ticket.origin),
                |ticket, size| {
                    if let Some(assignment) = assignments.get_mut(&ticket.origin) {
                        assignment.gate.hold(ticket.sequence, None, size);
                    }
                },
            );
        }
        // What suspects it leaves may come, or whatever had to wait for the last of them.
        let suspicious = *suspicious;
        let halted = *halts_changed;
        drop(state);
        if came_back || suspicious {
            self.arrived.notify_one();
        }
        if free || suspicious || halted {
            self.signal.raise();
        }
    }
}
