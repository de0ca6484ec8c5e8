//! What a visit has put back into its queue, and may get again: [`Copies`].
//!
//! A copy stands at the end of the queue, but for one with priorities: there it comes again before what has a lower one, and
//! has to be kept away for that to come. So that this has a bound, what fills the room for it is put back once more. A quorum
//! queue hands out one message of a lower priority after two of a higher one, so a visit gets on. A classic one hands out the
//! higher ones alone, and the visit ends with an error where these are more than there is room for.

use std::collections::{BTreeMap, HashMap};

use super::again::Again;

/// Letters by their delivery tags: their ids, and what they are put back as.
pub(super) type Held = BTreeMap<u64, (String, Again)>;

/// How many copies are kept away from the queue at most.
pub(super) const MOST: usize = 10_000;

/// How many bytes they have at most, but for the last one.
pub(super) const BYTES: usize = 32 << 20;

/// Copies of letters: those that are in the queue, and those that were got again and are kept away from it.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// The ids of those in the queue, and how many of each.
    there: HashMap<String, usize>,
    met: Held,
    /// What those are together.
    bytes: usize,
    /// No letter that is none of these was got since what was met has last been put back.
    idle: bool,
}

impl Copies {
    /// A copy of this letter is in the queue.
    pub(super) fn put(&mut self, id: String) {
        *self.there.entry(id).or_default() += 1;
    }

    /// How many are in the queue.
    pub(super) fn there(&self) -> usize {
        self.there.values().sum()
    }

    /// Keeps what was got if it is one of these; gives it back if it is not.
    ///
    /// Copies of a letter share an id: it does not matter which of them is taken for the one that was put back.
    pub(super) fn meet(
        &mut self,
        tag: u64,
        id: String,
        again: Again,
        size: usize,
    ) -> Option<(String, Again)> {
        let Some(times) = self.there.get_mut(&id) else {
            self.idle = false;
            return Some((id, again));
        };
        *times -= 1;
        if *times == 0 {
            self.there.remove(&id);
        }
        self.met.insert(tag, (id, again));
        self.bytes += size;
        None
    }

    /// Whether there is no room for another one.
    pub(super) fn are_many(&self) -> bool {
        self.met.len() >= MOST || self.bytes >= BYTES
    }

    /// Whether nothing else was got for as long as it took to fill the room.
    pub(super) fn are_all(&self) -> bool {
        self.idle
    }

    /// Those that are kept away, to be put back.
    pub(super) fn take(&mut self) -> Held {
        self.bytes = 0;
        self.idle = true;
        std::mem::take(&mut self.met)
    }
}
