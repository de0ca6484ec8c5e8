//! What of a stream is done: [`Offsets`].
//!
//! A stream's offset names one message for good, whichever channel delivers it and however often. So what counts is
//! kept here and not with a channel: which messages are in hand, which were given back and have to be fetched again,
//! and the position, the first offset that is not done. Everything before the position is done or was never there:
//! offsets have gaps, from retention for one, and nothing waits for what is in a gap.
//!
//! It holds only what is not settled, and so no more than is in flight, however far behind the rest one message is.

use std::collections::{BTreeMap, BTreeSet};

/// One delivery: the channel's generation and its delivery tag there.
pub(crate) type Delivery = (u32, u64);

/// The messages of a stream that are not done, and where it goes on.
#[derive(Debug, Default)]
pub(crate) struct Offsets {
    /// Those that were handed out and are not settled. What is below `next` and neither here nor in `released` is
    /// done, or in a gap.
    in_hand: BTreeSet<u64>,
    /// Those that were given back, to be handed out when they are delivered again.
    released: BTreeSet<u64>,
    /// The offsets of those in hand.
    deliveries: BTreeMap<Delivery, u64>,
    /// One more than the highest offset that was delivered; absent while there is none to begin from either.
    next: Option<u64>,
    /// What the consumer of now delivers next has at least this offset.
    cursor: u64,
}

/// What to do about a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrival {
    /// Hand it out. Otherwise it is done, or in hand already.
    pub(crate) wanted: bool,
    /// So many that were given back were passed over: the stream does not have them any more.
    pub(crate) vanished: usize,
}

impl Offsets {
    /// Nothing is in hand. What is before `position` is done; absent: where it begins is for the broker to say.
    pub(crate) fn at(position: Option<u64>) -> Self {
        Self {
            next: position,
            ..Self::default()
        }
    }

    /// The first offset that is not done: from there on a reader that knows nothing else misses nothing.
    pub(crate) fn position(&self) -> Option<u64> {
        let undone = [self.in_hand.first(), self.released.first()];
        undone.into_iter().flatten().min().copied().or(self.next)
    }

    /// The offset from which a new consumer finds all that is not in hand.
    pub(crate) fn resume(&mut self) -> Option<u64> {
        let from = self.released.first().copied().or(self.next);
        self.cursor = from.unwrap_or_default();
        from
    }

    /// Whether something was given back that the consumer of now will not come across.
    pub(crate) fn has_to_go_back(&self) -> bool {
        self.released.first().is_some_and(|offset| *offset < self.cursor)
    }

    /// Something was delivered.
    pub(crate) fn arrive(&mut self, offset: u64, delivery: Delivery) -> Arrival {
        // A consumer delivers in order, so what it has passed over it will not deliver.
        let before = self.released.len();
        if before > 0 {
            let passed = self.cursor..offset;
            self.released.retain(|offset| !passed.contains(offset));
        }
        let vanished = before - self.released.len();
        self.cursor = self.cursor.max(offset.saturating_add(1));
        let is_new = self.next.is_none_or(|next| offset >= next);
        if is_new {
            self.next = Some(offset.saturating_add(1));
        }
        let wanted = is_new || self.released.remove(&offset);
        if wanted {
            self.in_hand.insert(offset);
            self.deliveries.insert(delivery, offset);
        }
        Arrival { wanted, vanished }
    }

    /// It is done. Says whether it was in hand.
    pub(crate) fn settle(&mut self, delivery: Delivery) -> bool {
        let offset = self.deliveries.remove(&delivery);
        offset.is_some_and(|offset| self.in_hand.remove(&offset))
    }

    /// It is given back, undone. Says whether it was in hand.
    pub(crate) fn release(&mut self, delivery: Delivery) -> bool {
        let Some(offset) = self.deliveries.remove(&delivery) else {
            return false;
        };
        self.in_hand.remove(&offset) && self.released.insert(offset)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A stream and its reader, told in the plainest way.
    #[derive(Debug)]
    struct Model {
        /// The offsets that there are, which retention takes from the front.
        stream: BTreeSet<u64>,
        /// What the consumer delivers next is the first from here on.
        cursor: u64,
        generation: u32,
        tag: u64,
        in_hand: Vec<(Delivery, u64)>,
        released: BTreeSet<u64>,
        done: BTreeSet<u64>,
        handed_out: BTreeSet<u64>,
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// Messages are published, with gaps between them.
        Publish(Vec<u64>),
        Deliver(usize),
        Settle(f64),
        Release(f64),
        /// The channel is lost, and another consumes; or the same goes back.
        Consume(bool),
        /// Retention takes so many.
        Truncate(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        prop::collection::vec(
            prop_oneof![
                2 => prop::collection::vec(1u64..4, 1..20).prop_map(Step::Publish),
                4 => (1usize..20).prop_map(Step::Deliver),
                12 => (0.0..1.0).prop_map(Step::Settle),
                2 => (0.0..1.0).prop_map(Step::Release),
                2 => any::<bool>().prop_map(Step::Consume),
                1 => (1usize..10).prop_map(Step::Truncate),
            ],
            1..300,
        )
    }

    impl Model {
        fn take(&mut self, place: f64) -> Option<(Delivery, u64)> {
            let index = (self.in_hand.len() as f64 * place) as usize;
            (!self.in_hand.is_empty()).then(|| self.in_hand.remove(index))
        }

        fn deliver(&mut self, offsets: &mut Offsets) -> Result<bool, TestCaseError> {
            let Some(offset) = self.stream.range(self.cursor..).next().copied() else {
                return Ok(false);
            };
            self.tag += 1;
            let delivery = (self.generation, self.tag);
            let arrival = offsets.arrive(offset, delivery);
            let wanted = !self.handed_out.contains(&offset) || self.released.contains(&offset);
            prop_assert_eq!(arrival.wanted, wanted, "offset {}", offset);
            let passed: Vec<_> = self.released.range(self.cursor..offset).copied().collect();
            prop_assert_eq!(arrival.vanished, passed.len());
            for gone in passed {
                self.released.remove(&gone);
            }
            self.cursor = offset + 1;
            if wanted {
                self.released.remove(&offset);
                self.handed_out.insert(offset);
                self.in_hand.push((delivery, offset));
            }
            Ok(true)
        }

        fn consume(&mut self, offsets: &mut Offsets, new_channel: bool) {
            if new_channel {
                self.generation += 1;
                self.tag = 0;
            }
            self.cursor = offsets.resume().unwrap_or_default();
        }
    }

    proptest! {
        #[test]
        fn the_position_passes_nothing_undone_and_nothing_is_left_out(steps in steps()) {
            let mut offsets = Offsets::at(Some(0));
            let mut model = Model {
                stream: BTreeSet::new(),
                cursor: 0,
                generation: 0,
                tag: 0,
                in_hand: Vec::new(),
                released: BTreeSet::new(),
                done: BTreeSet::new(),
                handed_out: BTreeSet::new(),
            };
            let mut end = 0;
            let mut position = 0;
            for step in steps {
                match step {
                    Step::Publish(gaps) => for gap in gaps {
                        model.stream.insert(end);
                        end += gap;
                    },
                    Step::Deliver(number) => for _ in 0..number {
                        model.deliver(&mut offsets)?;
                    },
                    Step::Settle(place) => if let Some((delivery, offset)) = model.take(place) {
                        prop_assert!(offsets.settle(delivery));
                        prop_assert!(!offsets.settle(delivery), "only once");
                        prop_assert!(!offsets.release(delivery), "only once");
                        model.done.insert(offset);
                    },
                    Step::Release(place) => if let Some((delivery, offset)) = model.take(place) {
                        prop_assert!(offsets.release(delivery));
                        prop_assert!(!offsets.settle(delivery), "it is not in hand");
                        model.released.insert(offset);
                        prop_assert!(offset >= model.cursor || offsets.has_to_go_back());
                    },
                    Step::Consume(new_channel) => model.consume(&mut offsets, new_channel),
                    Step::Truncate(number) => for _ in 0..number {
                        model.stream.pop_first();
                    },
                }
                let in_hand = model.in_hand.iter().map(|(_, offset)| offset);
                let undone: BTreeSet<_> = in_hand.chain(&model.released).copied().collect();
                let next = model.handed_out.last().map_or(0, |last| last + 1);
                let now = offsets.position().expect("it had one from the start");
                prop_assert_eq!(now, undone.first().copied().unwrap_or(next));
                prop_assert!(now >= position, "it never goes back");
                position = now;
                prop_assert_eq!(offsets.in_hand.len() + offsets.released.len(), undone.len(), "it holds what is in flight");
                prop_assert_eq!(offsets.deliveries.len(), model.in_hand.len());
                prop_assert_eq!(
                    offsets.has_to_go_back(),
                    model.released.first().is_some_and(|first| *first < model.cursor)
                );
            }
            // Until all that is there was delivered and settled.
            if offsets.has_to_go_back() {
                model.consume(&mut offsets, true);
            }
            while model.deliver(&mut offsets)? {}
            while let Some((delivery, offset)) = model.take(0.0) {
                prop_assert!(offsets.settle(delivery));
                model.done.insert(offset);
            }
            prop_assert!(model.stream.is_subset(&model.done));
        }
    }

    #[test]
    fn gaps_hold_nothing_up() {
        let mut offsets = Offsets::at(None);
        assert_eq!(offsets.resume(), None);
        for (tag, offset) in [(1, 7), (2, 100), (3, 5_000)] {
            assert!(offsets.arrive(offset, (0, tag)).wanted);
        }
        assert_eq!(offsets.position(), Some(7));
        assert!(offsets.settle((0, 2)));
        assert_eq!(offsets.position(), Some(7));
        assert!(offsets.settle((0, 1)));
        assert_eq!(offsets.position(), Some(5_000));
        assert!(offsets.settle((0, 3)));
        assert_eq!(offsets.position(), Some(5_001));
    }

    #[test]
    fn what_was_given_back_and_is_gone_from_the_stream_holds_nothing_up() {
        let mut offsets = Offsets::at(Some(0));
        offsets.resume();
        for offset in 0..3 {
            offsets.arrive(offset, (0, offset));
        }
        assert!(offsets.release((0, 0)) && offsets.release((0, 1)) && offsets.settle((0, 2)));
        assert!(offsets.has_to_go_back());
        assert_eq!(offsets.resume(), Some(0));
        let arrival = offsets.arrive(50, (1, 1));
        assert_eq!(
            arrival,
            Arrival {
                wanted: true,
                vanished: 2
            }
        );
        assert_eq!(offsets.position(), Some(50));
    }

    #[test]
    fn a_settlement_on_a_lost_channel_counts_and_its_message_is_not_handed_out_again() {
        let mut offsets = Offsets::at(Some(0));
        offsets.resume();
        for offset in 0..3 {
            offsets.arrive(offset, (0, offset + 1));
        }
        assert!(offsets.release((0, 1)));
        // Another channel, from the first that was given back.
        assert_eq!(offsets.resume(), Some(0));
        assert!(offsets.settle((0, 2)));
        assert!(offsets.arrive(0, (1, 1)).wanted);
        assert!(!offsets.arrive(1, (1, 2)).wanted, "done meanwhile");
        assert!(!offsets.arrive(2, (1, 3)).wanted, "still in hand");
        assert!(offsets.settle((0, 3)) && offsets.settle((1, 1)));
        assert_eq!(offsets.position(), Some(3));
    }
}
