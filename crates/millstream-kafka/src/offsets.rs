//! Which offsets of one partition, in one assignment of it, have been handed out and which are settled: [`Offsets`].
//!
//! Nothing here talks to a broker. What may be committed is the lowest offset that was handed out and is not settled
//! (P7): offsets need not be consecutive, since compaction and the markers of transactions leave gaps, so it is
//! counted in what was handed out and never as "one more".

use std::collections::VecDeque;
use std::ops::Range;

/// The offsets of one assignment, and what was handed out under them until it is settled.
#[derive(Debug)]
pub(crate) struct Offsets<T> {
    /// From the first unsettled one on, in ascending order.
    window: VecDeque<Slot<T>>,
    /// What may be committed while the window is empty: one past the last that was handed out; what had been committed
    /// before the first is.
    end: Option<u64>,
    /// Whether anything was handed out, so that `end` is a position of ours.
    begun: bool,
    /// Settled by an earlier assignment, and not seen again so far; ascending.
    done: VecDeque<Range<u64>>,
}

#[derive(Debug)]
struct Slot<T> {
    offset: u64,
    /// None once settled.
    out: Option<T>,
}

/// What an offset that the broker gave turns out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// To be handed out.
    New,
    /// An earlier assignment has settled it.
    Done,
    /// Not beyond what came before: the partition's log was cut or made anew, and this assignment says nothing about
    /// it any more.
    Backwards,
}

impl<T> Offsets<T> {
    /// Of an assignment that begins where the group has committed, with what it had settled beyond that.
    pub(crate) fn new(committed: Option<u64>, done: Vec<Range<u64>>) -> Self {
        Self {
            window: VecDeque::new(),
            end: committed,
            begun: false,
            done: done.into(),
        }
    }

    /// Takes note of what the broker gave.
    pub(crate) fn arrive(&mut self, offset: u64, value: impl FnOnce() -> T) -> Arrival {
        if self.begun && self.end.is_some_and(|end| offset < end) {
            return Arrival::Backwards;
        }
        self.begun = true;
        self.end = Some(offset + 1);
        while self.done.front().is_some_and(|range| range.end <= offset) {
            self.done.pop_front();
        }
        if let Some(range) = self.done.front_mut()
            && range.start <= offset
        {
            range.start = offset + 1;
            // Before the first unsettled one there is nothing to remember.
            if !self.window.is_empty() {
                self.window.push_back(Slot { offset, out: None });
            }
            return Arrival::Done;
        }
        self.window.push_back(Slot {
            offset,
            out: Some(value()),
        });
        Arrival::New
    }

    fn slot(&mut self, offset: u64) -> Option<&mut Slot<T>> {
        let first = self.window.front()?.offset;
        // Without gaps the distance is the index.
        let guess = usize::try_from(offset.checked_sub(first)?).ok()?;
        let index = if self.window.get(guess).is_some_and(|slot| slot.offset == offset) {
            guess
        } else {
            self.window
                .binary_search_by_key(&offset, |slot| slot.offset)
                .ok()?
        };
        self.window.get_mut(index)
    }

    /// Settles what was handed out under this offset; more than once is as good as once.
    pub(crate) fn settle(&mut self, offset: u64) {
        if let Some(slot) = self.slot(offset) {
            slot.out = None;
        }
        while self.window.front().is_some_and(|slot| slot.out.is_none()) {
            self.window.pop_front();
        }
    }

    /// What was handed out under this offset, if it is not settled.
    pub(crate) fn out(&mut self, offset: u64) -> Option<&T> {
        self.slot(offset)?.out.as_ref()
    }

    /// What may be committed: everything before it is settled. None before there is anything to say.
    pub(crate) fn mark(&self) -> Option<u64> {
        self.window.front().map(|slot| slot.offset).or(self.end)
    }

    /// How many offsets are kept in memory.
    pub(crate) fn len(&self) -> usize {
        self.window.len()
    }

    /// How many of them are not settled.
    pub(crate) fn unsettled(&self) -> usize {
        self.window.iter().filter(|slot| slot.out.is_some()).count()
    }

    /// What is settled beyond the mark, ascending. A range may span offsets that do not exist.
    pub(crate) fn settled(&self) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let mut open = false;
        for slot in &self.window {
            match ranges.last_mut() {
                Some(last) if open && slot.out.is_none() => last.end = slot.offset + 1,
                _ if slot.out.is_none() => ranges.push(slot.offset..slot.offset + 1),
                _ => {}
            }
            open = slot.out.is_none();
        }
        ranges.extend(self.done.iter().filter(|range| !range.is_empty()).cloned());
        ranges
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn gaps_of_compaction_and_markers_do_not_hold_the_mark_back() {
        let mut offsets = Offsets::new(None, Vec::new());
        for offset in [3, 7, 8, 20] {
            assert_eq!(offsets.arrive(offset, || ()), Arrival::New);
        }
        assert_eq!(offsets.mark(), Some(3));
        offsets.settle(7);
        assert_eq!(offsets.mark(), Some(3));
        assert!(offsets.settled().iter().eq([&(7..8)]));
        offsets.settle(3);
        assert_eq!(offsets.mark(), Some(8));
        offsets.settle(20);
        offsets.settle(8);
        assert_eq!((offsets.mark(), offsets.len()), (Some(21), 0));
    }

    #[test]
    fn nothing_is_said_before_anything_came() {
        assert_eq!(Offsets::<()>::new(None, Vec::new()).mark(), None);
        assert_eq!(Offsets::<()>::new(Some(5), Vec::new()).mark(), Some(5));
    }

    #[test]
    fn an_offset_that_does_not_follow_ends_the_assignment() {
        let mut offsets = Offsets::new(Some(10), Vec::new());
        // The first may be anywhere: what was committed may be gone from the log.
        assert_eq!(offsets.arrive(4, || ()), Arrival::New);
        assert_eq!(offsets.arrive(4, || ()), Arrival::Backwards);
        assert_eq!(offsets.arrive(3, || ()), Arrival::Backwards);
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// The next offset, so many further on.
        Arrive(u64),
        /// One of those that came.
        Settle(prop::sample::Index),
        /// The member dies, and another is assigned what the first has committed.
        Crash,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => prop_oneof![4 => Just(0_u64), 1 => 1_u64..5].prop_map(Step::Arrive),
            6 => any::<prop::sample::Index>().prop_map(Step::Settle),
            1 => Just(Step::Crash),
        ]
    }

    proptest! {
        /// P7, against a model that remembers everything: the mark never passes an unsettled offset and is as high as
        /// it can be; what is settled is not handed out again after a crash; memory is what is between mark and end.
        #[test]
        fn the_mark_is_the_lowest_unsettled(steps in prop::collection::vec(step(), 0..200)) {
            let mut log: BTreeSet<u64> = BTreeSet::new();
            let mut settled: BTreeMap<u64, bool> = BTreeMap::new();
            let mut offsets = Offsets::new(None, Vec::new());
            let mut next = 0;
            for step in steps {
                match step {
                    Step::Arrive(gap) => {
                        let offset = next + gap;
                        next = offset + 1;
                        log.insert(offset);
                        settled.insert(offset, false);
                        prop_assert_eq!(offsets.arrive(offset, || offset), Arrival::New);
                    }
                    Step::Settle(index) => {
                        if let Some(offset) = log.iter().nth(index.index(log.len().max(1))) {
                            offsets.settle(*offset);
                            settled.insert(*offset, true);
                        }
                    }
                    Step::Crash => {
                        let committed = offsets.mark();
                        offsets = Offsets::new(committed, offsets.settled());
                        for offset in log.range(committed.unwrap_or(0)..) {
                            let done = settled[offset];
                            let expected = if done { Arrival::Done } else { Arrival::New };
                            prop_assert_eq!(offsets.arrive(*offset, || *offset), expected);
                        }
                    }
                }
                let lowest = settled.iter().find(|(_, settled)| !**settled).map(|(offset, _)| *offset);
                let end = log.last().map(|last| last + 1);
                prop_assert_eq!(offsets.mark(), lowest.or(end));
                let kept = lowest.map_or(0, |lowest| log.range(lowest..).count());
                prop_assert!(offsets.len() <= kept);
                for (offset, done) in &settled {
                    prop_assert_eq!(offsets.out(*offset).is_some(), !done);
                    let beyond = offsets.settled().iter().any(|range| range.contains(offset));
                    prop_assert!(!beyond || *done);
                }
            }
        }
    }
}
