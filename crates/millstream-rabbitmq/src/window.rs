//! The deliveries of one channel that the broker waits to hear about: [`Window`].
//!
//! It turns settlements, in whatever order they come, into the fewest protocol operations: one cumulative ack for
//! all up to the first that is still undecided. Three rules keep the broker from closing the channel, and from taking
//! one delivery's ack for another's:
//!
//! - a cumulative ack never reaches past an undecided delivery;
//! - it names a delivery that is still outstanding, since the broker answers any other with an error;
//! - what is settled by itself is settled before a cumulative ack that reaches past it, so the operations must go out
//!   in the order in which they are given.

use std::collections::{BTreeSet, VecDeque};

/// What was decided about a delivery, as the protocol says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Its work is done.
    Ack,
    /// Never again: `basic.reject`.
    Reject,
    /// Back to the queue: `basic.nack`, which newer brokers do not count against the delivery.
    Requeue,
}

/// One protocol operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Acknowledges everything outstanding up to this tag.
    AckThrough(u64),
    /// Acknowledges this one.
    Ack(u64),
    /// Rejects this one.
    Reject(u64),
    /// Gives this one back.
    Requeue(u64),
}

/// The undecided delivery tags of one channel, and those decided and not settled yet. `T` is what the owner of an ack
/// wants back once that was put into an operation.
///
/// It takes no more room than a few times what may be outstanding, however long one delivery stays undecided, if
/// [`ack_all`](Self::ack_all) is called whenever [`waiting`](Self::waiting) grows large.
#[derive(Debug)]
pub(crate) struct Window<T> {
    /// Undecided ones before `first`, from when all that was decided was settled around them.
    stragglers: BTreeSet<u64>,
    /// The tag of the first slot.
    first: u64,
    slots: VecDeque<Slot<T>>,
    /// How many of the leading slots are decided.
    run: usize,
    /// How many slots are decided.
    waiting: usize,
}

#[derive(Debug)]
enum Slot<T> {
    Undecided,
    /// To be acknowledged, and not sent yet.
    Held(T),
    /// Settled by an operation of its own.
    Settled,
}

/// The delivery was decided before.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Decided;

impl<T> Default for Window<T> {
    fn default() -> Self {
        Self {
            stragglers: BTreeSet::new(),
            first: 1,
            slots: VecDeque::new(),
            run: 0,
            waiting: 0,
        }
    }
}

impl<T> Window<T> {
    /// Decides about one delivery. Gives back `owner` if that became an operation at once; an ack is mostly held
    /// until [`ack_run`](Self::ack_run) or [`ack_all`](Self::ack_all).
    pub(crate) fn decide(
        &mut self,
        tag: u64,
        verdict: Verdict,
        owner: T,
        operations: &mut Vec<Operation>,
    ) -> Result<Option<T>, Decided> {
        let operation = match verdict {
            Verdict::Ack => Operation::Ack(tag),
            Verdict::Reject => Operation::Reject(tag),
            Verdict::Requeue => Operation::Requeue(tag),
        };
        let Some(index) = tag.checked_sub(self.first) else {
            if !self.stragglers.remove(&tag) {
                return Err(Decided);
            }
            operations.push(operation);
            return Ok(Some(owner));
        };
        let index = usize::try_from(index).map_err(|_| Decided)?;
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, || Slot::Undecided);
        }
        let Some(slot @ Slot::Undecided) = self.slots.get_mut(index) else {
            return Err(Decided);
        };
        let sent = if verdict == Verdict::Ack {
            *slot = Slot::Held(owner);
            None
        } else {
            *slot = Slot::Settled;
            operations.push(operation);
            Some(owner)
        };
        self.waiting += 1;
        while let Some(Slot::Held(_) | Slot::Settled) = self.slots.get(self.run) {
            self.run += 1;
        }
        Ok(sent)
    }

    /// How many deliveries [`ack_run`](Self::ack_run) would be done with.
    pub(crate) fn run(&self) -> usize {
        if self.stragglers.is_empty() { self.run } else { 0 }
    }

    /// How many decided deliveries it still has to do with.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Acknowledges everything before the first undecided delivery, with one operation.
    pub(crate) fn ack_run(&mut self, operations: &mut Vec<Operation>, sent: &mut Vec<T>) {
        if self.run() == 0 {
            return;
        }
        let before = sent.len();
        let mut last = self.first;
        for (tag, slot) in (self.first..).zip(self.slots.drain(..self.run)) {
            if let Slot::Held(owner) = slot {
                sent.push(owner);
                last = tag;
            }
        }
        self.first += self.run as u64;
        self.waiting -= self.run;
        self.run = 0;
        match sent.len() - before {
            0 => {}
            1 => operations.push(Operation::Ack(last)),
            _ => operations.push(Operation::AckThrough(last)),
        }
    }

    /// Acknowledges everything that is held, what is behind an undecided delivery by itself.
    pub(crate) fn ack_all(&mut self, operations: &mut Vec<Operation>, sent: &mut Vec<T>) {
        self.ack_run(operations, sent);
        if self.waiting == 0 {
            return;
        }
        for slot in self.slots.drain(..) {
            let tag = self.first;
            self.first += 1;
            match slot {
                Slot::Undecided => {
                    self.stragglers.insert(tag);
                }
                Slot::Held(owner) => {
                    sent.push(owner);
                    operations.push(Operation::Ack(tag));
                }
                Slot::Settled => {}
            }
        }
        self.run = 0;
        self.waiting = 0;
    }

    /// The channel is gone, and nothing can be settled any more: gives back what was held.
    pub(crate) fn abandon(&mut self) -> Vec<T> {
        let slots = std::mem::take(self).slots;
        slots
            .into_iter()
            .filter_map(|slot| match slot {
                Slot::Held(owner) => Some(owner),
                Slot::Undecided | Slot::Settled => None,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// What a broker does with the operations of one channel, and when it would close it.
    #[derive(Debug, Default)]
    struct Broker {
        delivered: u64,
        prefetch: usize,
        outstanding: BTreeMap<u64, ()>,
        settled: BTreeMap<u64, Verdict>,
    }

    impl Broker {
        fn deliver(&mut self) -> Option<u64> {
            (self.outstanding.len() < self.prefetch).then(|| {
                self.delivered += 1;
                self.outstanding.insert(self.delivered, ());
                self.delivered
            })
        }

        fn take(&mut self, operation: Operation) {
            let (tag, verdict) = match operation {
                Operation::AckThrough(tag) => {
                    assert!(self.outstanding.contains_key(&tag), "unknown delivery tag {tag}");
                    let rest = self.outstanding.split_off(&(tag + 1));
                    for tag in std::mem::replace(&mut self.outstanding, rest).into_keys() {
                        self.settled.insert(tag, Verdict::Ack);
                    }
                    return;
                }
                Operation::Ack(tag) => (tag, Verdict::Ack),
                Operation::Reject(tag) => (tag, Verdict::Reject),
                Operation::Requeue(tag) => (tag, Verdict::Requeue),
            };
            assert!(
                self.outstanding.remove(&tag).is_some(),
                "unknown delivery tag {tag}"
            );
            self.settled.insert(tag, verdict);
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Deliver(usize),
        /// Decides about the undecided delivery at this place, as a share of all that are.
        Decide(f64, Verdict),
        Run,
        All,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let verdict = prop_oneof![
            8 => Just(Verdict::Ack),
            1 => Just(Verdict::Reject),
            1 => Just(Verdict::Requeue),
        ];
        prop::collection::vec(
            prop_oneof![
                2 => (1usize..20).prop_map(Step::Deliver),
                12 => (0.0..1.0, verdict).prop_map(|(place, verdict)| Step::Decide(place, verdict)),
                2 => Just(Step::Run),
                1 => Just(Step::All),
            ],
            1..300,
        )
    }

    proptest! {
        #[test]
        fn the_broker_hears_of_each_delivery_once_and_as_decided(
            steps in steps(),
            prefetch in 1usize..50,
        ) {
            let mut broker = Broker { prefetch, ..Broker::default() };
            let mut window = Window::default();
            let mut undecided = Vec::new();
            let mut decided = BTreeMap::new();
            let mut answered = Vec::new();
            for step in steps.into_iter().chain([Step::Run, Step::All]) {
                let mut operations = Vec::new();
                match step {
                    Step::Deliver(number) => {
                        undecided.extend((0..number).map_while(|_| broker.deliver()));
                    }
                    Step::Decide(place, verdict) if !undecided.is_empty() => {
                        let index = (undecided.len() as f64 * place) as usize;
                        let tag = undecided.remove(index);
                        decided.insert(tag, verdict);
                        let sent = window.decide(tag, verdict, tag, &mut operations);
                        answered.extend(sent.expect("it was not decided"));
                        prop_assert_eq!(window.decide(tag, verdict, tag, &mut operations), Err(Decided));
                    }
                    Step::Decide(..) => {}
                    Step::Run => window.ack_run(&mut operations, &mut answered),
                    Step::All => {
                        window.ack_all(&mut operations, &mut answered);
                        prop_assert_eq!(window.waiting(), 0);
                    }
                }
                for operation in operations {
                    broker.take(operation);
                }
                // What the broker was told is what was decided, and what was answered is what it was told.
                prop_assert!(broker.settled.iter().all(|(tag, verdict)| decided.get(tag) == Some(verdict)));
                let mut told = answered.clone();
                told.sort_unstable();
                prop_assert!(told.iter().eq(broker.settled.keys()));
                // What is not sent yet is behind an undecided one, or waits to be sent as a run.
                let unsent = decided.len() - broker.settled.len();
                prop_assert!(window.waiting() >= unsent);
                prop_assert!(window.waiting() <= decided.len());
                if matches!(step, Step::Run) && undecided.is_empty() {
                    prop_assert_eq!(unsent, 0);
                }
            }
            prop_assert_eq!(broker.settled, decided);
            prop_assert_eq!(broker.outstanding.len(), undecided.len());
        }
    }

    fn decided(verdicts: &[(u64, Verdict)]) -> (Window<u64>, Vec<Operation>) {
        let mut window = Window::default();
        let mut operations = Vec::new();
        for &(tag, verdict) in verdicts {
            window.decide(tag, verdict, tag, &mut operations).unwrap();
        }
        (window, operations)
    }

    #[test]
    fn a_run_is_one_operation_whatever_the_order_in_which_it_came() {
        let (mut window, mut operations) = decided(&[3, 1, 2, 5].map(|tag| (tag, Verdict::Ack)));
        let mut sent = Vec::new();
        window.ack_run(&mut operations, &mut sent);
        assert_eq!(operations, [Operation::AckThrough(3)]);
        assert_eq!(sent, [1, 2, 3]);
        assert_eq!((window.run(), window.waiting()), (0, 1));
    }

    #[test]
    fn a_cumulative_ack_names_an_ack_and_comes_after_what_it_reaches_past() {
        let (mut window, mut operations) = decided(&[
            (1, Verdict::Ack),
            (2, Verdict::Reject),
            (3, Verdict::Ack),
            (4, Verdict::Requeue),
        ]);
        window.ack_run(&mut operations, &mut Vec::new());
        assert_eq!(
            operations,
            [
                Operation::Reject(2),
                Operation::Requeue(4),
                Operation::AckThrough(3)
            ]
        );
    }

    #[test]
    fn what_is_behind_a_hole_is_acknowledged_by_itself() {
        let (mut window, mut operations) = decided(&[(2, Verdict::Ack), (3, Verdict::Ack)]);
        let mut sent = Vec::new();
        window.ack_run(&mut operations, &mut sent);
        assert!(operations.is_empty() && sent.is_empty());
        window.ack_all(&mut operations, &mut sent);
        assert_eq!(operations, [Operation::Ack(2), Operation::Ack(3)]);
        operations.clear();
        window.decide(1, Verdict::Ack, 1, &mut operations).unwrap();
        window.ack_run(&mut operations, &mut sent);
        assert_eq!(
            operations,
            [Operation::Ack(1)],
            "2 and 3 are not outstanding any more"
        );
    }

    #[test]
    fn an_abandoned_window_gives_back_what_it_held() {
        let (mut window, _) = decided(&[(2, Verdict::Ack), (3, Verdict::Reject), (5, Verdict::Ack)]);
        assert_eq!(window.abandon(), [2, 5]);
        assert_eq!((window.waiting(), window.run()), (0, 0));
    }

    #[test]
    fn one_undecided_delivery_does_not_starve_the_others_and_costs_no_room() {
        let prefetch = 100;
        let mut broker = Broker {
            prefetch,
            ..Broker::default()
        };
        let mut window = Window::default();
        let mut sent = Vec::new();
        let stuck = broker.deliver().unwrap();
        for verdict in [Verdict::Ack, Verdict::Reject].into_iter().cycle().take(10_000) {
            let mut operations = Vec::new();
            let tag = broker.deliver().expect("the prefetch is never used up");
            window.decide(tag, verdict, tag, &mut operations).unwrap();
            if window.waiting() >= prefetch / 2 {
                window.ack_all(&mut operations, &mut sent);
            }
            operations
                .into_iter()
                .for_each(|operation| broker.take(operation));
            assert!(window.slots.len() <= prefetch && window.stragglers.len() <= 1);
        }
        let mut operations = Vec::new();
        window
            .decide(stuck, Verdict::Ack, stuck, &mut operations)
            .unwrap();
        window.ack_all(&mut operations, &mut sent);
        operations
            .into_iter()
            .for_each(|operation| broker.take(operation));
        assert!(broker.outstanding.is_empty());
    }

    #[test]
    fn cumulative_acks_resume_once_the_last_straggler_is_decided() {
        let (mut window, mut operations) = decided(&[(2, Verdict::Ack)]);
        let mut sent = Vec::new();
        window.ack_all(&mut operations, &mut sent);
        operations.clear();
        for tag in [3, 4] {
            window.decide(tag, Verdict::Ack, tag, &mut operations).unwrap();
        }
        window.ack_run(&mut operations, &mut sent);
        assert!(operations.is_empty(), "it would reach past 1");
        window.decide(1, Verdict::Ack, 1, &mut operations).unwrap();
        window.ack_run(&mut operations, &mut sent);
        assert_eq!(operations, [Operation::Ack(1), Operation::AckThrough(4)]);
    }
}
