//! One shard of a batcher: its open batches, those that are closed and wait for a worker, and those that failed and
//! wait for another attempt.

use std::collections::VecDeque;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::bisect::Split;
use super::entrance::Mark;
use super::envelope::Envelope;
use super::probes::Probe;
use crate::batch::ClosedBy;
use crate::mutants::{Mutant, mutant};
use crate::rt::Instant;
use crate::spec::BatcherSpec;
use crate::ticket::Ticket;

type BatchKey = Option<Arc<str>>;

/// The most messages that an open batch reserves room for before they come.
const MOST_RESERVED: usize = 128;

pub(crate) struct Shard<T> {
    open: FxHashMap<BatchKey, Open<T>>,
    /// When each open batch is old enough, oldest first. An entry whose batch has been closed since is skipped.
    ages: VecDeque<(Instant, BatchKey)>,
    closed: VecDeque<Closed<T>>,
    parked: Vec<Parked<T>>,
}

struct Open<T> {
    batch: Closed<T>,
    bytes: usize,
    deadline: Instant,
}

/// A batch that no more is added to. Items and envelopes go together by index.
pub(crate) struct Closed<T> {
    pub(crate) key: BatchKey,
    pub(crate) items: Vec<T>,
    pub(crate) envelopes: Vec<Envelope>,
    pub(crate) by: ClosedBy,
    /// Handler runs of it so far.
    pub(crate) runs: u32,
    /// Of what it is a part, since that failed as a whole.
    pub(crate) split: Option<Arc<Split>>,
}

/// A failed batch between two attempts. Its keys are blocked: later items of them wait behind it.
struct Parked<T> {
    due: Instant,
    batch: Closed<T>,
    followers: Vec<Closed<T>>,
}

/// What a batch worker does next.
pub(crate) enum Turn<T> {
    Run(Closed<T>),
    /// Nothing to run until it is told, or until then.
    Wait(Option<Instant>),
}

impl<T> Default for Shard<T> {
    fn default() -> Self {
        Self {
            open: FxHashMap::default(),
            ages: VecDeque::new(),
            closed: VecDeque::new(),
            parked: Vec::new(),
        }
    }
}

impl<T> Closed<T> {
    fn new(key: BatchKey, room: usize) -> Self {
        Self {
            key,
            items: Vec::with_capacity(room),
            envelopes: Vec::with_capacity(room),
            by: ClosedBy::Age,
            runs: 0,
            split: None,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.envelopes.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.envelopes.is_empty()
    }

    /// Whether it has failed in this round of probes.
    fn is_doubtful(&self, round: u32) -> bool {
        self.envelopes.iter().any(|envelope| envelope.is_doubtful(round))
    }

    /// Whether a message in it probes, and has not taken so long that another may.
    fn has_probe(&self) -> bool {
        let mut probes = self
            .envelopes
            .iter()
            .filter_map(|envelope| envelope.probe.as_ref());
        probes.any(|probe| probe.is_current())
    }

    /// With a probe, which goes with one of its messages.
    fn probing(mut self, probe: Box<Probe>) -> Self {
        if let Some(first) = self.envelopes.first_mut() {
            first.probe = Some(probe);
        }
        self
    }

    pub(crate) fn orders(&self) -> Vec<u64> {
        self.envelopes.iter().map(|envelope| envelope.order).collect()
    }

    pub(crate) fn push(&mut self, envelope: Envelope, item: T) {
        self.envelopes.push(envelope);
        self.items.push(item);
    }

    /// Moves the messages that `which` picks to a batch of their own.
    pub(crate) fn take_out(&mut self, which: impl Fn(&Envelope) -> bool) -> Self {
        let mut out = Self {
            key: self.key.clone(),
            by: self.by,
            runs: self.runs,
            ..Self::new(None, 0)
        };
        if !self.envelopes.iter().any(&which) {
            return out;
        }
        let envelopes = std::mem::take(&mut self.envelopes);
        let items = std::mem::take(&mut self.items);
        for (envelope, item) in envelopes.into_iter().zip(items) {
            if which(&envelope) { &mut out } else { &mut *self }.push(envelope, item);
        }
        out
    }
}

impl<T> Shard<T> {
    /// Puts an item into its batch. Says how many workers should look: one for each batch it closed, and one if
    /// somebody must now watch its age.
    #[inline]
    pub(crate) fn add(
        &mut self,
        spec: &BatcherSpec,
        deadline: Instant,
        envelope: Envelope,
        output: T,
        Mark { key, flush, alone }: Mark,
    ) -> usize {
        let weight = envelope.weight();
        let mut wakes = match alone {
            true => self.close(&key, ClosedBy::Flush),
            false => 0,
        };
        let mut open = self.open.get_mut(&key);
        if open
            .as_ref()
            .is_some_and(|open| open.bytes + weight > spec.bytes.get())
        {
            wakes += self.close(&key, ClosedBy::Bytes);
            open = None;
        }
        let open = match open {
            Some(open) => open,
            None => {
                wakes += usize::from(self.ages.is_empty());
                self.ages.push_back((deadline, key.clone()));
                let batch = Closed::new(key.clone(), spec.size.get().min(MOST_RESERVED));
                self.open.entry(key).or_insert(Open {
                    batch,
                    bytes: 0,
                    deadline,
                })
            }
        };
        open.bytes += weight;
        open.batch.push(envelope, output);
        let full = open.batch.len() >= spec.size.get();
        if full || flush || alone {
            let key = open.batch.key.clone();
            wakes += self.close(&key, if full { ClosedBy::Size } else { ClosedBy::Flush });
        }
        wakes
    }

    fn close(&mut self, key: &BatchKey, by: ClosedBy) -> usize {
        let Some(mut open) = self.open.remove(key) else {
            return 0;
        };
        open.batch.by = by;
        self.closed.push_back(open.batch);
        if self.open.is_empty() {
            self.ages.clear();
        }
        1
    }

    /// Closes every open batch that holds a message which `which` picks.
    pub(crate) fn close_all(&mut self, by: ClosedBy, which: impl Fn(&Envelope) -> bool) {
        let keys: Vec<_> = self
            .open
            .iter()
            .filter(|(_, open)| open.batch.envelopes.iter().any(&which))
            .map(|(key, _)| key.clone())
            .collect();
        for key in keys {
            self.close(&key, by);
        }
    }

    /// What to run next.
    pub(crate) fn turn(&mut self, now: Instant, draining: bool) -> Turn<T> {
        if let Some(index) = self.parked.iter().position(|parked| parked.due <= now) {
            return Turn::Run(self.resume(index));
        }
        self.close_aged(now, draining);
        while let Some(mut batch) = self.closed.pop_front() {
            self.hold_back(&mut batch);
            if !batch.is_empty() {
                return Turn::Run(batch);
            }
        }
        self.wait(now)
    }

    /// What to run next while not all breakers are closed: what the processor's probe has come to, or one that `try_probe`
    /// lets, told whether it is doubtful. Those that have not failed in this round of probes go before those that have.
    pub(crate) fn probe(
        &mut self,
        now: Instant,
        draining: bool,
        round: u32,
        try_probe: impl Fn(bool) -> Option<Box<Probe>>,
    ) -> Turn<T> {
        self.close_aged(now, draining);
        self.hold_all_back();
        if let Some(index) = self.closed.iter().position(Closed::has_probe) {
            let index = self.first_before(index);
            if let Some(batch) = self.closed.remove(index) {
                return Turn::Run(batch);
            }
        }
        if !self.closed.is_empty()
            && let Some(probe) = try_probe(false)
            && let Some(batch) = self.closed.pop_front()
        {
            return Turn::Run(batch.probing(probe));
        }
        let due = self.parked.iter().enumerate();
        let due = due.filter(|(_, parked)| parked.due <= now);
        let due = due.map(|(index, parked)| ((parked.batch.is_doubtful(round), parked.due), index));
        if let Some(((doubtful, _), index)) = due.min()
            && let Some(probe) = try_probe(doubtful)
        {
            return Turn::Run(self.resume(index).probing(probe));
        }
        self.wait(now)
    }

    /// A parked batch runs again: what waited behind it goes on.
    fn resume(&mut self, index: usize) -> Closed<T> {
        let Parked { batch, followers, .. } = self.parked.remove(index);
        for follower in followers.into_iter().rev() {
            self.closed.push_front(follower);
        }
        batch
    }

    /// What must wait for a parked batch of its key waits behind it.
    fn hold_back(&mut self, batch: &mut Closed<T>) {
        for parked in self.parked.iter_mut().filter(|_| !mutant(Mutant::BatchOvertaken)) {
            let keys: FxHashSet<u64> = parked
                .batch
                .envelopes
                .iter()
                .chain(parked.followers.iter().flat_map(|follower| &follower.envelopes))
                .map(|held| held.order)
                .filter(|order| *order != 0)
                .collect();
            if !keys.is_empty() {
                let mut behind = batch.take_out(|envelope| keys.contains(&envelope.order));
                if !behind.is_empty() {
                    // It cannot run now: another may probe.
                    behind
                        .envelopes
                        .iter_mut()
                        .for_each(|envelope| envelope.probe = None);
                    parked.followers.push(behind);
                }
            }
        }
    }

    /// What is closed and must wait for a parked batch waits behind it.
    fn hold_all_back(&mut self) {
        for mut batch in std::mem::take(&mut self.closed) {
            self.hold_back(&mut batch);
            if !batch.is_empty() {
                self.closed.push_back(batch);
            }
        }
    }

    /// The first of the closed batches that must run before this one, by the keys that they share; itself if there is none.
    fn first_before(&self, mut index: usize) -> usize {
        while let Some(batch) = self.closed.get(index) {
            let orders = batch.envelopes.iter().map(|envelope| envelope.order);
            let keys: FxHashSet<u64> = orders.filter(|order| *order != 0).collect();
            let shares = |other: &Closed<T>| {
                let mut orders = other.envelopes.iter().map(|envelope| envelope.order);
                !keys.is_empty() && orders.any(|order| keys.contains(&order))
            };
            match self.closed.iter().take(index).position(shares) {
                Some(earlier) => index = earlier,
                None => break,
            }
        }
        index
    }

    /// Nothing runs until it is told, or until a batch is due or old enough.
    fn wait(&self, now: Instant) -> Turn<T> {
        let due = self
            .parked
            .iter()
            .map(|parked| parked.due)
            .filter(|due| *due > now)
            .min();
        let aged = self.ages.front().map(|(deadline, _)| *deadline);
        Turn::Wait([due, aged].into_iter().flatten().min())
    }

    /// Whether a batch could run now that has not failed in this round of probes.
    pub(crate) fn has_undoubted(&self, now: Instant, round: u32) -> bool {
        let mut parked = self.parked.iter().filter(|parked| parked.due <= now);
        parked.any(|parked| !parked.batch.is_doubtful(round))
            || !self.closed.is_empty()
            || self.open.values().any(|open| open.deadline <= now)
    }

    /// The first message of a batch that could run now, if there is one.
    pub(crate) fn due(&self, now: Instant) -> Option<&Envelope> {
        let parked = self.parked.iter().filter(|parked| parked.due <= now);
        let parked = parked.map(|parked| &parked.batch).next();
        let aged = self.open.values().filter(|open| open.deadline <= now);
        let aged = aged.map(|open| &open.batch).next();
        let blocked = self.parked.iter().any(|parked| parked.due > now);
        // What is closed may wait behind what is parked.
        let closed = self.closed.front().filter(|_| !blocked);
        parked.or(closed).or(aged)?.envelopes.first()
    }

    fn close_aged(&mut self, now: Instant, draining: bool) {
        while let Some((deadline, key)) = self.ages.front() {
            let current = self.open.get(key).is_some_and(|open| open.deadline == *deadline);
            if current && *deadline > now && !draining {
                break;
            }
            let key = key.clone();
            self.ages.pop_front();
            if current {
                self.close(&key, if draining { ClosedBy::Flush } else { ClosedBy::Age });
            }
        }
    }

    /// From now on batches close by these settings: what is full by them is closed, and what is open grows old by them.
    pub(crate) fn set(&mut self, old: &BatcherSpec, new: &BatcherSpec) {
        let (sooner, later) = (
            old.max_age.saturating_sub(new.max_age),
            new.max_age.saturating_sub(old.max_age),
        );
        let shifted = |deadline: Instant| {
            let deadline = deadline.checked_sub(sooner).unwrap_or(deadline);
            deadline.checked_add(later).unwrap_or(deadline)
        };
        for open in self.open.values_mut() {
            open.deadline = shifted(open.deadline);
        }
        for (deadline, _) in &mut self.ages {
            *deadline = shifted(*deadline);
        }
        let full = self
            .open
            .iter()
            .filter(|(_, open)| open.batch.len() >= new.size.get());
        let full: Vec<_> = full.map(|(key, _)| key.clone()).collect();
        for key in full {
            self.close(&key, ClosedBy::Size);
        }
    }

    /// Whether it has no messages, apart from those that run.
    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty() && self.closed.is_empty() && self.parked.is_empty()
    }

    /// The keys of all its messages, one for each.
    pub(crate) fn orders(&self) -> impl Iterator<Item = u64> {
        let open = self.open.values().map(|open| &open.batch);
        let parked = self
            .parked
            .iter()
            .flat_map(|parked| std::iter::once(&parked.batch).chain(&parked.followers));
        let batches = open.chain(&self.closed).chain(parked);
        batches.flat_map(|batch| batch.envelopes.iter().map(|envelope| envelope.order))
    }

    /// Keeps a failed batch until then.
    pub(crate) fn park(&mut self, due: Instant, batch: Closed<T>) {
        self.parked.push(Parked {
            due,
            batch,
            followers: Vec::new(),
        });
    }

    /// Runs these before all that is closed, in this order.
    pub(crate) fn put_first(&mut self, parts: Vec<Closed<T>>) {
        for part in parts.into_iter().rev() {
            self.closed.push_front(part);
        }
    }

    /// Takes out the parts of a split batch that still wait, in their order.
    pub(crate) fn parts_of(&mut self, split: &Arc<Split>) -> Vec<Closed<T>> {
        let (parts, others): (VecDeque<_>, _) = std::mem::take(&mut self.closed)
            .into_iter()
            .partition(|batch| batch.split.as_ref().is_some_and(|of| Arc::ptr_eq(of, split)));
        self.closed = others;
        Vec::from(parts)
    }

    /// Takes out the messages that `which` picks, wherever they wait. Their items are the caller's to drop: they are the
    /// user's.
    pub(crate) fn remove(&mut self, which: impl Fn(&Ticket) -> bool) -> Vec<Closed<T>> {
        let picks = |envelope: &Envelope| which(&envelope.ticket);
        let mut out = Vec::new();
        for open in self.open.values_mut() {
            let gone = open.batch.take_out(picks);
            open.bytes -= gone.envelopes.iter().map(Envelope::weight).sum::<usize>();
            out.push(gone);
        }
        self.open.retain(|_, open| !open.batch.is_empty());
        out.extend(self.closed.iter_mut().map(|batch| batch.take_out(picks)));
        self.closed.retain(|batch| !batch.is_empty());
        out.extend(self.remove_parked(which));
        out
    }

    /// Takes out the messages that `which` picks of what is parked and of what waits behind that.
    pub(crate) fn remove_parked(&mut self, which: impl Fn(&Ticket) -> bool) -> Vec<Closed<T>> {
        let picks = |envelope: &Envelope| which(&envelope.ticket);
        let mut out = Vec::new();
        for parked in &mut self.parked {
            out.push(parked.batch.take_out(picks));
            out.extend(
                parked
                    .followers
                    .iter_mut()
                    .map(|follower| follower.take_out(picks)),
            );
        }
        // Without the batch they waited for, followers go on.
        let (gone, parked) = std::mem::take(&mut self.parked)
            .into_iter()
            .partition(|p: &Parked<T>| p.batch.is_empty());
        self.parked = parked;
        let gone: Vec<Parked<T>> = gone;
        for follower in gone.into_iter().flat_map(|parked| parked.followers).rev() {
            if !follower.is_empty() {
                self.closed.push_front(follower);
            }
        }
        out
    }
}
