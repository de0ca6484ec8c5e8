//! Intake under a rate limit, of the pipeline or of each key: what is over a key's limit goes back to the source until its
//! turn has come, where the source can wait; elsewhere it waits here, and what was read with it.

use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use rustc_hash::FxHashMap;

use super::hub::Hub;
use super::intake::Intake;
use super::keyed::KeyedRate;
use super::rate::Rate;
use crate::rt::{self, Duration};
use crate::spec::{Ordering, RateLimit};

impl Hub {
    /// Whether a message can be given back for a later time without losing the order of its key.
    pub(super) fn keeps_order(&self) -> bool {
        let can = &self.capabilities;
        can.orders_keys && can.delay && matches!(self.spec.ordering, Ordering::Key)
    }
}

impl Intake {
    /// From now on this limit holds, with its whole burst.
    pub(super) fn limit(&mut self, limit: Option<&RateLimit>) {
        let key = limit.and_then(|limit| Some((limit, limit.key.as_deref()?)));
        self.keyed = key.map(|(limit, header)| KeyedRate::new(limit, header));
        self.rate = limit.filter(|limit| limit.key.is_none()).map(Rate::new);
    }

    /// Leaves in the chunk what has its turn now.
    pub(super) async fn await_turns(&mut self) {
        let Some(keyed) = &mut self.keyed else { return };
        let hub = &*self.hub;
        let ordered = hub.spec.ordering.is_ordered();
        let returns = if ordered {
            hub.keeps_order()
        } else {
            hub.can_put_off()
        };
        let now = rt::now();
        if !returns {
            let turns = self.chunk.envelopes.iter();
            let last = turns
                .map(|envelope| keyed.turn(&envelope.message, false, now))
                .max();
            let wait = last.unwrap_or_default();
            if !wait.is_zero() {
                hub.counters.throttled.add(1);
                self.wait_here(wait).await;
            }
            return;
        }
        let longest = hub.capabilities.longest_delay.unwrap_or(Duration::MAX);
        // What follows a message that goes back goes back behind it.
        let mut gone: FxHashMap<Bytes, Duration> = FxHashMap::default();
        for envelope in std::mem::take(&mut self.chunk.envelopes) {
            let mut wait = keyed.turn(&envelope.message, true, now);
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
            hub.return_later(envelope, wait.min(longest));
        }
    }

    /// Keeps what was read for so long, unless the pipeline drains: then it goes back.
    async fn wait_here(&mut self, wait: Duration) {
        self.hub.admitting.store(true, Relaxed);
        // Where the end of intake finds it.
        std::mem::swap(&mut self.held_back, &mut self.chunk.envelopes);
        let mut gate = self.hub.gate.watch();
        tokio::select! {
            biased;
            _ = gate.wait_for(|gate| gate.draining) => self.hub.release(self.held_back.drain(..)),
            () = rt::sleep(wait) => {}
        }
        std::mem::swap(&mut self.held_back, &mut self.chunk.envelopes);
    }
}
