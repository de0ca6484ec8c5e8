//! What this process gave back to the queue: [`Returned`].
//!
//! SQS counts every receive of a message and lets nobody write anything on it. So what a release takes back, and the
//! failures that a retry carries, are remembered here, by message, for when it comes again to this process. Another
//! process sees the bare count.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use rustc_hash::FxHashMap;

/// Messages that are remembered; the oldest are forgotten first.
const MOST: usize = 100_000;

/// What is remembered of one message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Note {
    /// Receives that count as no delivery.
    excused: u32,
    failures: u32,
    /// Which entry of the list of ages is its.
    stamp: u64,
}

/// Messages that went back.
#[derive(Debug, Default)]
pub(crate) struct Returned(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    notes: FxHashMap<Arc<str>, Note>,
    ages: VecDeque<(u64, Arc<str>)>,
    stamps: u64,
}

impl Returned {
    /// Deliveries and failures of a message that SQS has handed out so often.
    pub(crate) fn look(&self, id: &str, receives: u32) -> (u32, u32) {
        let note = self.0.lock().notes.get(id).copied().unwrap_or_default();
        (receives.saturating_sub(note.excused).max(1), note.failures)
    }

    /// Its last receive counts as no delivery: the next one will be this delivery again.
    pub(crate) fn released(&self, id: &Arc<str>, receives: u32, delivery: u32) {
        let excused = receives.saturating_add(1).saturating_sub(delivery);
        let mut state = self.0.lock();
        let failures = state.notes.get(id).map_or(0, |note| note.failures);
        state.note(id, excused, failures);
    }

    /// It has had an outcome: the next receive is its first delivery again.
    pub(crate) fn retried(&self, id: &Arc<str>, receives: u32, failures: u32) {
        self.0.lock().note(id, receives, failures);
    }

    /// It will not come again.
    pub(crate) fn forget(&self, id: &str) {
        self.0.lock().notes.remove(id);
    }
}

impl State {
    fn note(&mut self, id: &Arc<str>, excused: u32, failures: u32) {
        self.stamps += 1;
        let stamp = self.stamps;
        let note = Note {
            excused,
            failures,
            stamp,
        };
        self.notes.insert(Arc::clone(id), note);
        self.ages.push_back((stamp, Arc::clone(id)));
        while self.ages.len() > MOST {
            if let Some((stamp, id)) = self.ages.pop_front()
                && self.notes.get(&id).is_some_and(|note| note.stamp == stamp)
            {
                self.notes.remove(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_no_delivery_and_keeps_the_failures() {
        let (returned, id) = (Returned::default(), Arc::from("a"));
        assert_eq!(returned.look(&id, 1), (1, 0));
        returned.released(&id, 1, 1);
        assert_eq!(returned.look(&id, 2), (1, 0));
        // It was received a second time, by somebody who did not give it back.
        assert_eq!(returned.look(&id, 3), (2, 0));
        returned.released(&id, 3, 2);
        assert_eq!(returned.look(&id, 4), (2, 0));
        returned.retried(&id, 4, 7);
        returned.released(&id, 5, 1);
        assert_eq!(returned.look(&id, 6), (1, 7));
    }

    #[test]
    fn a_retry_begins_the_count_anew() {
        let (returned, id) = (Returned::default(), Arc::from("a"));
        returned.retried(&id, 5, 2);
        assert_eq!(returned.look(&id, 6), (1, 2));
        assert_eq!(returned.look(&id, 7), (2, 2));
        returned.forget(&id);
        assert_eq!(returned.look(&id, 8), (8, 0));
    }

    #[test]
    fn the_oldest_are_forgotten_first() {
        let returned = Returned::default();
        let id = |number: usize| Arc::from(number.to_string());
        returned.retried(&id(0), 1, 1);
        returned.retried(&id(1), 1, 1);
        // Young again.
        returned.retried(&id(0), 2, 2);
        for number in 2..MOST + 1 {
            returned.retried(&id(number), 1, 1);
        }
        assert_eq!(returned.look("0", 3), (1, 2));
        assert_eq!(returned.look("1", 3), (3, 0));
        assert_eq!(returned.look("2", 3), (2, 1));
    }
}
