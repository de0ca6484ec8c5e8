//! How far a visit is in a partition: [`Partition`].

use std::collections::BTreeMap;
use std::ops::Range;

use super::mark::{Mark, Witness};

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
    /// The last letter that was replayed, by whichever visit.
    witness: Option<Witness>,
    /// What was given and not removed, with its fingerprint.
    outstanding: BTreeMap<u64, u64>,
    /// What was given and removed.
    removed: Vec<u64>,
    pub(super) over: bool,
}

impl Partition {
    /// One that begins and ends there, with what visits before this one have noted, if it holds.
    pub(super) fn new(low: u64, end: u64, mark: Option<Mark>) -> Self {
        let (seen, done, witness) = match mark {
            Some(mark) => (mark.at.max(low), mark.done, Some(mark.witness)),
            None => (low, Vec::new(), None),
        };
        Self {
            low,
            end,
            seen,
            done,
            witness,
            outstanding: BTreeMap::new(),
            removed: Vec::new(),
            over: seen >= end,
        }
    }

    /// A record was read; whether it is a letter of this visit.
    pub(super) fn see(&mut self, offset: u64, print: u64) -> bool {
        if self.over || offset >= self.end {
            self.over = true;
            return false;
        }
        if offset < self.seen {
            // It was looked at before the visit began.
            return false;
        }
        self.seen = offset + 1;
        self.over = self.seen >= self.end;
        if self.done.iter().any(|done| done.contains(&offset)) {
            return false;
        }
        self.outstanding.insert(offset, print).is_none()
    }

    /// A letter that was given is removed; whether it was there.
    pub(super) fn remove(&mut self, offset: u64) -> bool {
        let Some(print) = self.outstanding.remove(&offset) else {
            return false;
        };
        self.removed.push(offset);
        if self.witness.is_none_or(|witness| witness.offset < offset) {
            self.witness = Some(Witness { offset, print });
        }
        true
    }

    /// How many of the removed come after the first letter that stays.
    pub(super) fn kept(&self) -> u64 {
        let mark = self.mark();
        self.removed.iter().filter(|removed| **removed >= mark).count() as u64
    }

    /// The first letter that stays, or where there may be one.
    pub(super) fn mark(&self) -> u64 {
        self.outstanding
            .first_key_value()
            .map_or(self.seen, |(stays, _)| *stays)
    }

    /// What is to be noted; none where nothing was replayed.
    pub(super) fn note(&self) -> Option<Mark> {
        Some(Mark {
            at: self.mark(),
            done: self.beyond(),
            witness: self.witness?,
        })
    }

    /// What is done behind the mark.
    fn beyond(&self) -> Vec<Range<u64>> {
        let mut ranges = Vec::new();
        let mut at = self.mark();
        for stays in self.outstanding.keys() {
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

    fn noted(at: u64, done: Vec<Range<u64>>, witness: u64) -> Option<Mark> {
        let witness = Witness {
            offset: witness,
            print: witness * 10,
        };
        Some(Mark { at, done, witness })
    }

    impl Partition {
        fn sees(&mut self, offset: u64) -> bool {
            self.see(offset, offset * 10)
        }
    }

    /// P1 of a replay: the mark passes no letter that was not sent, and what was sent beyond it is not given again.
    #[test]
    fn what_is_replayed_out_of_order_is_noted_beside_the_mark() {
        let mut first = Partition::new(0, 10, None);
        // Offsets 3 and 4 are none: a marker, or compacted.
        for offset in [0, 1, 2, 5, 6] {
            assert!(first.sees(offset), "{offset}");
        }
        assert_eq!(first.note(), None);
        for offset in [6, 0, 2] {
            first.remove(offset);
        }
        let note = first.note();
        assert_eq!(note, noted(1, vec![2..5, 6..7], 6));

        let mut second = Partition::new(0, 12, note);
        let given: Vec<_> = (1..12).filter(|offset| second.sees(*offset)).collect();
        assert_eq!(given, [1, 5, 7, 8, 9, 10, 11]);
        assert!(second.over);
        for offset in given {
            second.remove(offset);
        }
        assert_eq!(second.note(), noted(12, vec![], 11));
    }

    #[test]
    fn what_is_noted_and_was_not_read_again_stays_noted() {
        let mut visit = Partition::new(0, 10, noted(1, vec![4..6, 8..9], 8));
        assert!(visit.sees(1) && visit.sees(2));
        visit.remove(1);
        assert_eq!(visit.note(), noted(2, vec![4..6, 8..9], 8));
        assert!(visit.sees(3) && !visit.sees(4) && !visit.sees(5));
        assert_eq!(visit.note(), noted(2, vec![4..6, 8..9], 8));
    }

    #[test]
    fn what_came_after_the_visit_began_is_not_of_it() {
        let mut visit = Partition::new(0, 2, None);
        assert!(visit.sees(1) && visit.over);
        assert!(!visit.sees(2));
        assert!(Partition::new(0, 0, None).over);
        // Records before the first one there is may have been deleted since.
        let done = std::iter::once(6..7).collect();
        assert_eq!(Partition::new(5, 9, noted(2, done, 6)).seen, 5);
    }
}
