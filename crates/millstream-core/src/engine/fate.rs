//! What comes of a message: another attempt, the dead letter, or back to the source.

use std::sync::Arc;
use std::time::SystemTime;

use tracing::warn;

use super::elsewhere::Why;
use super::envelope::{Envelope, LaneId};
use super::hub::Hub;
use super::outbox::Letter;
use super::ready::Left;
use super::retry;
use crate::failure::Failure;
use crate::measures::Failed;
use crate::message::Message;
use crate::mutants::{Mutant, mutant};
use crate::rt::{self, Duration, Instant};
use crate::settlement::{Outcome, Reason, Rejection, Settle, Settlement};
use crate::spec::{DeadLetter, RetryStrategy};
use crate::ticket::{Scope, Ticket};

/// The longest that a handler may ask a message to wait within the process.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3_600);

/// The most of an error that is kept, in bytes: brokers bound what headers may weigh, and a dead letter must arrive.
const LONGEST_ERROR: usize = 4096;

/// Why a run did not succeed.
#[derive(Debug)]
pub(crate) enum Fault {
    Failure(Failure),
    Panic(String),
    Timeout(Duration),
    /// The worker died while it ran.
    Died,
}

impl Fault {
    /// Whether it says something of what handling the message needs, and not of the message alone.
    pub(crate) fn feeds_breaker(&self) -> bool {
        !matches!(self.kind(), Failed::Rejected | Failed::NotPermitted)
    }

    /// In a word.
    pub(crate) fn kind(&self) -> Failed {
        match self {
            Self::Failure(failure) if failure.is_reject() => Failed::Rejected,
            Self::Failure(failure) if failure.is_not_permitted() => Failed::NotPermitted,
            Self::Failure(_) => Failed::Failure,
            Self::Panic(_) => Failed::Panic,
            Self::Timeout(_) => Failed::Timeout,
            Self::Died => Failed::Died,
        }
    }
}

/// What comes next for a message whose run did not succeed.
#[derive(Debug)]
pub(crate) enum Next {
    /// Another attempt then.
    Park(Instant),
    /// Another attempt once the breakers let it, after others: it may be this message that fails, and not what handling
    /// it needs.
    Behind,
    /// Given back to the source, which waits as long: the pipeline drains, or its strategy is to redeliver.
    Return(Duration),
    /// No further attempt.
    GiveUp(Reason, String),
}

impl Next {
    /// Whether it is not over with the message.
    pub(crate) fn comes_again(&self) -> bool {
        !matches!(self, Self::GiveUp(..))
    }
}

impl Hub {
    /// What comes next for a message whose run in this stage did not succeed; its failures are counted.
    pub(crate) fn next(&self, envelope: &mut Envelope, fault: Fault) -> Next {
        let not_permitted = fault.kind() == Failed::NotPermitted;
        if fault.feeds_breaker() && !self.breakers.is_closed() {
            envelope.doubted = self.breakers.round();
        }
        let (error, after) = match fault {
            Fault::Failure(failure) if failure.is_reject() => {
                return Next::GiveUp(Reason::Rejected, failure.to_string());
            }
            Fault::Failure(failure) => (failure.to_string(), failure.after()),
            Fault::Panic(text) => (format!("the handler panicked: {text}"), None),
            Fault::Timeout(limit) => (
                format!("the handler took longer than its timeout of {limit:?}"),
                None,
            ),
            Fault::Died => ("the worker died while the handler ran".to_owned(), None),
        };
        if not_permitted || (!self.breakers.is_closed() && !mutant(Mutant::AttemptBurnt)) {
            self.counters.uncounted.add(1);
            return if self.is_draining() {
                Next::Return(Duration::ZERO)
            } else {
                Next::Behind
            };
        }
        envelope.note_failure();
        let spec = *self.retry.read();
        let failures = envelope.message.failures.saturating_add(1);
        let mut wait = retry::wait(&spec, failures).max(after.unwrap_or_default());
        let too_old = spec
            .max_age
            .is_some_and(|most| self.age(envelope).saturating_add(wait) > most);
        if failures < spec.attempts.get() {
            envelope.message.failures = failures;
            if too_old {
                return Next::GiveUp(Reason::Age, error);
            }
        } else if !too_old && self.breakers.may_open() {
            // Not the last word while this may be the beginning of an outage.
            self.counters.uncounted.add(1);
        } else {
            envelope.message.failures = failures;
            return Next::GiveUp(Reason::Attempts, error);
        }
        if spec.strategy == RetryStrategy::Redeliver {
            wait = self.within_budget(wait);
        }
        let longest = self
            .capabilities
            .longest_delay
            .filter(|_| spec.strategy == RetryStrategy::Redeliver)
            .map_or(LONGEST_WAIT, |longest| longest.min(LONGEST_WAIT));
        if wait > longest {
            self.counters.waits_cut.add(1);
            wait = longest;
        }
        if self.is_draining() {
            return Next::Return(wait);
        }
        self.counters.retried.add(1);
        if spec.strategy == RetryStrategy::Redeliver {
            return Next::Return(wait);
        }
        Next::Park(rt::now() + wait)
    }

    /// What a wait is at least, so that the retry after it is within the budget: where it cannot be held when its time
    /// has come.
    pub(super) fn within_budget(&self, wait: Duration) -> Duration {
        let turn = self.budget.turn(rt::now());
        self.counters.over_budget.add(usize::from(turn > wait));
        wait.max(turn)
    }

    /// Acts on what comes next for a failed message. Gives how it leaves the worker; nothing if it is gone.
    pub(crate) fn leave(&self, stage: &Arc<str>, envelope: Envelope, next: Next) -> Option<Left> {
        match next {
            _ if envelope.settled => {
                self.give_up(
                    envelope,
                    stage,
                    Reason::Rejected,
                    "failed after it was settled".to_owned(),
                );
                None
            }
            Next::Park(due) => Some(Left::Parked(due, envelope)),
            Next::Behind => Some(Left::Behind(envelope)),
            Next::Return(after) => {
                let lane = envelope.lane;
                if lane != LaneId::NONE {
                    self.returning.add_followed(envelope.ticket, envelope.order);
                }
                self.return_failed(envelope, after);
                Some(Left::Withdrawn(lane))
            }
            Next::GiveUp(reason, error) => {
                self.give_up(envelope, stage, reason, error);
                None
            }
        }
    }

    /// How old the message is: since it was published, where the source says that, or else since it was received first.
    fn age(&self, envelope: &Envelope) -> Duration {
        let message = &envelope.message;
        if let Some(since) = message.timestamp.or_else(|| message.first_received()) {
            return SystemTime::now().duration_since(since).unwrap_or_default();
        }
        self.places
            .received(&envelope.ticket)
            .map_or(Duration::ZERO, |at| at.elapsed())
    }

    /// When the message was first received, to go with it where it is put off: nothing where its age is of no interest,
    /// or known from elsewhere.
    pub(super) fn first_received(&self, envelope: &Envelope) -> Option<SystemTime> {
        let message = &envelope.message;
        let known = message.timestamp.is_some() || message.first_received().is_some();
        if known || self.retry.read().max_age.is_none() {
            return None;
        }
        SystemTime::now().checked_sub(self.age(envelope))
    }

    /// Whether one more failure would be its last.
    pub(crate) fn is_last(&self, envelope: &Envelope) -> bool {
        envelope.message.failures.saturating_add(1) >= self.retry.read().attempts.get()
    }

    /// No further attempt: the message goes where the policy says.
    pub(crate) fn give_up(&self, envelope: Envelope, stage: &Arc<str>, reason: Reason, error: String) {
        self.counters.reasons.add(reason as usize, 1);
        let message = &envelope.message;
        let now = SystemTime::now();
        let rejection = Arc::new(Rejection {
            pipeline: Arc::clone(&self.spec.name),
            stage: Arc::clone(stage),
            reason,
            error: shortened(error),
            attempts: message.failures,
            deliveries: message.deliveries,
            origin: format!("{}@{}", self.origin_name(message.origin), message.position),
            first_at: envelope.first_failed().unwrap_or(now).min(now),
            at: now,
        });
        if let Some(unwritten) = self.rare.given_up.tell() {
            warn!(
                pipeline = self.name(), %stage, reason = reason.as_str(), origin = %rejection.origin,
                error = %rejection.error, unwritten, "message given up"
            );
        }
        if envelope.settled {
            return self.failed_after_settlement();
        }
        if let Some(twins) = &self.twins {
            twins.given_up(self, &envelope.ticket, &rejection);
        }
        match self.spec.dead_letter {
            DeadLetter::Source => {
                self.settling.add(envelope.settle(Settlement::Reject(rejection)));
            }
            DeadLetter::Discard => {
                self.counters.discarded.add(1);
                self.elsewhere.add(envelope.ticket, Why::GivenUp);
                self.settling.add(envelope.settle(Settlement::Ack));
            }
            DeadLetter::Halt => {
                // Before its lane is free: nothing that follows it may start.
                let ticket = envelope.ticket;
                if !mutant(Mutant::HaltOvertaken) {
                    self.withdraw(Scope::Origin(ticket.origin, ticket.generation));
                }
                self.settling.add(envelope.settle(Settlement::Reject(rejection)));
            }
            DeadLetter::Sink(_) => self.dead_letters.add(envelope, Letter::Dead(rejection)),
        }
    }

    /// A message that the user's code had settled has failed.
    fn failed_after_settlement(&self) {
        if let Some(unwritten) = self.rare.settled_early.tell() {
            warn!(
                pipeline = self.name(),
                unwritten, "a message failed after the handler had settled it"
            );
        }
    }

    /// Gives messages back to the source untouched.
    pub(crate) fn release(&self, envelopes: impl IntoIterator<Item = Envelope>) {
        self.settling.add(
            envelopes
                .into_iter()
                .filter_map(|envelope| envelope.settle(Settlement::Release)),
        );
    }

    /// Gives back a message that would have another attempt after this long. What was to wait in place stays where it is in
    /// its source, whose retry sink may keep it less well, and forgets its attempts there.
    pub(crate) fn return_failed(&self, envelope: Envelope, after: Duration) {
        let can = &self.capabilities;
        let in_place = self.retry.read().strategy == RetryStrategy::InPlace;
        if in_place && !can.delay && !can.holds_places {
            self.release([envelope]);
        } else {
            self.return_later(envelope, after);
        }
    }

    /// Gives a message back to the source, to be tried again after this long where the source can wait or has a
    /// sink for that. Under an ordering the sink would put it behind what follows it.
    pub(crate) fn return_later(&self, envelope: Envelope, after: Duration) {
        if envelope.settled {
            return;
        }
        let can = &self.capabilities;
        let puts_off = self.retry_sink.is_some() && !self.spec.ordering.is_ordered();
        if puts_off && !can.delay {
            if let Some(twins) = &self.twins {
                twins.gone(self, [&envelope.ticket].into_iter());
            }
            return self.retries.add(envelope, Letter::Later(rt::after(after)));
        }
        let settlement = if can.delay || can.holds_places {
            Settlement::Retry {
                after,
                failures: envelope.message.failures,
            }
        } else {
            Settlement::Release
        };
        self.settling.add(envelope.settle(settlement));
    }

    /// Settles a delivery on behalf of the user's code. A retry keeps its wait where the source cannot hold the message
    /// back: the retry sink has it or, where there is none or it would break the order, the settlement waits.
    pub(crate) fn settle_now(&self, ticket: Ticket, message: &Message, settlement: Settlement) {
        self.counters.settled_early.add(1);
        let can = &self.capabilities;
        match settlement {
            Settlement::Retry { after, failures } if !after.is_zero() && !can.delay && !can.holds_places => {
                let after = after.min(can.longest_delay.unwrap_or(Duration::MAX));
                if self.retry_sink.is_some() && !self.spec.ordering.is_ordered() {
                    let mut message = message.clone();
                    message.failures = failures;
                    self.return_later(Envelope::new(ticket, message), after);
                } else {
                    let settlement = Settlement::Release;
                    self.settling
                        .add_later(rt::after(after), Settle { ticket, settlement });
                }
            }
            settlement => self.settling.add([Settle { ticket, settlement }]),
        }
    }

    /// Takes back what left the workers, as [`Ready::finish`], and releases what must leave with it.
    pub(crate) fn finish(
        &self,
        gone: usize,
        lanes: impl Iterator<Item = LaneId>,
        left: impl Iterator<Item = Left>,
    ) {
        // Asked while the queue takes it back: what goes after that is still found there.
        let mut any_lost = false;
        let left = left.inspect(|left| match left {
            Left::Parked(_, back) | Left::Aside(back) | Left::Back(back) | Left::Behind(back) => {
                any_lost |= self.is_lost(&back.ticket);
            }
            Left::Withdrawn(_) => {}
        });
        let followers = self.ready.finish(gone, lanes, left);
        if any_lost {
            self.drop_lost_ready();
        }
        self.ran_beside_suspects();
        if !followers.is_empty() {
            for follower in &followers {
                self.returning.add_followed(follower.ticket, follower.order);
            }
            self.release(followers);
        }
    }

    /// What the acknowledger said.
    pub(crate) fn settled(&self, outcomes: &[(Settle, Outcome)]) {
        let (mut acked, mut rejected, mut released, mut returned, mut stale, mut failed) = (0, 0, 0, 0, 0, 0);
        for (settle, outcome) in outcomes {
            match (outcome, &settle.settlement) {
                (Outcome::Sent, Settlement::Ack) => acked += 1,
                (Outcome::Sent, Settlement::Reject(_)) => rejected += 1,
                (Outcome::Sent, Settlement::Release) => released += 1,
                (Outcome::Sent, Settlement::Retry { .. }) => returned += 1,
                (Outcome::Stale, _) => stale += 1,
                (Outcome::Failed, _) => failed += 1,
            }
        }
        self.counters.acked.add(acked);
        self.counters.rejected.add(rejected);
        self.counters.released.add(released);
        self.counters.returned.add(returned);
        self.counters.stale.add(stale);
        if !mutant(Mutant::Uncounted) {
            self.counters.settle_retries.add(failed);
        }
        if stale > 0
            && let Some(unwritten) = self.rare.stale.tell()
        {
            warn!(
                pipeline = self.name(),
                messages = stale,
                unwritten,
                "settled too late; the source hands them out again"
            );
        }
        if failed > 0
            && let Some(unwritten) = self.rare.settle_failed.tell()
        {
            warn!(
                pipeline = self.name(),
                messages = failed,
                unwritten,
                "settlements failed and are tried again"
            );
        }
        self.returning.answered(outcomes);
        self.elsewhere.answered(outcomes);
        let gone = outcomes.iter().filter(|(_, outcome)| *outcome != Outcome::Failed);
        let gone = gone.filter(|(_, outcome)| !(mutant(Mutant::CreditLeak) && *outcome == Outcome::Stale));
        self.places
            .settled(gone.clone().map(|(settle, _)| &settle.ticket));
        self.suspects_gone(gone.map(|(settle, _)| &settle.ticket));
        self.forget_lost();
    }
}

/// As much of an error as is kept.
fn shortened(mut error: String) -> String {
    if error.len() > LONGEST_ERROR {
        error.truncate(error.floor_char_boundary(LONGEST_ERROR - '…'.len_utf8()));
        error.push('…');
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_cut_between_its_characters() {
        assert_eq!(shortened("short".to_owned()), "short");
        let cut = shortened("ä".repeat(LONGEST_ERROR));
        assert!(cut.len() <= LONGEST_ERROR && cut.len() > LONGEST_ERROR - 4 && cut.ends_with('…'));
    }
}
