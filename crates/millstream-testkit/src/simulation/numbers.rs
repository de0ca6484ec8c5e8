//! What must hold of messages with numbers: what comes behind one that is missing waits for it (`sequence`).
//!
//! The model follows a key while nothing disturbs it. Once something of it is lost or given back, a suspect was seen, or
//! what was awaited comes about when the wait for it is over, the order is the engine's to choose, and the key is *loose*.

use std::collections::BTreeMap;
use std::time::Duration;

use rustc_hash::FxHashMap;

use super::world::State;

/// The keys that have numbers.
#[derive(Debug, Default)]
pub(super) struct Sequences(FxHashMap<u64, Key>);

#[derive(Debug, Default)]
struct Key {
    last: u64,
    generation: u32,
    /// Deliveries behind a gap, by their numbers.
    held: BTreeMap<u64, usize>,
    /// Since when what is missing has been awaited, at least.
    since: Duration,
    loose: bool,
}

impl Key {
    /// What follows without a gap, in order.
    fn advance(&mut self) -> Vec<usize> {
        let mut free = Vec::new();
        while let Some(entry) = self.held.first_entry()
            && *entry.key() <= self.last + 1
        {
            self.last = self.last.max(*entry.key());
            free.push(entry.remove());
        }
        free
    }

    fn loosen(&mut self) -> Vec<usize> {
        self.loose = true;
        std::mem::take(&mut self.held).into_values().collect()
    }
}

impl Sequences {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Whether the order of this key is the engine's to choose.
    pub(super) fn is_loose(&self, key: u64) -> bool {
        self.0.get(&key).is_some_and(|key| key.loose)
    }

    pub(super) fn holds(&self, key: u64, delivery: usize) -> bool {
        let key = self.0.get(&key);
        key.is_some_and(|key| key.held.values().any(|held| *held == delivery))
    }

    /// Something of this key was lost or given back.
    pub(super) fn disturb(&mut self, key: u64) -> Vec<usize> {
        self.0.get_mut(&key).map_or_else(Vec::new, Key::loosen)
    }
}

impl State {
    /// A delivery of this key has this number. Those that are in line now, in their order.
    pub(super) fn numbered(&mut self, key: u64, number: u64, generation: u32, delivery: usize) -> Vec<usize> {
        let now = self.now();
        let Some(policy) = self.plan.features.sequence.filter(|policy| policy.holds) else {
            return vec![delivery];
        };
        // What is held is in flight. Where that may be too much, some of it goes on.
        let disturbed = self.model.suspects || self.model.out.len() >= policy.held;
        let sequences = &mut self.model.sequences.0;
        let Some(of) = sequences.get_mut(&key) else {
            let first = Key {
                last: number,
                generation,
                loose: disturbed,
                ..Key::default()
            };
            sequences.insert(key, first);
            return vec![delivery];
        };
        let overdue = !of.held.is_empty() && now >= of.since + policy.wait;
        if disturbed || overdue || of.loose {
            let mut free = of.loosen();
            free.push(delivery);
            return free;
        }
        if number > of.last + 1 && (!of.held.is_empty() || of.generation == generation) {
            if of.held.is_empty() {
                of.since = now;
            }
            // Two with one number go in the order in which they came, which is not told here.
            if of.held.insert(number, delivery).is_some() {
                of.loose = true;
            }
            self.met("gap");
            return Vec::new();
        }
        let mut free = vec![delivery];
        if number <= of.last {
            // A repeat ends no wait.
            return free;
        }
        of.last = number;
        if of.held.is_empty() {
            of.generation = generation;
        }
        free.extend(of.advance());
        of.since = now;
        free
    }

    /// A delivery of this key begins.
    pub(super) fn in_sequence(&mut self, key: u64, delivery: usize) {
        let Some(policy) = self.plan.features.sequence else {
            return;
        };
        let (now, suspects) = (self.now(), self.model.suspects);
        let mut free = Vec::new();
        let mut early = None;
        if let Some(of) = self.model.sequences.0.get_mut(&key).filter(|key| !key.loose) {
            while of.held.values().any(|held| *held == delivery) {
                if suspects {
                    free.extend(of.loosen());
                } else if now < of.since + policy.wait {
                    early = Some(of.last + 1);
                    break;
                } else {
                    // The wait was over, and what is held goes on up to the next gap.
                    of.since += policy.wait;
                    of.last = of.held.keys().next().map_or(of.last, |first| first - 1);
                    free.extend(of.advance());
                }
            }
        }
        if let Some(missing) = early {
            self.violate(
                "sequence",
                format!(
                    "delivery {delivery} of key {key} begins while number {missing} before it is awaited"
                ),
            );
        }
        self.model.lanes.entry(key).or_default().extend(free);
    }
}
