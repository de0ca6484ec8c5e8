//! What must hold of a run of the processor: P2 to P5, at the moment when it begins and when it ends.

use std::time::Duration;

use millstream_core::BreakerState;
use millstream_core::simulation::Ended;

use super::broker::Post;
use super::model::Stage;
use super::plan::{Letters, Order};
use super::world::{Event, State};

impl State {
    pub(super) fn began(&mut self, delivery: usize) {
        self.note(Event::Began(delivery));
        let plan = (self.plan.concurrency, self.plan.max_deliveries);
        let Some(found) = self.model.deliveries.get_mut(delivery) else {
            return;
        };
        let stage = found.enter(Stage::Runs);
        found.batched = false;
        let (key, generation, post) = (found.key, found.ticket.generation, found.post);
        let (told, answered, lost) = (found.told, found.answered && !found.settled_now, found.lost);
        let deliveries = found.deliveries;
        if told {
            self.violate(
                "P3",
                format!("delivery {delivery} begins though the engine knows that it is lost"),
            );
        }
        if answered && !lost {
            self.violate("P2", format!("delivery {delivery} begins though it is settled"));
        }
        if !matches!(stage, Stage::Waits(_) | Stage::Parked(_) | Stage::Undecided) {
            self.violate(
                "P2",
                format!("delivery {delivery} begins a run while it is {stage:?}"),
            );
        }
        if deliveries > plan.1 {
            self.violate(
                "P5",
                format!("delivery {delivery} runs though it was delivered {deliveries} times"),
            );
        }
        self.model.begun += 1;
        self.model.running += 1;
        if self.model.running > plan.0 {
            self.violate(
                "P4",
                format!("{} runs at a time, and {} may", self.model.running, plan.0),
            );
        }
        if deliveries > 3 && self.model.running > 1 {
            self.violate(
                "P5",
                format!("delivery {delivery} is a suspect, and does not run alone"),
            );
        }
        self.runs_as_one(delivery);
        if self.model.halted.contains(&generation) {
            let what = format!("delivery {delivery} begins though its partition stands still");
            self.violate("halt", what);
        }
        let Some(key) = key.filter(|_| !lost) else { return };
        self.in_sequence(key, delivery);
        if self.model.sequences.is_loose(key) {
            return;
        }
        let lane = self.model.lanes.get(&key).cloned().unwrap_or_default();
        // Once it may have been given up, it stands in no lane.
        let in_turn = self.plan.features.sequence.is_none();
        let turn = lane.iter().position(|other| *other == delivery);
        let before =
            |(place, other): &(usize, usize)| turn.map_or(in_turn && *other < delivery, |turn| *place < turn);
        let earlier = lane
            .into_iter()
            .enumerate()
            .filter(before)
            .map(|(_, other)| other);
        // What is done in another way has no turn.
        for earlier in earlier
            .filter(|earlier| !self.is_settled_unrun(*earlier))
            .collect::<Vec<_>>()
        {
            let same = self
                .model
                .ticket(earlier)
                .is_some_and(|ticket| ticket.generation == generation);
            if same {
                let stage = self.model.stage(earlier);
                self.violate(
                    "P3",
                    format!("delivery {delivery} of key {key} begins while {earlier} before it is {stage:?}"),
                );
            }
        }
        let back = self.model.given_back.get(&(generation, key));
        let back: Vec<_> = back
            .into_iter()
            .flatten()
            .copied()
            .take_while(|earlier| *earlier < post)
            .collect();
        let suspects = self.model.suspects;
        for earlier in back
            .into_iter()
            .filter(|earlier| !suspects && !self.is_over(*earlier))
            .collect::<Vec<_>>()
        {
            let again = self.broker.posts.get(earlier);
            let ends_unrun = |post: &Post| post.out.is_some_and(|out| self.is_settled_unrun(out));
            let again = again
                .filter(|post| !post.settled && !ends_unrun(post))
                .map(|post| post.out.and_then(|out| self.model.stage(out)));
            if matches!(again, Some(None | Some(Stage::Waits(_)))) {
                self.violate(
                    "P3",
                    format!(
                        "message {post} of key {key} begins, and message {earlier} before it was given back"
                    ),
                );
            }
        }
    }

    pub(super) fn ended(&mut self, delivery: usize, ended: Ended) {
        self.note(Event::Ended(delivery, ended));
        let stage = match ended {
            Ended::Done => Stage::Done,
            // The processor has no batch to split.
            Ended::Split => return,
            Ended::Batched(batcher) => Stage::InBatcher(batcher),
            Ended::PutOff | Ended::Cancelled => Stage::PutBack,
            Ended::Rejected => Stage::GivenUp,
            Ended::Failed => self.failed(delivery),
        };
        let Some(found) = self.model.deliveries.get_mut(delivery) else {
            return;
        };
        let (key, lost) = (found.key, found.lost);
        let unrun = matches!(found.stage, Stage::Waits(_));
        found.blamed = true;
        if std::mem::replace(&mut found.stage, stage) == Stage::Runs {
            self.model.running -= 1;
            let tally = &mut self.model.tally;
            tally.processed += u64::from(matches!(ended, Ended::Done | Ended::Batched(_) | Ended::PutOff));
            tally.failed += u64::from(ended == Ended::Failed);
        }
        if matches!(stage, Stage::GivenUp | Stage::Undecided) {
            self.gives_up(delivery);
        }
        self.stands_still(delivery);
        if let (Some(key), false, true) = (key, lost, unrun && ended == Ended::Rejected) {
            // What does not decode has had its turn.
            self.in_sequence(key, delivery);
        }
        if let (Some(key), false, false) = (key, lost, matches!(stage, Stage::Parked(_))) {
            self.model.forget(delivery);
            if let Stage::InBatcher(batcher) = stage {
                self.model
                    .batching
                    .entry((batcher, key))
                    .or_default()
                    .push(delivery);
            }
        }
    }

    /// What comes of a run that failed, as the policy has it: no attempt counts while the breaker is not closed.
    pub(super) fn failed(&mut self, delivery: usize) -> Stage {
        let counts = self
            .breaker()
            .is_none_or(|breaker| breaker == BreakerState::Closed);
        let (attempts, backoff, now) = (self.plan.attempts, self.plan.backoff, self.now());
        let Some(found) = self.model.deliveries.get_mut(delivery) else {
            return Stage::GivenUp;
        };
        if found.settled_now {
            return Stage::Done;
        }
        if !counts {
            return Stage::Parked(Duration::MAX);
        }
        found.failures += 1;
        if found.failures >= attempts {
            return match self.plan.breaker {
                true => Stage::Undecided,
                false => Stage::GivenUp,
            };
        }
        Stage::Parked(now + backoff * 2u32.pow(found.failures - 1))
    }

    /// Where a message that is given up stops its partition, nothing that follows it in its lane may start.
    pub(super) fn stands_still(&mut self, delivery: usize) {
        let found = self.model.deliveries.get(delivery);
        let Some(found) = found.filter(|found| found.stage == Stage::GivenUp && !found.lost) else {
            return;
        };
        let generation = found.ticket.generation;
        if self.plan.letters == Letters::Halt {
            self.model.withdraw(generation);
            if self.plan.ordering == Order::Partition {
                self.model.halted.insert(generation);
            }
        }
    }

    /// Whether it has what its twin has come to, and no run of its own.
    fn is_settled_unrun(&self, delivery: usize) -> bool {
        matches!(self.model.stage(delivery), Some(Stage::Waits(_)))
            && (self.is_known(delivery) || self.goes_with_its_twin(delivery))
    }
}
