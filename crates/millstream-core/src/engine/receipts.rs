//! When what is in flight was received: one entry for each read of which something is in flight.
//!
//! A ticket carries its entry's number, so that the age of every message is known to the clock reading of its read
//! and costs nothing while it is on its way.

use crate::rt::Instant;

#[derive(Debug, Default)]
pub(super) struct Receipts {
    entries: Vec<Entry>,
    /// The numbers of entries of which nothing is in flight any more.
    vacant: Vec<u32>,
}

#[derive(Debug)]
struct Entry {
    at: Instant,
    in_flight: usize,
}

impl Receipts {
    /// An entry for what is received now, to be [added](Self::add) to.
    pub(super) fn open(&mut self, at: Instant) -> u32 {
        let number = self.vacant.pop();
        if let Some(number) = number
            && let Some(entry) = self.entries.get_mut(number as usize)
        {
            entry.at = at;
            return number;
        }
        let number = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        self.entries.push(Entry { at, in_flight: 0 });
        number
    }

    /// So many messages came with it.
    pub(super) fn add(&mut self, number: u32, messages: usize) {
        if let Some(entry) = self.entries.get_mut(number as usize) {
            entry.in_flight += messages;
            if entry.in_flight == 0 {
                self.vacant.push(number);
            }
        }
    }

    /// So many of them are gone. Says when they were received.
    pub(super) fn remove(&mut self, number: u32, messages: usize) -> Option<Instant> {
        let entry = self.entries.get_mut(number as usize)?;
        entry.in_flight -= messages;
        if entry.in_flight == 0 {
            self.vacant.push(number);
        }
        Some(entry.at)
    }

    /// How many that came with it are in flight.
    pub(super) fn in_flight(&self, number: u32) -> usize {
        self.entries
            .get(number as usize)
            .map_or(0, |entry| entry.in_flight)
    }

    /// When what came with it was received, while something of it is in flight.
    pub(super) fn received(&self, number: u32) -> Option<Instant> {
        let entry = self.entries.get(number as usize)?;
        (entry.in_flight > 0).then_some(entry.at)
    }

    /// When the oldest message in flight was received.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.entries
            .iter()
            .filter(|entry| entry.in_flight > 0)
            .map(|entry| entry.at)
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::{self, Duration};

    #[tokio::test]
    async fn the_oldest_is_the_oldest_that_is_still_in_flight_however_numbers_are_reused() {
        let mut receipts = Receipts::default();
        let first = rt::now();
        let [second, third] = [1, 2].map(|seconds| first + Duration::from_secs(seconds));
        let one = receipts.open(first);
        receipts.add(one, 2);
        let two = receipts.open(second);
        receipts.add(two, 1);
        assert_eq!(receipts.remove(one, 1), Some(first));
        assert_eq!(receipts.oldest(), Some(first));
        receipts.remove(one, 1);
        assert_eq!(receipts.oldest(), Some(second));
        let again = receipts.open(third);
        receipts.add(again, 1);
        assert_eq!((again, receipts.oldest()), (one, Some(second)));
        receipts.remove(two, 1);
        assert_eq!(receipts.oldest(), Some(third));
    }

    #[tokio::test]
    async fn a_read_of_nothing_leaves_no_entry() {
        let mut receipts = Receipts::default();
        for _ in 0..3 {
            let number = receipts.open(rt::now());
            receipts.add(number, 0);
        }
        assert_eq!((receipts.entries.len(), receipts.oldest()), (1, None));
    }
}
