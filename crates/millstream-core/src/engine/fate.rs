//! What comes of a message: another attempt, the dead letter, or back to the source.

use std::sync::Arc;
use std::time::SystemTime;

use tracing::warn;

use super::elsewhere::Why;
use super::envelope::{Alone, Envelope, LaneId};
use super::hub::Hub;
use super::outbox::Letter;
use super::ready::Left;
use super::retry;
use crate::failure::Failure;
use crate::measures::Failed;
use crate::mutants::{Mutant, mutant};
use crate::rt::{self, Duration, Instant};
use crate::settlement::{Outcome, Reason, Rejection, Settle, Settlement};
use crate::spec::{DeadLetter, RetryStrategy};
use crate::ticket::{Scope, Ticket};

/// The longest that a handler may ask a message to wait within the process.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3_600);

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
    /// Whether it says something of the message and nothing of what handling it needs.
    pub(crate) fn is_reject(&self) -> bool {
        self.kind() == Failed::Rejected
    }

    /// In a word.
    pub(crate) fn kind(&self) -> Failed {
        match self {
            Self::Failure(failure) if failure.is_reject() => Failed::Rejected,
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
    /// Another attempt as soon as the breaker lets it.
    Back,
    /// Given back to the source, which waits as long: the pipeline drains, or its strategy is to redeliver.
    Return(Duration),
    /// No further attempt.
    GiveUp(Reason, String),
}

impl Hub {
    /// What comes next for a message whose run in this stage did not succeed; its failures are counted.
    pub(crate) fn next(&self, envelope: &mut Envelope, fault: Fault) -> Next {
        // A probe has had its run: from here on the message runs when the breaker lets it.
        envelope.alone = envelope.alone.filter(|alone| *alone != Alone::Probe);
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
        if self.breaker.as_ref().is_some_and(|breaker| !breaker.is_closed()) && !mutant(Mutant::AttemptBurnt)
        {
            self.counters.uncounted.add(1);
            return if self.is_draining() {
                Next::Return(Duration::ZERO)
            } else {
                Next::Back
            };
        }
        envelope.message.failures = envelope.message.failures.saturating_add(1);
        if envelope.message.failures >= self.spec.retry.attempts.get() {
            return Next::GiveUp(Reason::Attempts, error);
        }
        let mut wait =
            retry::wait(&self.spec.retry, envelope.message.failures).max(after.unwrap_or_default());
        let longest = self
            .capabilities
            .longest_delay
            .filter(|_| self.spec.retry.strategy == RetryStrategy::Redeliver)
            .map_or(LONGEST_WAIT, |longest| longest.min(LONGEST_WAIT));
        if wait > longest {
            self.counters.waits_cut.add(1);
            wait = longest;
        }
        if self.is_draining() {
            return Next::Return(wait);
        }
        self.counters.retried.add(1);
        if self.spec.retry.strategy == RetryStrategy::Redeliver {
            return Next::Return(wait);
        }
        Next::Park(rt::now() + wait)
    }

    /// No further attempt: the message goes where the policy says.
    pub(crate) fn give_up(&self, envelope: Envelope, stage: &Arc<str>, reason: Reason, error: String) {
        self.counters.reasons.add(reason as usize, 1);
        let message = &envelope.message;
        let rejection = Arc::new(Rejection {
            pipeline: Arc::clone(&self.spec.name),
            stage: Arc::clone(stage),
            reason,
            error,
            attempts: message.failures,
            deliveries: message.deliveries,
            origin: format!("{}@{}", self.origin_name(message.origin), message.position),
            at: SystemTime::now(),
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
                self.withdraw(Scope::Origin(ticket.origin, ticket.generation));
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

    /// Gives a message back to the source, to be tried again after this long where the source can wait or has a
    /// sink for that. Under an ordering the sink would put it behind what follows it.
    pub(crate) fn return_later(&self, envelope: Envelope, after: Duration) {
        if envelope.settled {
            return;
        }
        let can = &self.capabilities;
        let puts_off = self.retry_sink.is_some() && !self.spec.ordering.is_ordered();
        if puts_off && !can.delay {
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

    /// Settles a delivery on behalf of the user's code.
    pub(crate) fn settle_now(&self, ticket: Ticket, settlement: Settlement) {
        self.counters.settled_early.add(1);
        self.settling.add([Settle { ticket, settlement }]);
    }

    /// Takes back what left the workers, as [`Ready::finish`], and releases what must leave with it.
    pub(crate) fn finish(
        &self,
        gone: usize,
        lanes: impl Iterator<Item = LaneId>,
        left: impl Iterator<Item = Left>,
    ) {
        let followers = self.ready.finish(gone, lanes, left);
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
        self.places.settled(gone.map(|(settle, _)| &settle.ticket));
        self.forget_lost();
    }
}
