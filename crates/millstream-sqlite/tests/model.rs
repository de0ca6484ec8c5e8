//! The queue against a model of it: whatever two ordered sessions do, both agree about every message.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod common;

use common::*;
use millstream_core::{Outcome, Outgoing, Settle, Settlement};
use millstream_sqlite::Counts;
use proptest::prelude::*;
use std::time::Duration;

#[derive(Clone, Debug)]
enum Step {
    Publish {
        key: Option<u8>,
        priority: i32,
        hour: bool,
    },
    Read {
        session: usize,
        messages: usize,
    },
    Settle {
        session: usize,
        which: usize,
        how: How,
    },
    Reopen {
        session: usize,
    },
}

#[derive(Clone, Copy, Debug)]
enum How {
    Ack,
    Reject,
    Release,
    Again,
    InAnHour,
}

fn step() -> impl Strategy<Value = Step> {
    let how = prop_oneof![
        3 => Just(How::Ack),
        1 => Just(How::Reject),
        2 => Just(How::Release),
        2 => Just(How::Again),
        1 => Just(How::InAnHour),
    ];
    prop_oneof![
        4 => (proptest::option::weighted(0.8, 0_u8..3), 0..2, proptest::bool::weighted(0.05))
            .prop_map(|(key, priority, hour)| Step::Publish { key, priority, hour }),
        4 => (0_usize..2, 1_usize..4).prop_map(|(session, messages)| Step::Read { session, messages }),
        5 => (0_usize..2, 0_usize..10, how).prop_map(|(session, which, how)| Step::Settle { session, which, how }),
        1 => (0_usize..2).prop_map(|session| Step::Reopen { session }),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Delayed,
    Leased(usize),
    Dead,
    Gone,
}

#[derive(Debug)]
struct Modelled {
    key: Option<u8>,
    priority: i32,
    state: State,
    deliveries: u32,
    failures: u32,
}

#[derive(Debug, Default)]
struct Model(Vec<Modelled>);

impl Model {
    /// In order of delivery.
    fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.0.len()).collect();
        order.sort_by_key(|at| (-self.0[*at].priority, *at));
        order
    }

    fn next(&self, session: usize, messages: usize) -> Vec<usize> {
        let order = self.order();
        let free = |(place, at): (usize, &usize)| {
            let message = &self.0[*at];
            let elsewhere =
                |other: &Modelled| matches!(other.state, State::Leased(owner) if owner != session);
            let same = |other: &&Modelled| message.key.is_some() && other.key == message.key;
            message.state == State::Ready
                && !self.0.iter().filter(same).any(elsewhere)
                && !order[..place]
                    .iter()
                    .map(|at| &self.0[*at])
                    .filter(same)
                    .any(|other| other.state == State::Delayed)
        };
        order
            .iter()
            .enumerate()
            .filter(|place| free(*place))
            .map(|(_, at)| *at)
            .take(messages)
            .collect()
    }

    fn counts(&self) -> Counts {
        let number = |so: fn(State) -> bool| self.0.iter().filter(|message| so(message.state)).count() as u64;
        Counts {
            ready: number(|state| state == State::Ready),
            delayed: number(|state| state == State::Delayed),
            leased: number(|state| matches!(state, State::Leased(_))),
            dead: number(|state| state == State::Dead),
        }
    }
}

async fn run(steps: Vec<Step>) {
    let place = Place::new();
    let connector = place.connector().ordered(true);
    let mut readers = [Reader::open(&connector).await, Reader::open(&connector).await];
    let mut held = [Vec::new(), Vec::new()];
    let (queue, raw) = (place.queue(), place.raw());
    let mut model = Model::default();
    for step in steps {
        match step {
            Step::Publish { key, priority, hour } => {
                let mut outgoing = Outgoing::new(model.0.len().to_string());
                outgoing.key = key.map(|key| vec![key].into());
                outgoing.priority = priority;
                outgoing.delay = Duration::from_secs(if hour { 3600 } else { 0 });
                queue.publish(&[outgoing]).unwrap();
                let state = if hour { State::Delayed } else { State::Ready };
                model.0.push(Modelled {
                    key,
                    priority,
                    state,
                    deliveries: 0,
                    failures: 0,
                });
            }
            Step::Read { session, messages } => {
                let expected = model.next(session, messages);
                if expected.is_empty() {
                    continue;
                }
                let got = readers[session].read(messages).await;
                let numbers: Vec<_> = expected.iter().map(usize::to_string).collect();
                assert_eq!(payloads(&got), numbers);
                for (at, (ticket, message)) in expected.into_iter().zip(got) {
                    let modelled = &mut model.0[at];
                    modelled.state = State::Leased(session);
                    modelled.deliveries += 1;
                    assert_eq!(
                        (message.deliveries, message.failures),
                        (modelled.deliveries, modelled.failures)
                    );
                    held[session].push((at, ticket));
                }
            }
            Step::Settle { session, which, how } => {
                if held[session].is_empty() {
                    continue;
                }
                let which = which % held[session].len();
                let (at, ticket) = held[session].remove(which);
                let modelled = &mut model.0[at];
                let (settlement, state) = match how {
                    How::Ack => (Settlement::Ack, State::Gone),
                    How::Reject => (rejection("no"), State::Dead),
                    How::Release => (Settlement::Release, State::Ready),
                    How::Again => (
                        Settlement::Retry {
                            after: Duration::ZERO,
                            failures: 1,
                        },
                        State::Ready,
                    ),
                    How::InAnHour => (
                        Settlement::Retry {
                            after: Duration::from_secs(3600),
                            failures: 2,
                        },
                        State::Delayed,
                    ),
                };
                match settlement {
                    Settlement::Release => modelled.deliveries -= 1,
                    Settlement::Retry { failures, .. } => {
                        modelled.deliveries = 0;
                        modelled.failures = failures;
                    }
                    _ => {}
                }
                modelled.state = state;
                let settle = Settle { ticket, settlement };
                let outcomes = readers[session].settle_all(&[settle.clone(), settle]).await;
                assert_eq!(
                    outcomes,
                    [Outcome::Sent, Outcome::Stale],
                    "P2: once, and once alone"
                );
            }
            Step::Reopen { session } => {
                let reader = Reader::open(&connector).await;
                drop(std::mem::replace(&mut readers[session], reader));
                let sessions = || {
                    raw.query_row("SELECT count(*) FROM millstream_sessions", [], |row| {
                        row.get::<_, i64>(0)
                    })
                };
                until("the old session's end", || sessions().unwrap() == 2).await;
                for (at, _) in held[session].drain(..) {
                    model.0[at].state = State::Ready;
                }
            }
        }
        assert_eq!(queue.counts().unwrap(), model.counts());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn p2_p3_two_ordered_sessions_do_what_the_model_says(steps in proptest::collection::vec(step(), 1..60)) {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap().block_on(run(steps));
    }
}
