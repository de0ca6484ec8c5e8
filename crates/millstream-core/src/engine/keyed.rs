//! The rate limit of each key: when a message has its turn. It is a generic cell rate algorithm for each key, in which
//! what is over the limit is given a turn of its own later.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use rustc_hash::FxHashMap;

use crate::message::Message;
use crate::rt::{Duration, Instant};
use crate::spec::RateLimit;

/// Keys below which idle ones are not looked for.
const FEW: usize = 1024;

/// For how long a turn is kept at least for a message that waits at the source: some count whole seconds, and so bring
/// back at once what has its turns in one, and some are late by a while.
const LATE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct KeyedRate {
    header: String,
    /// Between two messages of a key of weight one.
    each: Duration,
    burst: NonZeroU32,
    weights: BTreeMap<String, NonZeroU32>,
    keys: FxHashMap<Box<str>, Key>,
    /// How many keys there are at which idle ones are looked for.
    crowded: usize,
}

/// One key's turns.
#[derive(Clone, Copy, Debug)]
struct Key {
    /// When all that had a turn would have come, evenly spread.
    spread_until: Instant,
    /// Turns of messages that wait at the source: the first, and how many follow it evenly.
    first: Instant,
    waiting: u32,
}

impl KeyedRate {
    /// A limit for each value of this header; messages without it share one.
    pub(crate) fn new(limit: &RateLimit, header: &str) -> Self {
        Self {
            header: header.to_owned(),
            each: (limit.per / limit.messages.get()).max(Duration::from_nanos(1)),
            burst: limit.burst,
            weights: limit.weights.clone(),
            keys: FxHashMap::default(),
            crowded: FEW,
        }
    }

    /// How long this message waits for its turn, which it has with that; nothing where it is now. Where it `returns`, it
    /// waits elsewhere and is asked for again when its turn has come; whichever of its key comes first then has it.
    pub(crate) fn turn(&mut self, message: &Message, returns: bool, now: Instant) -> Duration {
        self.forget(now);
        let value = message.headers.get(&self.header).unwrap_or_default();
        let weight = self.weights.get(value).copied().unwrap_or(NonZeroU32::MIN);
        let each = (self.each / weight.get()).max(Duration::from_nanos(1));
        let burst = self.burst.saturating_mul(weight).get();
        let fresh = Key {
            spread_until: now,
            first: now,
            waiting: 0,
        };
        let key = match self.keys.get_mut(value) {
            Some(key) => key,
            None => self.keys.entry(value.into()).or_insert(fresh),
        };
        key.lapse(each, burst, now);
        if key.waiting > 0 && key.first <= now {
            key.first += each;
            key.waiting -= 1;
            return Duration::ZERO;
        }
        let from = key.spread_until.max(now);
        let turn = from
            .checked_sub(each.saturating_mul(burst - 1))
            .unwrap_or(now)
            .max(now);
        key.spread_until = from + each;
        if returns && turn > now {
            if key.waiting == 0 {
                key.first = turn;
            }
            key.waiting = key.waiting.saturating_add(1);
        }
        turn.duration_since(now)
    }

    /// Forgets keys that are idle, once there are twice as many keys as were in use at the last look.
    fn forget(&mut self, now: Instant) {
        if self.keys.len() >= self.crowded {
            self.keys.retain(|_, key| key.spread_until > now);
            self.crowded = (self.keys.len() * 2).max(FEW);
            self.keys.shrink_to(self.crowded);
        }
    }
}

impl Key {
    /// Of the turns that nobody came for, those of the last moments are kept, and a burst at least.
    fn lapse(&mut self, each: Duration, burst: u32, now: Instant) {
        if self.waiting == 0 || self.first > now {
            return;
        }
        let due = (now - self.first).as_nanos() / each.as_nanos() + 1;
        let due = u32::try_from(due).unwrap_or(u32::MAX).min(self.waiting);
        let late = u32::try_from(LATE.as_nanos() / each.as_nanos()).unwrap_or(u32::MAX);
        let lapsed = due.saturating_sub(burst.max(late));
        self.first += each.saturating_mul(lapsed);
        self.waiting -= lapsed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt;

    const SECOND: Duration = Duration::from_secs(1);

    fn limit(messages: u32, burst: u32) -> RateLimit {
        RateLimit {
            messages: NonZeroU32::new(messages).unwrap(),
            per: SECOND,
            burst: NonZeroU32::new(burst).unwrap(),
            key: Some("tenant".to_owned()),
            weights: [("gold".to_owned(), NonZeroU32::new(4).unwrap())].into(),
        }
    }

    fn of(tenant: &str) -> Message {
        Message::new("").with_header("tenant", tenant)
    }

    #[tokio::test(start_paused = true)]
    async fn each_key_has_its_burst_and_then_turns_that_are_evenly_spread() {
        let mut rate = KeyedRate::new(&limit(10, 2), "tenant");
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
        let mut rate = KeyedRate::new(&limit(10, 1), "tenant");
        let waits: Vec<_> = (0..6)
            .map(|_| rate.turn(&of("gold"), true, rt::now()).as_millis())
            .collect();
        assert_eq!(waits, [0, 0, 0, 0, 25, 50]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_again_when_its_turn_has_come_has_it_and_what_comes_too_early_waits_behind() {
        let mut rate = KeyedRate::new(&limit(10, 1), "tenant");
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
        let mut rate = KeyedRate::new(&limit(10, 5), "tenant");
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
        let mut rate = KeyedRate::new(&limit(50, 5), "tenant");
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
        let mut rate = KeyedRate::new(&limit(1_000, 10), "tenant");
        for number in 0..100_000_u32 {
            if number.is_multiple_of(10) {
                tokio::time::advance(Duration::from_millis(1)).await;
            }
            rate.turn(&of(&number.to_string()), true, rt::now());
        }
        assert!(rate.keys.len() <= FEW, "{} keys", rate.keys.len());
        assert!(rate.keys.capacity() <= 4 * FEW, "{}", rate.keys.capacity());
    }
}
