//! Settlements.

use millstream_core::{Outcome, Settle, Settlement, rt};

use super::{Phase, Shared, State, withdraw};

impl Shared {
    /// Settles what is still assigned.
    pub(crate) fn settle(&self, settlements: &[Settle], mut answer: impl FnMut(&Settle, Outcome)) {
        let (mut free, mut again, mut holding) = (false, Vec::new(), Vec::new());
        let mut state = self.state.lock();
        let running = state.phase == Phase::Running;
        let State {
            buffer,
            buffered,
            assignments,
            suspicious,
            suspect,
            halts_changed,
            ..
        } = &mut *state;
        for settle in settlements {
            let ticket = settle.ticket;
            if *suspect == Some((ticket.origin, ticket.generation, ticket.sequence)) {
                *suspect = None;
            }
            let assignment = assignments
                .get_mut(&ticket.origin)
                .filter(|assignment| assignment.generation == ticket.generation);
            let Some(assignment) = assignment else {
                answer(settle, Outcome::Stale);
                continue;
            };
            match settle.settlement {
                Settlement::Reject(_) if self.rules.halts => {
                    assignment.gate.halt(ticket.sequence);
                    *halts_changed = true;
                    withdraw(buffer, buffered, ticket.origin);
                }
                Settlement::Ack | Settlement::Reject(_) => {
                    assignment.offsets.settle(ticket.sequence);
                    if let Some(mark) = assignment.offsets.mark() {
                        assignment.gate.ends.settled_before(mark);
                    }
                }
                // It stays unsettled, and is handed out again from memory: the broker hands out positions, and
                // would have to be asked for all that follows too.
                Settlement::Release | Settlement::Retry { .. } if running => {
                    let Some(message) = assignment.offsets.out(ticket.sequence) else {
                        answer(settle, Outcome::Sent);
                        continue;
                    };
                    let mut due = None;
                    if let Settlement::Retry { after, failures } = settle.settlement {
                        message.failures = failures;
                        due = (!after.is_zero()).then(|| rt::after(after));
                    }
                    if assignment.gate.is_open() && due.is_none() {
                        again.push((ticket, message.clone()));
                    } else {
                        assignment.gate.hold(ticket.sequence, due, message.size());
                        if !holding.contains(&ticket.origin) {
                            holding.push(ticket.origin);
                        }
                    }
                }
                Settlement::Release | Settlement::Retry { .. } => {}
            }
            free |= assignment.stuck && (self.is_free(assignment) || assignment.may_go_on());
            answer(settle, Outcome::Sent);
        }
        // In front of what follows them.
        again.sort_by_key(|(ticket, _)| (ticket.origin, ticket.sequence));
        let came_back = !again.is_empty();
        for (ticket, message) in again.into_iter().rev() {
            *buffered += message.size();
            buffer.push_front((ticket, message));
        }
        // What was read ahead of a place that holds follows what it holds.
        if !holding.is_empty() {
            buffer.retain(|(ticket, message)| {
                let keep = !holding.contains(&ticket.origin);
                if !keep && let Some(assignment) = assignments.get_mut(&ticket.origin) {
                    *buffered -= message.size();
                    assignment.gate.hold(ticket.sequence, None, message.size());
                }
                keep
            });
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
