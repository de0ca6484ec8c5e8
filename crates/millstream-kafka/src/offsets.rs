//! Which offsets of one partition, in one assignment of it, have been handed out and which are settled: [`Offsets`].
//!
//! Nothing here talks to a broker. What may be committed is the lowest offset that was handed out and is not settled
//! (P7): offsets need not be consecutive, since compaction and the markers of transactions leave gaps, so it is
//! counted in what was handed out and never as "one more".

use std::collections::VecDeque;
use std::ops::Range;

use crate::metadata::{TOLD, cost};

/// The offsets of one assignment, and what was handed out under them until it is settled.
#[derive(Debug)]
pub(crate) struct Offsets<T> {
    /// From the first unsettled one on, in ascending order.
    window: VecDeque<Slot<T>>,
    /// What may be committed while the window is empty: one past the last that was handed out; what had been committed
    /// before the first is.
    end: Option<u64>,
    /// Settled by an earlier assignment, and not seen again so far; ascending.
    done: VecDeque<Range<u64>>,
    /// What it takes at most to say which of the window are settled, whichever come to be; and of `done`.
    cost: (usize, usize),
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
    /// Before what came last, or what was committed: the partition's log was cut or made anew, and what is known of it
    /// from this offset on is no longer so.
    Backwards,
}

impl<T> Offsets<T> {
    /// Of an assignment that begins where the group has committed, with what it had settled beyond that.
    pub(crate) fn new(committed: Option<u64>, done: Vec<Range<u64>>) -> Self {
        let mut offsets = Self {
            window: VecDeque::new(),
            end: committed,
            done: done.into(),
            cost: (0, 0),
        };
        offsets.reckon_done();
        offsets
    }

    /// What it takes to say all that was settled by earlier assignments and not seen again.
    fn reckon_done(&mut self) {
        let (mut sum, mut at) = (0, None);
        for range in &self.done {
            // The first gap changes with the window's end.
            let gap = at.map_or(u64::MAX, |at| range.start.saturating_sub(at));
            sum += cost(gap) + cost(range.end.saturating_sub(range.start));
            at = Some(range.end);
        }
        self.cost.1 = sum;
    }

    /// Whether all that is settled could still be told beside the mark if this offset came too, whichever of them come
    /// to be settled. It always could where nothing is handed out.
    pub(crate) fn has_room(&self, offset: u64) -> bool {
        let Some(last) = self.window.back() else {
            return true;
        };
        let more = cost(offset.saturating_sub(last.offset));
        // One byte for the last run, which nothing follows.
        self.cost.0 + self.cost.1 + more < TOLD
    }

    /// Whether half of what can be told is free.
    pub(crate) fn has_plenty(&self) -> bool {
        self.window.is_empty() || self.cost.0 + self.cost.1 <= TOLD / 2
    }

    fn push(&mut self, offset: u64, out: Option<T>) {
        if let Some(last) = self.window.back() {
            self.cost.0 += cost(offset - last.offset);
        }
        self.window.push_back(Slot { offset, out });
    }

    /// The log was cut or made anew, and goes on at this offset: forgets all that was known of it from there on. What
    /// is before it stays, since nothing else would come for it.
    pub(crate) fn cut(&mut self, offset: u64) {
        while let Some(gone) = self.window.pop_back_if(|slot| slot.offset >= offset) {
            if let Some(last) = self.window.back() {
                self.cost.0 -= cost(gone.offset - last.offset);
            }
        }
        self.end = Some(offset);
        self.done.clear();
        self.reckon_done();
    }

    /// What was handed out and is not settled, in ascending order.
    pub(crate) fn handed_out(&self) -> impl Iterator<Item = (u64, &T)> {
        self.window
            .iter()
            .filter_map(|slot| Some((slot.offset, slot.out.as_ref()?)))
    }

    /// Takes note of what the broker gave.
    pub(crate) fn arrive(&mut self, offset: u64, value: impl FnOnce() -> T) -> Arrival {
        if self.goes_back(offset) {
            return Arrival::Backwards;
        }
        self.end = Some(offset + 1);
        if self.done.front().is_some_and(|range| range.end <= offset) {
            while self.done.front().is_some_and(|range| range.end <= offset) {
                self.done.pop_front();
            }
            self.reckon_done();
        }
        if let Some(range) = self.done.front_mut()
            && range.start <= offset
        {
            range.start = offset + 1;
            // Before the first unsettled one there is nothing to remember.
            if !self.window.is_empty() {
                self.push(offset, None);
            }
            return Arrival::Done;
        }
        self.push(offset, Some(value()));
        Arrival::New
    }

    /// Whether this offset is before what came last, or what was committed.
    pub(crate) fn goes_back(&self, offset: u64) -> bool {
        self.end.is_some_and(|end| offset < end)
    }

    fn index(&self, offset: u64) -> Option<usize> {
        let first = self.window.front()?.offset;
        // Without gaps the distance is the index.
        let guess = usize::try_from(offset.checked_sub(first)?).ok()?;
        if self.window.get(guess).is_some_and(|slot| slot.offset == offset) {
            Some(guess)
        } else {
            self.window.binary_search_by_key(&offset, |slot| slot.offset).ok()
        }
    }

    /// Settles what was handed out under this offset; more than once is as good as once.
    pub(crate) fn settle(&mut self, offset: u64) {
        if let Some(slot) = self.index(offset).and_then(|index| self.window.get_mut(index)) {
            slot.out = None;
        }
        while self.window.front().is_some_and(|slot| slot.out.is_none()) {
            let Some(gone) = self.window.pop_front() else {
                break;
            };
            if let Some(first) = self.window.front() {
                self.cost.0 -= cost(first.offset - gone.offset);
            }
        }
    }

    /// What was handed out under this offset, if it is not settled.
    pub(crate) fn out(&self, offset: u64) -> Option<&T> {
        self.window.get(self.index(offset)?)?.out.as_ref()
    }

    /// The same, to be changed.
    pub(crate) fn out_mut(&mut self, offset: u64) -> Option<&mut T> {
        let index = self.index(offset)?;
        self.window.get_mut(index)?.out.as_mut()
    }

    /// What may be committed: everything before it is settled. None before there is anything to say.
    pub(crate) fn mark(&self) -> Option<u64> {
        self.window.front().map(|slot| slot.offset).or(self.end)
    }

    /// The first offset that is not settled, once these are, and that such a mark with such ranges beyond it would pass:
    /// none, or what is to be committed is wrong (P7).
    pub(crate) fn passed(
        &self,
        mark: u64,
        beyond: &[Range<u64>],
        these: impl Fn(u64) -> bool,
    ) -> Option<u64> {
        let told = |offset: u64| {
            let after = beyond.partition_point(|range| range.end <= offset);
            offset < mark || beyond.get(after).is_some_and(|range| range.contains(&offset))
        };
        let open = self.handed_out().map(|(offset, _)| offset);
        open.filter(|offset| !these(*offset)).find(|offset| told(*offset))
    }

    /// The mark, and what is settled beyond it, as they will be once these are settled too.
    pub(crate) fn once_settled(&self, these: impl Fn(u64) -> bool) -> (Option<u64>, Vec<Range<u64>>) {
        let settled = |slot: &Slot<T>| slot.out.is_none() || these(slot.offset);
        let first = self.window.iter().position(|slot| !settled(slot));
        let mark = first.and_then(|first| self.window.get(first));
        let mark = mark.map(|slot| slot.offset).or(self.end);
        let beyond = self.window.iter().skip(first.unwrap_or(self.window.len()));
        let ranges = self.ranges(beyond.map(|slot| (slot.offset, settled(slot))));
        (mark, ranges)
    }

    /// Behind what was handed out last; what had been committed before the first is.
    pub(crate) fn end(&self) -> Option<u64> {
        self.end
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
        self.ranges(self.window.iter().map(|slot| (slot.offset, slot.out.is_none())))
    }

    fn ranges(&self, slots: impl Iterator<Item = (u64, bool)>) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let mut open = false;
        for (offset, settled) in slots {
            match ranges.last_mut() {
                Some(last) if open && settled => last.end = offset + 1,
                _ if settled => ranges.push(offset..offset + 1),
                _ => {}
            }
            open = settled;
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
    use crate::ends::Note;
    use crate::metadata;

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
    fn an_offset_that_does_not_follow_says_that_the_log_was_cut() {
        let mut offsets = Offsets::new(Some(3), Vec::new());
        // What was committed may be gone from the log.
        assert_eq!(offsets.arrive(4, || ()), Arrival::New);
        assert_eq!(offsets.arrive(4, || ()), Arrival::Backwards);
        assert_eq!(offsets.arrive(3, || ()), Arrival::Backwards);
    }

    /// P1: what was settled in the old log says nothing of what is in the new one.
    #[test]
    fn what_was_settled_in_a_log_that_was_cut_since_is_forgotten() {
        let mut offsets = Offsets::new(Some(1_000), std::iter::once(1_005..1_100).collect());
        assert_eq!(offsets.arrive(0, || ()), Arrival::Backwards);
        offsets.cut(0);
        assert!((0..1_200).all(|offset| offsets.arrive(offset, || ()) == Arrival::New));
        assert_eq!(offsets.settled(), []);
    }

    /// P7: what is before the cut is still in the log, and nothing comes for it.
    #[test]
    fn a_cut_leaves_what_is_before_it() {
        let mut offsets = Offsets::new(None, Vec::new());
        (90..150).for_each(|offset| _ = offsets.arrive(offset, || ()));
        (90..150)
            .filter(|offset| ![95, 97, 120].contains(offset))
            .for_each(|offset| offsets.settle(offset));
        assert_eq!(offsets.arrive(100, || ()), Arrival::Backwards);
        offsets.cut(100);
        assert!(offsets.handed_out().map(|(offset, ())| offset).eq([95, 97]));
        assert_eq!(offsets.arrive(100, || ()), Arrival::New);
        [100, 97].iter().for_each(|offset| offsets.settle(*offset));
        assert_eq!(offsets.mark(), Some(95));
        offsets.settle(95);
        assert_eq!(
            (offsets.mark(), offsets.len(), offsets.cost),
            (Some(101), 0, (0, 0))
        );
    }

    /// P7: the sentinel before each commit.
    #[test]
    fn a_mark_or_a_range_that_passes_an_unsettled_offset_is_found_out() {
        let mut offsets = Offsets::new(None, Vec::new());
        (10..20).for_each(|offset| _ = offsets.arrive(offset, || ()));
        [10, 12, 13].iter().for_each(|offset| offsets.settle(*offset));
        let none = |_: u64| false;
        let told = offsets.settled();
        assert_eq!(offsets.passed(offsets.mark().unwrap(), &told, none), None);
        assert_eq!(offsets.passed(12, &told, none), Some(11));
        assert_eq!(offsets.passed(12, &told, |offset| offset == 11), None);
        assert_eq!(
            offsets.passed(11, std::slice::from_ref(&(12..16)), none),
            Some(14)
        );
    }

    #[test]
    fn without_gaps_three_thousand_offsets_can_be_told_of() {
        let mut offsets = Offsets::new(None, Vec::new());
        let told = (0_u64..).take_while(|offset| {
            let room = offsets.has_room(*offset);
            offsets.arrive(*offset, || ());
            room
        });
        assert_eq!(told.count(), TOLD);
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// The next offset, so many further on.
        Arrive(u64),
        /// One of those that came.
        Settle(prop::sample::Index),
        /// The member dies, and another is assigned what the first has committed.
        Crash,
        /// The log is cut or made anew, and goes on at one of those that there could be.
        Cut(prop::sample::Index),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => prop_oneof![4 => Just(0_u64), 1 => 1_u64..5].prop_map(Step::Arrive),
            6 => any::<prop::sample::Index>().prop_map(Step::Settle),
            1 => Just(Step::Crash),
            1 => any::<prop::sample::Index>().prop_map(Step::Cut),
        ]
    }

    proptest! {
        /// P7, against a model that remembers everything: the mark never passes an unsettled offset and is as high as
        /// it can be; what is settled is not handed out again after a crash; memory is what is between mark and end;
        /// nothing stands of what was cut off.
        #[test]
        fn the_mark_is_the_lowest_unsettled(steps in prop::collection::vec(step(), 0..200)) {
            let mut log: BTreeSet<u64> = BTreeSet::new();
            let mut settled: BTreeMap<u64, bool> = BTreeMap::new();
            let mut offsets = Offsets::new(None, Vec::new());
            let (mut next, mut end) = (0, None);
            for step in steps {
                match step {
                    Step::Arrive(gap) => {
                        let offset = next + gap;
                        next = offset + 1;
                        end = Some(next);
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
                        let last = log.range(committed.unwrap_or(0)..).last();
                        end = last.map(|last| last + 1).or(committed);
                    }
                    Step::Cut(index) => {
                        let at = index.index(next as usize + 1) as u64;
                        if end.is_some_and(|end| at < end) {
                            prop_assert_eq!(offsets.arrive(at, || at), Arrival::Backwards);
                        }
                        offsets.cut(at);
                        (next, end) = (at, Some(at));
                        log.split_off(&at);
                        settled.split_off(&at);
                    }
                }
                let lowest = settled.iter().find(|(_, settled)| !**settled).map(|(offset, _)| *offset);
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

    proptest! {
        // Each is four thousand offsets.
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// What a transaction has to tell fits, whatever comes to be settled: also of offsets far apart, and after
        /// crashes. What it counts as settled before it is, is told as if it were.
        #[test]
        fn what_is_settled_can_always_be_told(
            rounds in prop::collection::vec(
                (0_u32..40, prop::collection::vec(any::<bool>(), 1..60)),
                1..4,
            ),
            every in 1_usize..4,
        ) {
            let mut committed = (None, String::new());
            let mut done: BTreeSet<u64> = BTreeSet::new();
            for (wide, pattern) in rounds {
                let ranges = committed.0.map_or_else(Vec::new, |at| metadata::decode(at, &committed.1).1);
                let mut offsets = Offsets::new(committed.0, ranges);
                // The same log in each round, from where the last ended.
                let log = (0_u64..4_000).map(|index| index + ((index / 7) << wide.min(20)));
                let mut out: BTreeSet<u64> = BTreeSet::new();
                for offset in log.filter(|offset| committed.0.is_none_or(|at| *offset >= at)) {
                    if !offsets.has_room(offset) {
                        break;
                    }
                    if offsets.arrive(offset, || ()) == Arrival::New {
                        out.insert(offset);
                    }
                }
                let chosen: BTreeSet<u64> = out
                    .iter()
                    .zip(pattern.iter().cycle())
                    .enumerate()
                    .filter(|(index, (_, settle))| **settle || index % (every + 1) == 1)
                    .map(|(_, (offset, _))| *offset)
                    .collect();
                let (mark, ranges) = offsets.once_settled(|offset| chosen.contains(&offset));
                let mark = mark.unwrap();
                // No note takes more.
                let longest = Note {
                    ends: u32::MAX,
                    until: Some(u64::MAX - 1),
                    alone: Some((u64::MAX - 1, u32::MAX)),
                };
                let text = metadata::encode(mark, &longest, &ranges);
                let (note, read) = metadata::decode(mark, &text);
                prop_assert_eq!((note, read.len()), (longest, ranges.len()), "nothing is left out");
                chosen.iter().for_each(|offset| offsets.settle(*offset));
                prop_assert_eq!((offsets.mark(), offsets.settled()), (Some(mark), ranges));
                done.extend(chosen);
                for offset in &out {
                    let after = read.partition_point(|range| range.end <= *offset);
                    let told = *offset < mark || read.get(after).is_some_and(|range| range.contains(offset));
                    prop_assert_eq!(told, done.contains(offset));
                }
                committed = (Some(mark), text);
                if wide > 0 {
                    // Another width is another log.
                    committed = (None, String::new());
                    done.clear();
                }
            }
        }
    }
}
