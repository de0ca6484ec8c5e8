//! What a seed decides before anything runs: the settings of the pipeline, what its broker can do, what becomes of each
//! message, and what goes wrong when.

use std::time::Duration;

use fastrand::Rng;
use millstream_core::{Capabilities, RetryStrategy};

use super::features::Features;

/// What a seed decides.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) broker: Kind,
    pub(super) ordering: Order,
    pub(super) concurrency: usize,
    /// Where there is one, concurrency adapts from this on.
    pub(super) adapts_from: Option<usize>,
    pub(super) max_demand: usize,
    pub(super) timeout: Duration,
    pub(super) in_flight: usize,
    pub(super) bytes: usize,
    pub(super) per_key: usize,
    pub(super) per_batcher: f64,
    pub(super) batchers: Vec<Batches>,
    pub(super) attempts: u32,
    pub(super) backoff: Duration,
    pub(super) strategy: RetryStrategy,
    pub(super) max_deliveries: u32,
    pub(super) breaker: bool,
    pub(super) rate: Rate,
    pub(super) letters: Letters,
    pub(super) messages: usize,
    pub(super) keys: u32,
    pub(super) bursts: usize,
    /// Of 256 polls, so many are put off.
    pub(super) lateness: u8,
    /// What becomes of messages: of a thousand, so many in each way.
    pub(super) spice: Spice,
    pub(super) steps: Vec<(Duration, Step)>,
    pub(super) features: Features,
}

/// What the broker is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Messages are leased one by one.
    Queue {
        delay: bool,
        counts: bool,
        orders_keys: bool,
        /// It hands out what is ready in any order.
        reorders: bool,
        /// Each delivery is a generation of its own, and is lost by itself.
        single: bool,
    },
    /// Messages lie in partitions, of which a first part is committed.
    Log {
        partitions: u32,
        /// It counts the processes that ended uncleanly with a message.
        counts_ends: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    None,
    Key,
    Header,
    Partition,
}

/// What is limited in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rate {
    Nothing,
    Pipeline,
    /// Each value of a header.
    Keys,
}

/// Where messages end that are given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Letters {
    Source,
    Sink,
    Discard,
    /// Nowhere: their partition stops.
    Halt,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Batches {
    pub(super) size: usize,
    pub(super) bytes: usize,
    pub(super) max_age: Duration,
    pub(super) timeout: Duration,
    pub(super) concurrency: usize,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Spice {
    pub(super) fails: u32,
    pub(super) rejects: u32,
    pub(super) hangs: u32,
    pub(super) panics: u32,
    pub(super) kills: u32,
    pub(super) undecodable: u32,
    pub(super) bombs: u32,
    pub(super) settles_now: u32,
    pub(super) slow: u32,
    /// Of a thousand runs of a batch handler, so many fail in some way.
    pub(super) batches: u32,
}

/// What is done to the pipeline or to its broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Step {
    Crash,
    /// The connection breaks, or leases are lost.
    Disconnect,
    /// A read fails, and so does the next open.
    SourceFails,
    Revoke {
        within: Duration,
    },
    LosePartition,
    Pause {
        lasts: Duration,
    },
    Drain {
        within: Duration,
    },
    Stop,
    SlowAcks {
        lasts: Duration,
    },
    FailingAcks {
        lasts: Duration,
    },
    SlowLetters {
        lasts: Duration,
    },
    FailingLetters {
        lasts: Duration,
    },
}

pub(super) const fn ms(number: u64) -> Duration {
    Duration::from_millis(number)
}

impl Kind {
    pub(super) fn capabilities(self) -> Capabilities {
        match self {
            Self::Queue {
                delay,
                counts,
                orders_keys,
                ..
            } => Capabilities {
                delay,
                keeps_rejected: true,
                counts_deliveries: counts,
                orders_keys,
                ..Capabilities::default()
            },
            Self::Log { counts_ends, .. } => Capabilities {
                holds_places: true,
                halts: true,
                counts_ends,
                ..Capabilities::default()
            },
        }
    }

    pub(super) fn is_log(self) -> bool {
        matches!(self, Self::Log { .. })
    }

    pub(super) fn is_single(self) -> bool {
        matches!(self, Self::Queue { single: true, .. })
    }

    pub(super) fn counts(self) -> bool {
        matches!(
            self,
            Self::Queue { counts: true, .. }
                | Self::Log {
                    counts_ends: true,
                    ..
                }
        )
    }
}

impl Plan {
    pub(super) fn of(seed: u64) -> Self {
        let rng = &mut Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let ordering = one_of(
            [
                Order::None,
                Order::None,
                Order::Key,
                Order::Key,
                Order::Key,
                Order::Header,
                Order::Partition,
                Order::Partition,
            ],
            rng,
        );
        let log = ordering == Order::Partition || rng.u8(..3) == 0;
        let broker = if log {
            Kind::Log {
                partitions: rng.u32(2..7),
                counts_ends: false,
            }
        } else {
            let ordered = ordering != Order::None;
            Kind::Queue {
                delay: rng.bool(),
                counts: rng.bool(),
                // A store knows a message's key, and nothing of its headers.
                orders_keys: ordering == Order::Key && rng.bool(),
                reorders: !ordered && rng.bool(),
                single: !ordered && rng.bool(),
            }
        };
        let can = broker.capabilities();
        // What a store that cannot delay has instead is a retry sink.
        let redelivers = (ordering == Order::None || (can.orders_keys && can.delay)) && rng.u8(..3) == 0;
        let in_flight = one_of([rng.usize(2..12), rng.usize(12..60), 10_000], rng);
        let batchers = (0..rng.usize(..3)).map(|_| Batches::of(rng)).collect();
        let letters = match rng.u8(..4) {
            0 | 1 => Letters::Sink,
            2 => Letters::Discard,
            _ if log => Letters::Sink,
            _ => Letters::Source,
        };
        let kills = if rng.u8(..6) == 0 { rng.u32(2..8) } else { 0 };
        let mut one_in = |chance: u8, upto: u32| {
            if rng.u8(..chance) == 0 {
                rng.u32(1..upto)
            } else {
                0
            }
        };
        let spice = Spice {
            fails: one_in(2, 200),
            rejects: one_in(3, 60),
            hangs: one_in(4, 40),
            panics: one_in(3, 60),
            kills,
            undecodable: one_in(5, 30),
            bombs: one_in(8, 20),
            settles_now: one_in(6, 40),
            slow: one_in(2, 400),
            batches: one_in(2, 300),
        };
        let concurrency = rng.usize(1..9);
        let mut plan = Self {
            broker,
            ordering,
            concurrency,
            adapts_from: (rng.u8(..5) == 0).then(|| rng.usize(1..=concurrency)),
            max_demand: one_of([1, rng.usize(1..10), 100], rng),
            timeout: ms(rng.u64(50..1_000)),
            in_flight,
            bytes: one_of([rng.usize(60..600), 1 << 20], rng),
            per_key: one_of([rng.usize(1..4), rng.usize(4..20), 1_000], rng),
            per_batcher: one_of([0.2, 0.5, 1.0], rng),
            batchers,
            attempts: rng.u32(1..5),
            backoff: ms(rng.u64(1..200)),
            strategy: if redelivers {
                RetryStrategy::Redeliver
            } else {
                RetryStrategy::InPlace
            },
            max_deliveries: 12,
            breaker: rng.u8(..3) == 0,
            rate: match rng.u8(..6) {
                0 => Rate::Pipeline,
                1 => Rate::Keys,
                _ => Rate::Nothing,
            },
            letters,
            messages: rng.usize(200..260),
            keys: rng.u32(20..40),
            bursts: rng.usize(1..6),
            lateness: one_of([0, rng.u8(1..40), rng.u8(40..160)], rng),
            spice,
            steps: steps(rng, broker),
            features: Features::default(),
        };
        plan.decide(seed);
        plan
    }
}

impl Plan {
    /// What of it not every run has.
    pub(super) fn features(&self) -> impl Iterator<Item = &'static str> {
        [
            (self.ordering == Order::Header, "order by header"),
            (self.adapts_from.is_some(), "adaptive concurrency"),
            (self.rate == Rate::Keys, "rate of each key"),
            (self.broker.is_log() && self.broker.counts(), "counted ends"),
        ]
        .into_iter()
        .filter_map(|(has, feature)| has.then_some(feature))
    }
}

impl Batches {
    fn of(rng: &mut Rng) -> Self {
        Self {
            size: rng.usize(1..20),
            bytes: one_of([rng.usize(40..400), 1 << 20], rng),
            max_age: ms(rng.u64(1..300)),
            timeout: ms(rng.u64(50..500)),
            concurrency: rng.usize(1..4),
        }
    }
}

/// Three faults at least, each after a while.
fn steps(rng: &mut Rng, broker: Kind) -> Vec<(Duration, Step)> {
    let number = rng.usize(3..8);
    let mut unclean = 0;
    (0..number)
        .map(|_| {
            let lasts = ms(rng.u64(1..1_500));
            let step = loop {
                let step = match rng.u8(..12) {
                    0 => Step::Crash,
                    1 if broker.is_log() => Step::LosePartition,
                    1 => Step::Disconnect,
                    2 if broker.is_log() => Step::Revoke {
                        within: ms(rng.u64(1..500)),
                    },
                    2 => Step::Disconnect,
                    3 => Step::SourceFails,
                    4 => Step::Pause { lasts },
                    5 | 6 => Step::Drain {
                        within: one_of([ms(rng.u64(10..3_000)), ms(25_000)], rng),
                    },
                    7 => Step::Stop,
                    8 => Step::SlowAcks { lasts },
                    9 => Step::FailingAcks { lasts },
                    10 => Step::SlowLetters { lasts },
                    // Letters are rarer than settlements.
                    _ => Step::FailingLetters { lasts: 8 * lasts },
                };
                let raises = matches!(step, Step::Crash | Step::Disconnect | Step::SourceFails);
                unclean += usize::from(raises);
                // What raises the deliveries of innocents stays well below what gives a message up.
                if !raises || unclean <= 4 {
                    break step;
                }
            };
            (ms(one_of([rng.u64(..20), rng.u64(..400)], rng)), step)
        })
        .collect()
}

/// One of these, which has to be at least one.
pub(super) fn one_of<T: Copy, const N: usize>(options: [T; N], rng: &mut Rng) -> T {
    const { assert!(N > 0, "one of none") };
    let index = rng.usize(..N);
    *options.get(index).unwrap_or(&options[0])
}
