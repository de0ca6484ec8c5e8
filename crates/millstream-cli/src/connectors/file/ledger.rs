//! Which lines are out, and up to where all are settled: [`Ledger`].

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};

use millstream_core::rt::{Duration, Instant};

use super::lines::{Line, Place};

/// How many lines may follow one that is not settled. Each is remembered in 40 bytes.
const WINDOW: usize = 1 << 20;

/// The lines from the first that is not settled to the last that was read.
#[derive(Debug)]
pub(super) struct Ledger {
    lines: VecDeque<Entry>,
    settled: Mark,
    /// Lines to hand out again, the earliest first.
    ready: BTreeSet<u64>,
    /// Lines to hand out again later.
    due: BinaryHeap<Reverse<(Instant, u64)>>,
}

/// So many lines, which end so many bytes into the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) line: u64,
    pub(super) offset: u64,
}

#[derive(Debug)]
struct Entry {
    place: Place,
    /// Handler runs that have failed, once it was given back with their number.
    failures: Option<u32>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Out,
    Waiting,
    Done,
}

/// A line to hand out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Again {
    pub(super) number: u64,
    pub(super) place: Place,
    pub(super) failures: Option<u32>,
}

impl Ledger {
    /// All lines up to here are settled.
    pub(super) fn from(settled: Mark) -> Self {
        Self {
            lines: VecDeque::new(),
            settled,
            ready: BTreeSet::new(),
            due: BinaryHeap::new(),
        }
    }

    /// Whether so much follows the first unsettled line that reading on must wait for it.
    pub(super) fn is_full(&self) -> bool {
        self.lines.len() >= WINDOW
    }

    /// The next line of the file goes out.
    pub(super) fn out(&mut self, line: &Line) {
        debug_assert_eq!(line.number, self.settled.line + self.lines.len() as u64 + 1);
        self.lines.push_back(Entry {
            place: line.place,
            failures: None,
            state: State::Out,
        });
    }

    /// The place of a line that is out.
    pub(super) fn place(&self, number: u64) -> Option<Place> {
        let entry = self.lines.get(self.index(number)?)?;
        (entry.state == State::Out).then_some(entry.place)
    }

    /// Its work is done. Whether it was out.
    pub(super) fn done(&mut self, number: u64) -> bool {
        let Some(entry) = self.entry(number) else {
            return false;
        };
        entry.state = State::Done;
        while let Some(entry) = self.lines.pop_front_if(|entry| entry.state == State::Done) {
            self.settled.line += 1;
            self.settled.offset = entry.place.end;
        }
        true
    }

    /// It is to be handed out again at once. Whether it was out.
    pub(super) fn release(&mut self, number: u64) -> bool {
        let Some(entry) = self.entry(number) else {
            return false;
        };
        entry.state = State::Waiting;
        self.ready.insert(number)
    }

    /// It is to be handed out again after this long, with so many failures. Whether it was out.
    pub(super) fn retry(&mut self, number: u64, now: Instant, after: Duration, failures: u32) -> bool {
        let Some(entry) = self.entry(number) else {
            return false;
        };
        entry.state = State::Waiting;
        entry.failures = Some(failures);
        // What lies beyond all reckoning of time is a year away.
        let due = now
            .checked_add(after)
            .unwrap_or(now + Duration::from_hours(24 * 365));
        self.due.push(Reverse((due, number)));
        true
    }

    /// A line that is due to be handed out again goes out.
    pub(super) fn again(&mut self, now: Instant) -> Option<Again> {
        while let Some(Reverse((due, number))) = self.due.peek().copied() {
            if due > now {
                break;
            }
            self.due.pop();
            self.ready.insert(number);
        }
        let number = self.ready.pop_first()?;
        let index = self.index(number)?;
        let entry = self.lines.get_mut(index)?;
        entry.state = State::Out;
        Some(Again {
            number,
            place: entry.place,
            failures: entry.failures,
        })
    }

    /// When the next line is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due.peek().map(|Reverse((due, _))| *due)
    }

    /// Up to where all lines are settled.
    pub(super) fn settled(&self) -> Mark {
        self.settled
    }

    fn entry(&mut self, number: u64) -> Option<&mut Entry> {
        let index = self.index(number)?;
        self.lines
            .get_mut(index)
            .filter(|entry| entry.state == State::Out)
    }

    fn index(&self, number: u64) -> Option<usize> {
        usize::try_from(number.checked_sub(self.settled.line + 1)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use millstream_core::rt;
    use proptest::prelude::*;

    use super::*;

    fn ledger(lines: u64) -> Ledger {
        let mut ledger = Ledger::from(Mark::default());
        for number in 1..=lines {
            let place = Place {
                start: (number - 1) * 10,
                end: number * 10,
            };
            ledger.out(&Line {
                number,
                place,
                bytes: Bytes::new(),
            });
        }
        ledger
    }

    #[test]
    fn the_mark_passes_no_line_that_is_unsettled() {
        let mut ledger = ledger(3);
        assert!(ledger.done(3) && ledger.done(1));
        assert_eq!(ledger.settled(), Mark { line: 1, offset: 10 });
        assert!(ledger.done(2));
        assert_eq!(ledger.settled(), Mark { line: 3, offset: 30 });
    }

    #[test]
    fn a_line_is_settled_once() {
        let mut ledger = ledger(2);
        assert!(ledger.done(2) && !ledger.done(2) && !ledger.release(2));
        assert!(ledger.release(1) && !ledger.done(1));
        assert!(!ledger.done(0) && !ledger.done(9));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_given_back_comes_again_in_order_and_when_it_is_due() {
        let mut ledger = ledger(3);
        let now = rt::now();
        let second = Duration::from_secs(1);
        assert!(ledger.release(3) && ledger.release(1) && ledger.retry(2, now, second, 7));
        assert_eq!(ledger.again(now).map(|again| again.number), Some(1));
        assert_eq!(ledger.again(now).map(|again| again.number), Some(3));
        assert_eq!(ledger.again(now), None);
        assert_eq!(ledger.due(), Some(now + second));
        let again = ledger.again(now + second).unwrap();
        assert_eq!((again.number, again.failures), (2, Some(7)));
        assert!(ledger.retry(2, now, Duration::MAX, 8));
        assert_eq!(ledger.settled(), Mark::default());
    }

    proptest! {
        #[test]
        fn in_whatever_order_lines_are_settled_the_mark_ends_at_the_last(order in Just((1..=20u64).collect::<Vec<_>>()).prop_shuffle()) {
            let mut ledger = ledger(20);
            let mut done = Vec::new();
            for number in order {
                prop_assert!(ledger.done(number));
                done.push(number);
                let contiguous = (1..).take_while(|number| done.contains(number)).count() as u64;
                prop_assert_eq!(ledger.settled(), Mark { line: contiguous, offset: contiguous * 10 });
            }
        }
    }
}
