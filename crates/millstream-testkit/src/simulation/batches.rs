//! What must hold of a run of a batch handler: P2 and P3, at the moment when it begins and when it ends.

use std::collections::BTreeSet;

use millstream_core::simulation::Ended;

use super::model::Stage;
use super::world::{Event, State};

impl State {
    pub(super) fn batch_began(&mut self, batcher: usize, deliveries: &[usize]) {
        self.note(Event::BatchBegan(batcher, deliveries.to_vec()));
        self.model.last_batch = deliveries.to_vec();
        self.model.batches_begun += 1;
        self.model.batches_running += 1;
        let mut keys = BTreeSet::new();
        let in_turn = self.plan.features.sequence.is_none();
        for (index, delivery) in deliveries.iter().enumerate() {
            let Some(found) = self.model.deliveries.get_mut(*delivery) else {
                continue;
            };
            let stage = found.enter(Stage::RunsInBatch(batcher));
            found.named = false;
            found.batched = true;
            let (key, generation, lost) = (found.key, found.ticket.generation, found.lost);
            // A message that succeeded beside a failed one of its key comes again with it.
            let may = matches!(stage, Stage::InBatcher(_) | Stage::Parked(_) | Stage::Undecided)
                || (stage == Stage::Done && (!found.answered || found.settled_now));
            if !may {
                self.violate(
                    "P2",
                    format!("delivery {delivery} is in a batch that begins while it is {stage:?}"),
                );
            }
            let Some(key) = key else { continue };
            keys.insert(key);
            let others = self
                .model
                .batching
                .get(&(batcher, key))
                .cloned()
                .unwrap_or_default();
            // One that succeeded behind a failed one comes again, and has no turn.
            let turn = others.iter().position(|other| other == delivery);
            let before = others
                .into_iter()
                .enumerate()
                .filter(|(place, _)| turn.map_or(in_turn, |turn| *place < turn))
                .map(|(_, other)| other);
            for earlier in before.filter(|_| !lost) {
                // What its handler has settled may have been dropped unseen.
                let earlier_one = self.model.deliveries.get(earlier);
                let same = earlier_one
                    .is_some_and(|earlier| earlier.ticket.generation == generation && !earlier.answered);
                let ahead = deliveries.iter().take(index).any(|other| *other == earlier);
                if same && !ahead && earlier < *delivery {
                    self.violate("P3", format!("a batch with delivery {delivery} of key {key} begins before {earlier}, which entered first"));
                }
            }
        }
        for key in keys {
            if !self.model.batched.insert((batcher, key)) {
                self.violate(
                    "P3",
                    format!("two batches of batcher {batcher} with key {key} run at a time"),
                );
            }
        }
    }

    pub(super) fn batch_ended(&mut self, batcher: usize, ends: &[(usize, Ended)]) {
        self.note(Event::BatchEnded(batcher, ends.to_vec()));
        self.model.batches_running -= 1;
        let mut failed_keys = BTreeSet::new();
        let alone = ends.len() == 1 || !self.plan.features.bisects;
        for (delivery, ended) in ends {
            let stage = match ended {
                Ended::Split => Stage::InBatcher(batcher),
                Ended::Done | Ended::Batched(_) => Stage::Done,
                Ended::PutOff | Ended::Cancelled => Stage::PutBack,
                Ended::Rejected => Stage::GivenUp,
                Ended::Failed => self.failed(*delivery),
            };
            if *ended == Ended::Split {
                self.met("split batch");
            }
            let mut blamed = true;
            if matches!(ended, Ended::Failed | Ended::Rejected) {
                let written = self.written_of(*delivery);
                let found = self.model.deliveries.get(*delivery);
                blamed = alone || found.is_some_and(|found| found.named);
                if let Some(written) = self.broker.written.get_mut(written) {
                    written.failed_in_batch |= blamed;
                }
                if stage == Stage::GivenUp && !blamed {
                    let what = format!("delivery {delivery} is given up for its neighbours in a batch");
                    self.violate("bisect", what);
                }
            }
            if matches!(stage, Stage::GivenUp | Stage::Undecided) {
                self.gives_up(*delivery);
            }
            let Some(found) = self.model.deliveries.get_mut(*delivery) else {
                continue;
            };
            found.stage = stage;
            found.blamed = blamed;
            if let Some(key) = found.key {
                found.behind_failed = failed_keys.contains(&key);
                if *ended == Ended::Failed {
                    failed_keys.insert(key);
                }
                self.model.batched.remove(&(batcher, key));
                if !matches!(stage, Stage::Parked(_) | Stage::InBatcher(_)) {
                    self.model.forget(*delivery);
                }
            }
            self.stands_still(*delivery);
        }
    }

    /// The handler of the batch that began last says that it is this message. One may be in it more than once.
    pub(super) fn names(&mut self, number: usize) {
        for delivery in self.model.last_batch.clone() {
            if self.written_of(delivery) == number
                && let Some(found) = self.model.get(delivery)
            {
                found.named = true;
            }
        }
    }
}
