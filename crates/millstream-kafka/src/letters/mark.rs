//! How far replays have come, as the group keeps it: [`Mark`].
//!
//! An offset alone says nothing of which letters it was made of. A log that has lost its end, with a broker that had not
//! written it to the disk, grows again, and other letters have the offsets then. So a mark names the last letter that
//! was replayed, by its offset and its fingerprint: while that one is there, so is all before it.

use std::ops::Range;

use rdkafka::Offset;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};

use super::number;
use crate::ends::Note;
use crate::metadata::{LIMIT, decode, encode_within};

/// Says that a letter is named, and how.
const FORM: &str = "replayed1:";

/// The longest name of a letter: the form, two numbers in hexadecimal, and what stands behind each.
const NAME: usize = FORM.len() + 2 * (16 + 1);

/// The last letter that was replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Witness {
    pub(super) offset: u64,
    pub(super) print: u64,
}

/// How far replays have come in a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// All before it was replayed.
    pub(super) at: u64,
    /// What was replayed behind that.
    pub(super) done: Vec<Range<u64>>,
    pub(super) witness: Witness,
}

impl Mark {
    /// What is committed, with the text beside it; none where that is not of a replay, and says nothing of letters.
    pub(super) fn read(committed: Offset, text: &str) -> Option<Self> {
        let Offset::Offset(at) = committed else {
            return None;
        };
        let at = number(at);
        let mut parts = text.strip_prefix(FORM)?.splitn(3, ':');
        let mut hexadecimal = || u64::from_str_radix(parts.next()?, 16).ok();
        let witness = Witness {
            offset: hexadecimal()?,
            print: hexadecimal()?,
        };
        Some(Self {
            at,
            done: decode(at, parts.next()?).1,
            witness,
        })
    }

    /// The text beside the offset, and whether all that is done is in it.
    pub(super) fn text(&self) -> (String, bool) {
        let Witness { offset, print } = self.witness;
        let done = encode_within(LIMIT - NAME, self.at, &Note::default(), &self.done);
        let all = decode(self.at, &done).1.len() == self.done.len();
        (format!("{FORM}{offset:x}:{print:x}:{done}"), all)
    }

    /// The offset that what is done comes before.
    fn end(&self) -> u64 {
        let done = self.done.last().map_or(0, |done| done.end);
        self.at.max(done).max(self.witness.offset.saturating_add(1))
    }

    /// Whether the mark is of a log that begins and ends there.
    pub(super) fn is_of(&self, low: u64, end: u64) -> Holds {
        if self.witness.offset < low {
            Holds::Nothing
        } else if self.end() > end {
            Holds::Not
        } else {
            Holds::With(self.witness)
        }
    }
}

/// Whether a mark holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    /// All that was replayed was deleted since, and it says nothing of what is left.
    Nothing,
    /// The log has lost what it speaks of.
    Not,
    /// If this letter is there.
    With(Witness),
}

/// A number that another letter does not have: FNV-1a, of 64 bits, of all that it is and of its time.
pub(super) fn print(message: &BorrowedMessage<'_>) -> u64 {
    let mut print = Print::new();
    print.add(&message.timestamp().to_millis().unwrap_or_default().to_le_bytes());
    print.add(message.key().unwrap_or_default());
    print.add(message.payload().unwrap_or_default());
    for header in message.headers().into_iter().flat_map(|headers| headers.iter()) {
        print.add(header.key.as_bytes());
        print.add(header.value.unwrap_or_default());
    }
    print.0
}

struct Print(u64);

impl Print {
    const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Adds a part, and how long it is, so that none runs into the next.
    fn add(&mut self, part: &[u8]) {
        for byte in (part.len() as u64).to_le_bytes().iter().chain(part) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITNESS: Witness = Witness {
        offset: 8,
        print: u64::MAX,
    };

    fn mark(at: u64, done: Vec<Range<u64>>) -> Mark {
        Mark {
            at,
            done,
            witness: WITNESS,
        }
    }

    #[test]
    fn a_mark_is_read_back_from_its_text() {
        for mark in [mark(9, vec![]), mark(2, vec![3..5, 7..9])] {
            let (text, all) = mark.text();
            assert!(all);
            let at = Offset::Offset(i64::try_from(mark.at).unwrap());
            assert_eq!(Mark::read(at, &text), Some(mark));
        }
        assert_eq!(Mark::read(Offset::Invalid, &mark(9, vec![]).text().0), None);
        assert_eq!(Mark::read(Offset::Offset(9), ""), None);
    }

    #[test]
    fn what_does_not_fit_beside_an_offset_is_left_out() {
        let done = (0..4_000)
            .map(|number| 10 + 2 * number..11 + 2 * number)
            .collect();
        let (text, all) = mark(9, done).text();
        assert!(!all && text.len() <= LIMIT, "{}", text.len());
    }

    /// A mark holds for the log that it was made of.
    #[test]
    fn a_mark_holds_with_its_witness() {
        let mark = mark(2, vec![3..5, 7..9]);
        assert_eq!(mark.is_of(0, 9), Holds::With(WITNESS));
        assert_eq!(mark.is_of(8, 20), Holds::With(WITNESS));
        assert_eq!(mark.is_of(9, 20), Holds::Nothing);
        assert_eq!(mark.is_of(0, 8), Holds::Not);
    }
}
