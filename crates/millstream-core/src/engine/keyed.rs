//! The rate limit of each key: when a message has its turn. It is a [`Bucket`] for each key, in which what is over the
//! limit is given a turn of its own later.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use bytes::Bytes;
use rustc_hash::FxHashMap;

use crate::message::Message;
use crate::rates::{Ask, Bucket, Pace};
use crate::rt::{self, Duration, Instant};
use crate::spec::RateLimit;

/// Keys below which idle ones are not looked for.
const FEW: usize = 1024;

/// Which limit a message is under.
#[derive(Debug)]
pub(crate) struct Paces {
    /// Nothing where all messages share one.
    header: Option<String>,
    /// Of weight one.
    pace: Pace,
    weights: BTreeMap<String, NonZeroU32>,
}

impl Paces {
    pub(crate) fn new(limit: &RateLimit) -> Self {
        Self {
            header: limit.key.clone(),
            pace: Pace {
                each: (limit.per / limit.messages.get()).max(Duration::from_nanos(1)),
                burst: limit.burst,
            },
            weights: limit.weights.clone(),
        }
    }

    /// The key whose limit it is: messages without one share one.
    pub(crate) fn key<'m>(&self, message: &'m Message) -> &'m str {
        let header = self.header.as_deref();
        header
            .and_then(|header| message.headers.get(header))
            .unwrap_or_default()
    }

    /// The limit of this key.
    pub(crate) fn pace(&self, key: &str) -> Pace {
        let weight = self.weights.get(key).copied().unwrap_or(NonZeroU32::MIN);
        Pace {
            each: (self.pace.each / weight.get()).max(Duration::from_nanos(1)),
            burst: self.pace.burst.saturating_mul(weight),
        }
    }
}

/// The turns of this process alone.
#[derive(Debug)]
pub(crate) struct KeyedRate {
    began: Instant,
    keys: FxHashMap<Box<str>, Key>,
    /// How many keys there are at which idle ones are looked for.
    crowded: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Key {
    bucket: Bucket,
    idle_at: u64,
}

impl KeyedRate {
    /// With each key's whole burst.
    pub(crate) fn new() -> Self {
        Self {
            began: rt::now(),
            keys: FxHashMap::default(),
            crowded: FEW,
        }
    }

    /// How long this message waits for its turn, which it has with that; nothing where it is now. Where it `returns`, it
    /// waits elsewhere and is asked for again when its turn has come; whichever of its key comes first then has it.
    pub(crate) fn turn(&mut self, paces: &Paces, message: &Message, returns: bool, now: Instant) -> Duration {
        let now = now.saturating_duration_since(self.began).as_micros();
        let now = u64::try_from(now).unwrap_or(u64::MAX);
        self.forget(now);
        let value = paces.key(message);
        let pace = paces.pace(value);
        let key = match self.keys.get_mut(value) {
            Some(key) => key,
            None => self.keys.entry(value.into()).or_default(),
        };
        let ask = Ask {
            key: Bytes::new(),
            pace,
            number: 1,
            returns,
        };
        let turns = key.bucket.take(&ask, now);
        key.idle_at = key.bucket.idle_at(pace.each);
        turns.wait
    }

    /// Forgets keys that are idle, once there are twice as many keys as were in use at the last look.
    fn forget(&mut self, now: u64) {
        if self.keys.len() >= self.crowded {
            self.keys.retain(|_, key| key.idle_at > now);
            self.crowded = (self.keys.len() * 2).max(FEW);
            self.keys.shrink_to(self.crowded);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt;

    const SECOND: Duration = Duration::from_secs(1);

    /// So many a second for each tenant.
    struct Alone(Paces, KeyedRate);

    impl Alone {
        fn new(messages: u32, burst: u32) -> Self {
            let limit = RateLimit {
                messages: NonZeroU32::new(messages).unwrap(),
                per: SECOND,
                burst: NonZeroU32::new(burst).unwrap(),
                key: Some("tenant".to_owned()),
                weights: [("gold".to_owned(), NonZeroU32::new(4).unwrap())].into(),
            };
            Self(Paces::new(&limit), KeyedRate::new())
        }

        fn turn(&mut self, message: &Message, returns: bool, now: Instant) -> Duration {
            self.1.turn(&self.0, message, returns, now)
        }
    }

    fn of(tenant: &str) -> Message {
        Message::new("").with_header("tenant", tenant)
    }

    #[tokio::test(start_paused = true)]
    async fn each_key_has_its_burst_and_then_turns_that_are_evenly_spread() {
        let mut rate = Alone::new(10, 2);
        let mut waits = |message: Message| -> Vec<_> {
            (0..4)
                .map(|_| rate.turn(&message, true, rt::now()).as_millis())
                .collect()
        };
        assert_eq!(waits(of("a")), [0, 0, 100, 200]);
        assert_eq!(waits(of("b")), [0, 0, 100, 200]);
        assert_eq!(waits(Message::new("")), [0, 0, 100, 200]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_weight_multiplies_a_keys_limit() {
        let mut rate = Alone::new(10, 1);
        let waits: Vec<_> = (0..6)
            .map(|_| rate.turn(&of("gold"), true, rt::now()).as_millis())
            .collect();
        assert_eq!(waits, [0, 0, 0, 0, 25, 50]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_again_when_its_turn_has_come_has_it_and_what_comes_too_early_waits_behind() {
        let mut rate = Alone::new(10, 1);
        let mut turn = |now| rate.turn(&of("a"), true, now).as_millis();
        let start = rt::now();
        assert_eq!([turn(start), turn(start), turn(start)], [0, 100, 200]);
        let then = start + Duration::from_millis(100);
        assert_eq!([turn(then), turn(then)], [0, 200], "the second is a new one");
        let then = start + Duration::from_millis(200);
        assert_eq!(turn(then), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn turns_that_nobody_comes_for_are_over_in_a_moment() {
        let mut rate = Alone::new(10, 5);
        let start = rt::now();
        for _ in 0..1_000 {
            rate.turn(&of("a"), true, start);
        }
        let later = start + 1_000 * SECOND;
        let at_once = (0..1_000)
            .take_while(|_| rate.turn(&of("a"), true, later).is_zero())
            .count();
        assert!(at_once <= 25, "{at_once}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_counts_whole_seconds_loses_no_turns() {
        let mut rate = Alone::new(50, 5);
        let start = rt::now();
        // How many come in which second, each a little late.
        let mut coming = [0_u32; 1_000];
        coming[0] = 1_000;
        let mut done = 0;
        for second in 0..25_u16 {
            let now = start + SECOND * u32::from(second) + Duration::from_millis(u64::from(second % 3) * 100);
            for _ in 0..coming[usize::from(second)] {
                let wait = rate.turn(&of("a"), true, now);
                if wait.is_zero() {
                    done += 1;
                } else {
                    coming[(now + wait - start).as_millis().div_ceil(1_000) as usize] += 1;
                }
            }
        }
        assert_eq!(
            done, 1_000,
            "of a thousand, after twenty-four seconds at fifty a second"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn idle_keys_are_forgotten() {
        let mut rate = Alone::new(1_000, 10);
        for number in 0..100_000_u32 {
            if number.is_multiple_of(10) {
                tokio::time::advance(Duration::from_millis(1)).await;
            }
            rate.turn(&of(&number.to_string()), true, rt::now());
        }
        assert!(rate.1.keys.len() <= FEW, "{} keys", rate.1.keys.len());
        assert!(rate.1.keys.capacity() <= 4 * FEW, "{}", rate.1.keys.capacity());
    }
}
