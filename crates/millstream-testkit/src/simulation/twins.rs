//! What must hold of messages that come more than once (`deduplicate`): one that is known as done does not run, and of
//! those in flight with one id one runs and the others share what comes of it.
//!
//! The store of ids is simulated, too: it outlives processes, and may be slow, fail, and have entered what it says that it
//! has not.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use millstream_core::rt;
use millstream_core::{BoxFuture, DedupError, DedupStore, RetryStrategy};
use rustc_hash::FxHashMap;

use super::model::Stage;
use super::plan::{Letters, ms};
use super::world::{Event, State, World};

/// The header with a message's id.
pub(super) const ID: &str = "id";

/// What is or was in flight, by what was written.
#[derive(Debug, Default)]
pub(super) struct Flights(FxHashMap<usize, Flight>);

#[derive(Debug, Default)]
struct Flight {
    members: BTreeSet<usize>,
    given_up: bool,
}

/// What the store has: of each id since when and until when.
pub(super) type Known = FxHashMap<usize, (Duration, Duration)>;

impl Flights {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

impl State {
    pub(super) fn written_of(&self, delivery: usize) -> usize {
        let post = self.broker.posts.get(self.model.post(delivery));
        post.map_or(usize::MAX, |post| post.written)
    }

    /// A delivery is in flight with others of its id, or alone.
    pub(super) fn joins(&mut self, delivery: usize, deadly: bool) {
        if self.plan.features.deduplicates.is_none() {
            return;
        }
        let written = self.written_of(delivery);
        let deliveries = &self.model.deliveries;
        let flight = self.model.flights.0.entry(written).or_default();
        let is_out = |member: &usize| {
            let member = deliveries.get(*member);
            // Of one that is given up, the letter may yet be written after it was lost.
            let stays = |stage| matches!(stage, Stage::GivenUp | Stage::Undecided);
            member.is_some_and(|member| !member.answered && (!member.lost || stays(member.stage)))
        };
        if flight.members.iter().any(is_out) {
            self.met.insert("twin");
        } else {
            flight.given_up = false;
        }
        flight.members.insert(delivery);
        flight.given_up |= deadly;
        if flight.given_up {
            self.halts_with_its_twin(written);
        }
    }

    /// What is given up with its twin, and has not run, stops its partition, too.
    fn halts_with_its_twin(&mut self, written: usize) {
        if self.plan.letters != Letters::Halt {
            return;
        }
        let flight = self.model.flights.0.get(&written);
        let members = flight.into_iter().flat_map(|flight| &flight.members);
        let waiting: Vec<_> = members
            .filter_map(|member| self.model.deliveries.get(*member))
            .filter(|member| matches!(member.stage, Stage::Waits(_)) && !member.lost && !member.answered)
            .map(|member| member.ticket.generation)
            .collect();
        for generation in waiting {
            self.model.withdraw(generation);
        }
    }

    /// Whether all that is to come of a message has come, since its id is known, or is given up.
    pub(super) fn is_over(&self, post: usize) -> bool {
        let written = self
            .broker
            .posts
            .get(post)
            .map_or(usize::MAX, |post| post.written);
        let flight = self.model.flights.0.get(&written);
        self.known.contains_key(&written) || flight.is_some_and(|flight| flight.given_up)
    }

    fn others(&self, delivery: usize) -> impl Iterator<Item = &super::model::Delivery> {
        let flight = self.model.flights.0.get(&self.written_of(delivery));
        let members = flight.into_iter().flat_map(|flight| &flight.members);
        members
            .filter(move |member| **member != delivery)
            .filter_map(|member| self.model.deliveries.get(*member))
    }

    /// Whether others of its id are in flight.
    pub(super) fn has_twin(&self, delivery: usize) -> bool {
        self.others(delivery).next().is_some()
    }

    /// Whether a delivery that has not run is done: its id is known, or its twin is done.
    pub(super) fn is_known(&self, delivery: usize) -> bool {
        if self.plan.features.deduplicates.is_none() {
            return false;
        }
        let entered = self.known.get(&self.written_of(delivery));
        let handed = self.model.deliveries.get(delivery).map(|found| found.handed);
        // It may have been looked up as soon as it was handed out.
        let known = entered.is_some_and(|(_, until)| handed.is_some_and(|at| at < *until));
        let done = |other: &super::model::Delivery| other.stage == Stage::Done || other.settled_now;
        known || self.others(delivery).any(done)
    }

    /// Whether what it shares its id with was given up.
    pub(super) fn goes_with_its_twin(&self, delivery: usize) -> bool {
        let flight = self.model.flights.0.get(&self.written_of(delivery));
        flight.is_some_and(|flight| flight.given_up)
    }

    /// The last word about a delivery may be that it is given up, and so are its twins.
    pub(super) fn gives_up(&mut self, delivery: usize) {
        let written = self.written_of(delivery);
        if let Some(flight) = self.model.flights.0.get_mut(&written) {
            flight.given_up = true;
            self.halts_with_its_twin(written);
        }
    }

    /// A delivery begins.
    pub(super) fn runs_as_one(&mut self, delivery: usize) {
        let Some(policy) = self.plan.features.deduplicates else {
            return;
        };
        let (now, written) = (self.now(), self.written_of(delivery));
        let Some(found) = self.model.deliveries.get(delivery) else {
            return;
        };
        let (lost, runs) = (found.lost, found.failures > 0);
        if policy.is_strict()
            && let Some((at, until)) = self.known.get(&written)
            && now < *until
            && !lost
            && !runs
        {
            let what =
                format!("delivery {delivery} begins though message {written} is known as done since {at:?}");
            return self.violate("deduplication", what);
        }
        let in_place = self.plan.strategy == RetryStrategy::InPlace && !self.draining;
        let withdrawn = &self.model.withdrawn;
        let busy = |other: &&super::model::Delivery| match other.stage {
            Stage::Runs | Stage::InBatcher(_) | Stage::RunsInBatch(_) => !other.lost && !other.settled_now,
            // What was taken away comes again at its source.
            Stage::Parked(_) => {
                let gone = other.lost || other.answered || withdrawn.contains(&other.ticket.generation);
                in_place && !gone
            }
            _ => false,
        };
        let twin = self
            .others(delivery)
            .find(busy)
            .map(|twin| (twin.post, twin.stage));
        if let Some((post, stage)) = twin.filter(|_| !lost) {
            let what = format!(
                "delivery {delivery} of message {written} begins while its twin, at the broker {post}, is {stage:?}"
            );
            self.violate("deduplication", what);
        }
    }

    /// The source is told that a delivery is done: the store has to know by now.
    pub(super) fn told_done(&mut self, delivery: usize) {
        let strict = self
            .plan
            .features
            .deduplicates
            .is_some_and(|policy| policy.is_strict());
        let Some(found) = self.model.deliveries.get(delivery).filter(|_| strict) else {
            return;
        };
        let (lost, handed) = (found.lost || found.told, found.handed);
        let entered = self.known.get(&self.written_of(delivery));
        if !lost && entered.is_none_or(|(at, until)| *until < handed && *at < handed) {
            let what =
                format!("the source hears that delivery {delivery} is done before the store of ids does");
            self.violate("deduplication", what);
        }
    }

    /// The store learns that this is done.
    fn entered(&mut self, written: usize, window: Duration) {
        // A lost one may have been done all the same.
        let flight = self.model.flights.0.get(&written);
        let members = flight.into_iter().flat_map(|flight| &flight.members);
        let done = members
            .filter_map(|member| self.model.deliveries.get(*member))
            .any(|member| member.stage == Stage::Done || member.settled_now);
        if !done {
            let what = format!("message {written} is entered as done, and it is not");
            return self.violate("deduplication", what);
        }
        let now = self.now();
        self.known.insert(written, (now, now + window));
        self.note(Event::Entered(written));
    }

    /// Whether a call of the store fails, and how long it takes.
    fn store_call(&mut self) -> (bool, Option<Duration>) {
        let fails = self.plan.features.deduplicates.is_some_and(|policy| policy.fails) && !self.calm;
        let (fails, slow) = (fails && self.chance(150), fails && self.chance(150));
        if fails {
            self.met("failing store of ids");
        }
        (fails, slow.then(|| ms(self.rng.u64(1..7_000))))
    }
}

/// The store as one process has it.
#[derive(Debug)]
pub(super) struct Ids {
    pub(super) world: World,
    pub(super) process: u32,
}

fn number(id: &Bytes) -> usize {
    let text = std::str::from_utf8(id).unwrap_or_default();
    text.parse().unwrap_or(usize::MAX)
}

impl Ids {
    /// Says whether the call fails.
    async fn called(&self) -> bool {
        let call = self.world.of(self.process).map(|mut state| state.store_call());
        let Some((fails, slow)) = call else {
            return std::future::pending().await;
        };
        if let Some(slow) = slow {
            rt::sleep(slow).await;
        }
        fails
    }
}

impl Ids {
    /// What the store has, once the call has come through.
    fn look(&self, ids: &[Bytes]) -> Option<Vec<bool>> {
        let mut state = self.world.of(self.process)?;
        let now = state.now();
        let known = |id: &Bytes| {
            state
                .known
                .get(&number(id))
                .is_some_and(|(_, until)| now < *until)
        };
        let seen: Vec<_> = ids.iter().map(known).collect();
        if seen.contains(&true) {
            state.met("duplicate");
        }
        Some(seen)
    }

    /// Enters these; where the call fails, some of them all the same.
    fn write(&self, ids: &[Bytes], window: Duration, fails: bool) -> Option<()> {
        let mut state = self.world.of(self.process)?;
        let most = if fails {
            state.rng.usize(..=ids.len())
        } else {
            ids.len()
        };
        for id in ids.iter().take(most) {
            state.entered(number(id), window);
        }
        drop(state);
        self.world.look();
        Some(())
    }
}

fn answer<T>(fails: bool, value: T) -> Result<T, DedupError> {
    if fails {
        return Err(DedupError("told to fail".to_owned()));
    }
    Ok(value)
}

impl DedupStore for Ids {
    fn seen<'a>(&'a self, ids: &'a [Bytes]) -> BoxFuture<'a, Result<Vec<bool>, DedupError>> {
        Box::pin(async move {
            let fails = self.called().await;
            match self.look(ids) {
                Some(seen) => answer(fails, seen),
                None => std::future::pending().await,
            }
        })
    }

    fn enter<'a>(&'a self, ids: &'a [Bytes], window: Duration) -> BoxFuture<'a, Result<usize, DedupError>> {
        Box::pin(async move {
            let fails = self.called().await;
            match self.write(ids, window, fails) {
                Some(()) => answer(fails, 0),
                None => std::future::pending().await,
            }
        })
    }
}
