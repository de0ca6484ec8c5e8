//! How far a visit is in a partition: [`Partition`].

use std::collections::BTreeSet;
use std::ops::Range;

use rdkafka::Offset;

use super::number;
use crate::metadata::decode;

/// What a visit knows of a partition.
#[derive(Debug)]
pub(super) struct Partition {
    /// The first record there is.
    pub(super) low: u64,
    /// Where it ended when the visit began.
    end: u64,
    /// All before it was read.
    pub(super) seen: u64,
    /// What was replayed by visits before this one.
    done: Vec<Range<u64>>,
    /// What was given and not removed.
    outstanding: BTreeSet<u64>,
    /// What was given and removed.
    removed: Vec<u64>,
    pub(super) over: bool,
}

impl Partition {
    pub(super) fn new(low: u64, end: u64, committed: Offset, metadata: &str) -> Self {
        let (mark, done) = match committed {
            Offset::Offset(mark) => (number(mark), decode(number(mark), metadata).1),
            _ => (low, Vec::new()),
        };
        Self {
            low,
            end,
            seen: mark.clamp(low, end.max(low)),
            done,
            outstanding: BTreeSet::new(),
            removed: Vec::new(),
            over: mark >= end || low >= end,
        }
    }

    /// A record was read; whether it is a letter of this visit.
    pub(super) fn see(&mut self, offset: u64) -> bool {
        if self.over || offset >= self.end {
            self.over = true;
            return false;
        }
        self.seen = offset + 1;
        self.over = self.seen >= self.end;
        if self.done.iter().any(|done| done.contains(&offset)) {
            return false;
        }
        self.outstanding.insert(offset)
    }

    /// A letter that was given is removed; whether it was there.
    pub(super) fn remove(&mut self, offset: u64) -> bool {
        let there = self.outstanding.remove(&offset);
        if there {
            self.removed.push(offset);
        }
        there
    }

    /// How many of the removed come after the first letter that stays.
    pub(super) fn kept(&self) -> u64 {
        let mark = self.mark();
        self.removed.iter().filter(|removed| **removed >= mark).count() as u64
    }

    /// The first letter that stays, or where there may be one.
    pub(super) fn mark(&self) -> u64 {
        self.outstanding.first().copied().unwrap_or(self.seen)
    }

    /// What is done behind the mark.
    pub(super) fn beyond(&self) -> Vec<Range<u64>> {
        let mut ranges = Vec::new();
        let mut at = self.mark();
        for stays in &self.outstanding {
            if at < *stays {
                ranges.push(at..*stays);
            }
            at = stays + 1;
        }
        if at < self.seen {
            ranges.push(at..self.seen);
        }
        let unread = self.done.iter().filter(|done| done.end > self.seen);
        ranges.extend(unread.map(|done| done.start.max(self.seen)..done.end));
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ends::Note;
    use crate::metadata::encode;

    fn partition(end: u64, committed: Offset, metadata: &str) -> Partition {
        Partition::new(0, end, committed, metadata)
    }

    /// P1 of a replay: the mark passes no letter that was not sent, and what was sent beyond it is not given again.
    #[test]
    fn what_is_replayed_out_of_order_is_noted_beside_the_mark() {
        let mut first = partition(10, Offset::Invalid, "");
        // Offsets 3 and 4 are none: a marker, or compacted.
        for offset in [0, 1, 2, 5, 6] {
            assert!(first.see(offset), "{offset}");
        }
        for offset in [0, 2, 6] {
            first.remove(offset);
        }
        assert_eq!((first.mark(), first.beyond()), (1, vec![2..5, 6..7]));

        let text = encode(first.mark(), &Note::default(), &first.beyond());
        let mut second = partition(12, Offset::Offset(1), &text);
        let given: Vec<_> = (1..12).filter(|offset| second.see(*offset)).collect();
        assert_eq!(given, [1, 5, 7, 8, 9, 10, 11]);
        assert!(second.over);
        for offset in given {
            second.remove(offset);
        }
        assert_eq!((second.mark(), second.beyond()), (12, vec![]));
    }

    #[test]
    fn what_is_noted_and_was_not_read_again_stays_noted() {
        let text = encode(1, &Note::default(), &[4..6, 8..9]);
        let mut visit = partition(10, Offset::Offset(1), &text);
        assert!(visit.see(1) && visit.see(2));
        visit.remove(1);
        assert_eq!((visit.mark(), visit.beyond()), (2, vec![4..6, 8..9]));
        assert!(visit.see(3) && !visit.see(4) && !visit.see(5));
        assert_eq!(visit.beyond(), vec![4..6, 8..9]);
    }

    #[test]
    fn what_came_after_the_visit_began_is_not_of_it() {
        let mut visit = partition(2, Offset::Invalid, "");
        assert!(visit.see(1) && visit.over);
        assert!(!visit.see(2));
        assert!(partition(0, Offset::Invalid, "").over);
        // Records before the first one there is may have been deleted since.
        assert_eq!(Partition::new(5, 9, Offset::Offset(2), "").seen, 5);
    }
}
