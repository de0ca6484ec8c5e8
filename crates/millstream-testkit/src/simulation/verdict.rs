//! Whether a settlement may be: P1 and P2, at the moment when the connector hears of it.

use millstream_core::{Outcome, Reason, Settle, Settlement};

use super::model::Stage;
use super::plan::Letters;
use super::script::Deed;
use super::world::{Event, State};

impl State {
    /// A settlement arrives. What the source answers.
    pub(super) fn settle(&mut self, settle: &Settle, fails: bool) -> Outcome {
        let Some(delivery) = self.model.find(&settle.ticket) else {
            self.violate("P2", "a delivery is settled that was never handed out");
            return Outcome::Stale;
        };
        self.judge(delivery, &settle.settlement);
        let Some(found) = self.model.get(delivery) else {
            return Outcome::Stale;
        };
        let stale = found.lost;
        let outcome = match (fails, stale) {
            (true, _) => Outcome::Failed,
            (_, true) => Outcome::Stale,
            (_, false) => Outcome::Sent,
        };
        if fails && matches!(settle.settlement, Settlement::Retry { .. } | Settlement::Release) {
            self.model.leaves(delivery);
        }
        let word = match (&settle.settlement, outcome) {
            (Settlement::Ack, _) => "ack",
            (Settlement::Reject(_), _) => "reject",
            (Settlement::Retry { .. }, _) => "retry",
            (Settlement::Release, _) => "release",
        };
        self.note(Event::Settled(
            delivery,
            word,
            match outcome {
                Outcome::Sent => "sent",
                Outcome::Stale => "stale",
                Outcome::Failed => "failed",
            },
        ));
        let tally = &mut self.model.tally;
        match (outcome, &settle.settlement) {
            (Outcome::Failed, _) => tally.failed_settlements += 1,
            (Outcome::Stale, _) => tally.stale += 1,
            (Outcome::Sent, Settlement::Ack) => tally.acked += 1,
            (Outcome::Sent, Settlement::Reject(_)) => tally.rejected += 1,
            (Outcome::Sent, Settlement::Retry { .. }) => tally.returned += 1,
            (Outcome::Sent, Settlement::Release) => tally.released += 1,
        }
        if outcome == Outcome::Failed {
            self.met("failed settlement");
            return outcome;
        }
        if outcome == Outcome::Stale {
            self.met("stale settlement");
        }
        self.answered(delivery);
        if outcome == Outcome::Sent {
            if matches!(settle.settlement, Settlement::Release | Settlement::Retry { .. }) {
                self.gave_back(delivery);
            }
            self.record(delivery, &settle.settlement);
            return self.apply(delivery, settle.ticket, &settle.settlement);
        }
        outcome
    }

    /// P1, P2: whether this may be said of the delivery now.
    fn judge(&mut self, delivery: usize, settlement: &Settlement) {
        let discards = self.discards();
        let (attempts, deliveries) = (self.plan.attempts, self.plan.max_deliveries);
        let Some(found) = self.model.get(delivery) else {
            return;
        };
        let (stage, written, now) = (found.stage, found.written, found.settled_now);
        let failures = found.failures;
        let (waits, put_off) = (matches!(stage, Stage::Waits(_)), found.put_off);
        if found.answered {
            return self.violate(
                "P2",
                format!("delivery {delivery} is settled again: {settlement:?}"),
            );
        }
        // One that came too often is given up unrun.
        let deadly = waits && found.deliveries > deliveries;
        let behind_failed = found.behind_failed;
        let follows = waits && self.goes_with_its_twin(delivery);
        let recorded = matches!(stage, Stage::GivenUp | Stage::Undecided) || deadly || follows;
        let known = waits && self.is_known(delivery);
        let fits = now
            || match settlement {
                Settlement::Ack => stage == Stage::Done || written || known || (recorded && discards),
                Settlement::Reject(_) => recorded,
                Settlement::Retry { .. } | Settlement::Release => {
                    behind_failed || !matches!(stage, Stage::Done | Stage::Runs | Stage::RunsInBatch(_))
                }
            };
        if !fits {
            let promise = if matches!(settlement, Settlement::Ack | Settlement::Reject(_)) {
                "P1"
            } else {
                "P2"
            };
            return self.violate(
                promise,
                format!("delivery {delivery} is {stage:?}, and {settlement:?} is said of it"),
            );
        }
        if *settlement == Settlement::Ack && !written && !put_off && (now || stage == Stage::Done) {
            self.told_done(delivery);
        }
        if let Settlement::Retry { failures: said, .. } = settlement
            && *said != failures
            && !(stage == Stage::Undecided && *said + 1 == failures)
        {
            return self.violate(
                "P1",
                format!("delivery {delivery} goes back with {said} failed attempts, and has {failures}"),
            );
        }
        if let Settlement::Reject(why) = settlement
            && !follows
        {
            self.given_up(
                delivery,
                why.reason,
                why.attempts,
                why.deliveries,
                (attempts, deliveries),
            );
        }
    }

    /// P1: a message is given up only for the reason that the policy has.
    pub(super) fn given_up(
        &mut self,
        delivery: usize,
        reason: Reason,
        said: u32,
        delivered: u32,
        most: (u32, u32),
    ) {
        let Some(found) = self.model.get(delivery) else {
            return;
        };
        let failures = found.failures;
        let fits = match reason {
            Reason::Attempts => said == failures && failures >= most.0,
            Reason::Deliveries => delivered > most.1,
            Reason::Age | Reason::Gap => false,
            Reason::Decode | Reason::Rejected | Reason::Route => {
                found.stage == Stage::GivenUp || found.settled_now
            }
        };
        if !fits {
            self.violate(
                "P1",
                format!("delivery {delivery} is given up after {said} attempts and {delivered} deliveries ({}), and {failures} attempts failed", reason.as_str()),
            );
        }
        let number = self.model.post(delivery);
        let deed = self
            .broker
            .posts
            .get(number)
            .and_then(|post| self.broker.written.get(post.written))
            .map(|written| written.deed);
        if reason == Reason::Deliveries && !matches!(deed, Some(Deed::Kills(_) | Deed::Own)) {
            self.violate(
                "P5",
                format!("message {number} ends no process, and is given up as if it did"),
            );
        }
    }

    /// What the store now has on record of a message.
    fn record(&mut self, delivery: usize, settlement: &Settlement) {
        let Some(found) = self.model.get(delivery) else {
            return;
        };
        let (stage, early, put_off) = (found.stage, found.settled_now, found.put_off);
        let wrote = found.written;
        let known = matches!(stage, Stage::Waits(_)) && self.is_known(delivery) && !wrote;
        let halts = self.plan.letters == Letters::Halt;
        let number = self.model.post(delivery);
        let written = self.broker.posts.get(number).map(|post| post.written);
        let Some(written) = written.and_then(|written| self.broker.written.get_mut(written)) else {
            return;
        };
        match settlement {
            Settlement::Ack if stage == Stage::Done || early || known => written.done = true,
            Settlement::Ack if put_off => {}
            // Nothing is on record of what stops its partition.
            Settlement::Reject(_) if halts => {}
            Settlement::Ack | Settlement::Reject(_) => written.dead = true,
            Settlement::Retry { .. } | Settlement::Release => {}
        }
    }

    /// At the end: every message ended where its deed leads.
    pub(super) fn check_fates(&mut self) {
        let mut wrong = Vec::new();
        for (number, written) in self.broker.written.iter().enumerate() {
            let fits = match written.deed {
                Deed::Succeeds | Deed::SettlesNow => written.done || written.failed_in_batch && written.dead,
                Deed::Rejects | Deed::Undecodable => written.dead && !written.done,
                Deed::Poisons => written.dead || written.done,
                _ => written.done || written.dead,
            };
            if !fits {
                wrong.push(format!(
                    "{number} ({:?}, done: {}, dead: {})",
                    written.deed, written.done, written.dead
                ));
            }
        }
        if !wrong.is_empty() {
            self.violate(
                "P1",
                format!("these did not end where they should: {}", wrong.join(", ")),
            );
        }
    }
}
