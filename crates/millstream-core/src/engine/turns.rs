//! Intake under a rate limit of each key, or one that processes share: messages have turns. Where the source can wait, what
//! is over a key's limit goes back there until its turn has come; elsewhere it waits here, and what was read after it too.

use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use rustc_hash::FxHashMap;

use super::hub::Hub;
use super::intake::Intake;
use super::keyed::{KeyedRate, Paces};
use super::rate::Rate;
use crate::connector::Capabilities;
use crate::ordering::Ordering;
use crate::rt::{self, Duration, Instant};
use crate::spec::RateLimit;

impl Hub {
    /// Whether a message can be given back for a later time without losing the order of its key.
    pub(super) fn keeps_order(&self) -> bool {
        keeps_order(&self.spec.ordering, &self.capabilities)
    }

    /// Whether what is over its key's limit waits at the source.
    fn waits_there(&self) -> bool {
        waits_there(&self.spec.ordering, &self.capabilities, self.can_put_off())
    }
}

fn keeps_order(ordering: &Ordering, can: &Capabilities) -> bool {
    can.orders_keys && can.delay && matches!(ordering, Ordering::Key)
}

/// Whether what is over its key's limit waits at a source that can so much, and that messages can be given back to out of
/// their order, or not.
pub(crate) fn waits_there(ordering: &Ordering, can: &Capabilities, puts_off: bool) -> bool {
    match ordering.is_ordered() {
        true => keeps_order(ordering, can),
        false => puts_off,
    }
}

/// What holds now, of the limit.
#[derive(Debug, Default)]
pub(crate) struct Limited {
    limit: Option<RateLimit>,
    /// How many may be fetched, where there is one limit for all of them.
    pub(super) rate: Option<Rate>,
    /// Which limit a message is under, where messages have turns.
    paces: Option<Paces>,
    /// The turns of this process alone.
    keyed: Option<KeyedRate>,
}

impl Limited {
    /// So many of those that were fetched are to run; the others spend nothing.
    pub(super) fn spent(&mut self, messages: usize) {
        if let Some(rate) = &mut self.rate {
            rate.fetched(messages);
        }
    }

    /// So many that were to run go back.
    pub(super) fn unspent(&mut self, messages: usize) {
        if let Some(rate) = &mut self.rate {
            rate.returned(messages);
        }
    }
}

impl Intake {
    /// From now on the limit holds that is set, with its whole burst where it is another.
    pub(super) fn limit(&mut self) {
        let limit = self.set.borrow_and_update().clone();
        if self.limited.limit == limit {
            return;
        }
        let shared = self.hub.shared_rate.as_ref();
        let of_key = limit.as_ref().is_some_and(|limit| limit.key.is_some());
        self.hub.places.fetches_from(None);
        self.limited = Limited {
            rate: limit.as_ref().filter(|_| !of_key).map(Rate::new),
            paces: limit
                .as_ref()
                .filter(|_| of_key || shared.is_some())
                .map(Paces::new),
            keyed: of_key.then(KeyedRate::new),
            limit,
        };
        if let Some(shared) = shared.filter(|_| self.limited.limit.is_none()) {
            shared.forgive(&self.hub);
        }
    }

    /// Leaves in the chunk what has its turn, with nothing before it that has not.
    pub(super) async fn await_turns(&mut self) {
        self.limited.spent(self.chunk.len());
        if self.limited.paces.is_none() || self.chunk.is_empty() {
            return;
        }
        // Where the end of intake finds it.
        std::mem::swap(&mut self.untimely, &mut self.chunk.envelopes);
        self.hub.admitting.store(true, Relaxed);
        // Those of the pipeline as a whole are no more than it has room for in a moment.
        let of_key = self.limited.keyed.is_some();
        match of_key && self.hub.waits_there() {
            true => self.put_off().await,
            false => self.wait_here().await,
        }
    }

    /// Gives back what has its turn later.
    async fn put_off(&mut self) {
        let number = self.untimely.len();
        let Some(waits) = self.turns(number, true).await else {
            return;
        };
        let hub = &*self.hub;
        let ordered = hub.spec.ordering.is_ordered();
        let longest = hub.capabilities.longest_delay.unwrap_or(Duration::MAX);
        // What follows a message that goes back goes back behind it.
        let mut gone: FxHashMap<Bytes, Duration> = FxHashMap::default();
        for (envelope, mut wait) in self.untimely.drain(..).zip(waits) {
            if let Some(key) = envelope.message.key.as_ref().filter(|_| ordered) {
                wait = wait.max(gone.get(key).copied().unwrap_or_default());
                if !wait.is_zero() {
                    gone.insert(key.clone(), wait);
                }
            }
            if wait.is_zero() {
                self.chunk.envelopes.push(envelope);
                continue;
            }
            hub.counters.throttled.add(1);
            if ordered {
                hub.returning.add(envelope.ticket);
            }
            let wait = wait.min(longest);
            hub.places.limited(rt::after(wait));
            hub.return_later(envelope, wait);
        }
    }

    /// Keeps what was read until it has its turn, unless the pipeline drains: then it goes back. Messages are admitted as
    /// their turns come, all but the last of them here.
    async fn wait_here(&mut self) {
        let mut throttled = false;
        while !self.untimely.is_empty() {
            let number = self.portion();
            let Some(waits) = self.turns(number, false).await else {
                return;
            };
            let now = rt::now();
            self.turns = waits.into_iter().map(|wait| now + wait).collect();
            loop {
                let now = rt::now();
                let timely = self.turns.iter().take_while(|turn| **turn <= now).count();
                self.turns.drain(..timely);
                self.chunk.envelopes.extend(self.untimely.drain(..timely));
                if self.untimely.is_empty() {
                    return;
                }
                if !self.chunk.is_empty() {
                    self.admit_chunk().await;
                }
                let Some(next) = self.turns.first().copied() else {
                    break;
                };
                if !std::mem::replace(&mut throttled, true) {
                    self.hub.counters.throttled.add(1);
                }
                if !self.wait_until(next).await {
                    break;
                }
            }
        }
    }

    /// How many messages have turns taken for them at a time: of no key more than its burst, so that no more is lost with
    /// a process than that.
    fn portion(&self) -> usize {
        let all = self.untimely.len();
        let Some(paces) = self
            .limited
            .paces
            .as_ref()
            .filter(|_| self.hub.shared_rate.is_some())
        else {
            return all;
        };
        let mut keys: FxHashMap<&str, u32> = FxHashMap::default();
        let within = self.untimely.iter().take_while(|envelope| {
            let key = paces.key(&envelope.message);
            let number = keys.entry(key).or_default();
            *number += 1;
            *number <= paces.pace(key).burst.get()
        });
        within.count().max(1)
    }

    /// How long the first of the untimely ones wait for their turns. Nothing where the pipeline drains: then they are gone.
    async fn turns(&mut self, number: usize, returns: bool) -> Option<Vec<Duration>> {
        loop {
            if self.set.has_changed().unwrap_or_default() {
                self.limit();
            }
            let hub = &*self.hub;
            // Some may have been lost while the store was away.
            let number = number.min(self.untimely.len());
            let envelopes = self.untimely.get(..number).unwrap_or_default();
            let Some(paces) = &self.limited.paces else {
                return Some(vec![Duration::ZERO; number]);
            };
            if let Some(shared) = &hub.shared_rate {
                let mut gate = hub.gate.watch();
                let waits = tokio::select! {
                    biased;
                    _ = gate.wait_for(|gate| gate.draining) => None,
                    waits = shared.turns(hub, paces, envelopes, returns) => Some(waits),
                };
                match waits {
                    None => {
                        hub.release(self.untimely.drain(..));
                        return None;
                    }
                    Some(Some(waits)) => return Some(waits),
                    Some(None) if shared.runs_alone() => hub.counters.unshared.add(number),
                    Some(None) => {
                        let again = shared.again_at();
                        self.wait_until(again).await;
                        if self.untimely.is_empty() {
                            return None;
                        }
                        continue;
                    }
                }
            }
            let now = rt::now();
            let Some(keyed) = &mut self.limited.keyed else {
                return Some(vec![Duration::ZERO; number]);
            };
            return Some(
                envelopes
                    .iter()
                    .map(|envelope| keyed.turn(paces, &envelope.message, returns, now))
                    .collect(),
            );
        }
    }

    /// Waits until then, unless the limit changes or the pipeline drains: then the untimely ones go back. What is lost
    /// meanwhile is dropped, with its turn. Says whether it is then, and there is anything left.
    async fn wait_until(&mut self, then: Instant) -> bool {
        self.hub.admitting.store(true, Relaxed);
        let mut gate = self.hub.gate.watch();
        loop {
            tokio::select! {
                biased;
                _ = gate.wait_for(|gate| gate.draining) => {
                    self.hub.release(self.untimely.drain(..));
                    self.turns.clear();
                    return false;
                }
                _ = self.set.changed() => {
                    self.set.mark_changed();
                    return false;
                }
                _ = self.losses.changed() => {
                    self.drop_lost();
                    if self.untimely.is_empty() {
                        return false;
                    }
                }
                () = rt::sleep_until(then) => return true,
            }
        }
    }
}
