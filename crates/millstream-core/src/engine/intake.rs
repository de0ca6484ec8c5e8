//! Intake: reads the source against demand and admits what it gives.
//!
//! Demand is acted on here and nowhere else: free places, the rate limit, the breaker, pause, drain, full batchers
//! and long lanes all hold back the next read.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::watch;
use tracing::{info, warn};

use super::envelope::Envelope;
use super::hub::Hub;
use super::ready::Following;
use super::sentinels::Sentinel;
use super::turns::Limited;
use crate::connector::{Chunk, Credit, DynSource, Read};
use crate::errors::SourceError;
use crate::mutants::{Mutant, mutant};
use crate::rt::{self, Duration, Instant};
use crate::settlement::Reason;
use crate::spec::RateLimit;

/// How long a store keeps the tail of a key that has too much waiting, at least and at most.
const LONG_LANE_DELAY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// How long intake waits for room in a lane before it has the source hold back its place.
const LONG_LANE_PATIENCE: Duration = Duration::from_millis(10);
/// For how long it does at least.
const HELD_PLACE_DELAY: Duration = Duration::from_millis(50);

pub(crate) struct Intake {
    pub(super) hub: Arc<Hub>,
    /// The limit that is set, and what holds of it.
    pub(super) set: watch::Receiver<Option<RateLimit>>,
    pub(super) limited: Limited,
    pub(super) chunk: Chunk,
    /// Read, and not admitted because its lane is too long.
    pub(super) held_back: Vec<Envelope>,
    /// Read, and not admitted because its turn under the rate limit has not come.
    pub(super) untimely: Vec<Envelope>,
    /// When the first of those have their turns.
    pub(super) turns: Vec<Instant>,
    /// Changes whenever something in hand may be lost.
    pub(super) losses: watch::Receiver<u64>,
    /// Suspects were seen: one message at a time until one comes that is none.
    suspicious: bool,
}

impl Intake {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        let mut set = hub.rate_limit.subscribe();
        set.mark_changed();
        Self {
            losses: hub.watch_losses(),
            hub,
            set,
            limited: Limited::default(),
            chunk: Chunk::new(),
            held_back: Vec::new(),
            untimely: Vec::new(),
            turns: Vec::new(),
            suspicious: false,
        }
    }

    /// Reads until the source ends after a drain.
    pub(crate) async fn run(mut self, source: &mut dyn DynSource) -> Result<(), SourceError> {
        let hub = Arc::clone(&self.hub);
        let mut gate = hub.gate.watch();
        let mut limit = hub.rate_limit.subscribe();
        let mut paused = false;
        loop {
            limit.mark_unchanged();
            if self.set.has_changed().unwrap_or_default() {
                self.limit();
            }
            let mut freed = std::pin::pin!(hub.places.freed.notified());
            freed.as_mut().enable();
            let state = *gate.borrow_and_update();
            if state.draining {
                return self.drain(source).await;
            }
            let probe_only = state.broken && !mutant(Mutant::FetchWhileOpen);
            if state.paused || state.full_batchers > 0 || (probe_only && !self.wants_probe()) {
                if !std::mem::replace(&mut paused, true) {
                    source.pause();
                }
                tokio::select! {
                    biased;
                    _ = gate.changed() => {}
                    () = freed, if probe_only => {}
                }
                continue;
            }
            paused = false;
            tokio::select! {
                biased;
                _ = gate.changed() => {}
                () = hub.sequence_due(), if hub.sequence.is_some() => {
                    if let Some(sequence) = &hub.sequence {
                        sequence.expire(&hub, &mut self.held_back);
                    }
                    self.admit_held_back().await;
                    hub.admitting.store(false, Relaxed);
                }
                _ = limit.changed() => {}
                read = self.read(source, probe_only) => {
                    if read? == Read::Ended {
                        return Ok(());
                    }
                    let ordered = hub.spec.ordering.is_ordered();
                    if ordered {
                        hub.returning.hold();
                    }
                    self.admit().await;
                    if ordered {
                        hub.returning.let_go();
                    }
                    hub.admitting.store(false, Relaxed);
                }
            }
        }
    }

    /// With a breaker half open, one message is wanted when there is none in the engine to probe with, or those that
    /// there are failed: they may fail for ever.
    fn wants_probe(&self) -> bool {
        let hub = &*self.hub;
        let round = hub.breakers.round();
        hub.breakers.wants_probe(rt::now())
            && !hub.ready.has_undoubted(round)
            && !hub.batchers().iter().any(|batcher| batcher.has_undoubted(round))
    }

    /// One read within the credit there is, waiting for some. Cancel safe.
    async fn read(&mut self, source: &mut dyn DynSource, one: bool) -> Result<Read, SourceError> {
        let hub = Arc::clone(&self.hub);
        let alone = self.suspicious;
        // A probe is wanted however many there are that have failed.
        let room = match one {
            true => 1,
            false => hub.ready.hungry(|workers| hub.enough(workers)).await,
        };
        hub.places
            .until(|places| {
                // A suspect that fails while a breaker holds it back has no outcome until others have succeeded.
                if alone && !one {
                    places.messages() == 0
                } else {
                    places.credit().is_some()
                }
            })
            .await;
        let Some(Credit { messages, bytes }) = hub.places.credit() else {
            return Ok(Read::Messages);
        };
        let mut messages = if alone { 1 } else { messages.min(room) };
        if let Some(rate) = &mut self.limited.rate {
            messages = rate
                .reserve(messages, |then| hub.places.fetches_from(Some(then)))
                .await;
        }
        // What a read that was dropped has left in the chunk was asked for then.
        let most = messages.max(self.chunk.len());
        let read = source.read(Credit { messages, bytes }, &mut self.chunk).await?;
        if let Some(more) = self.chunk.len().checked_sub(most).filter(|more| *more > 0) {
            let known = format_args!("{} for {most}", self.chunk.len());
            hub.sentinels.fire(Sentinel::Overfetch, more, &known);
        }
        Ok(read)
    }

    /// Takes in what was read. While it waits, nothing more is read.
    async fn admit(&mut self) {
        let hub = Arc::clone(&self.hub);
        let received = self.chunk.len();
        hub.take_in(&mut self.chunk.envelopes);
        hub.counters.received.add(received);
        if let Some(twins) = &hub.twins {
            // Where the end of intake finds them.
            std::mem::swap(&mut self.held_back, &mut self.chunk.envelopes);
            hub.admitting.store(true, Relaxed);
            twins.admit(&hub, &mut self.held_back, &mut self.losses).await;
            std::mem::swap(&mut self.held_back, &mut self.chunk.envelopes);
        }
        if hub.capabilities.counts_deliveries || hub.capabilities.counts_ends {
            self.reject_deadly();
            if self.chunk.envelopes.iter().any(Envelope::is_suspect) {
                return self.admit_suspect().await;
            }
        }
        self.suspicious &= self.chunk.is_empty() || hub.held_by_breakers() > 0 || hub.suspects.any();
        self.await_turns().await;
        self.admit_chunk().await;
    }

    /// Puts what is in the chunk into the ready queue.
    pub(super) async fn admit_chunk(&mut self) {
        let hub = Arc::clone(&self.hub);
        if !hub.spec.ordering.is_ordered() {
            self.chunk.bytes = 0;
            return hub
                .ready
                .admit(&mut self.chunk.envelopes, hub.settings.max_demand(), hub.spare());
        }
        self.chunk.bytes = 0;
        std::mem::swap(&mut self.held_back, &mut self.chunk.envelopes);
        if let Some(sequence) = &hub.sequence {
            sequence.pass(&hub, &mut self.held_back);
        }
        self.admit_held_back().await;
    }

    /// Puts what is held back into the lanes, waiting for room where it has to.
    async fn admit_held_back(&mut self) {
        let hub = Arc::clone(&self.hub);
        let can = &hub.capabilities;
        self.admit_ordered(hub.keeps_order());
        hub.admitting.store(true, Relaxed);
        let patience = rt::after(LONG_LANE_PATIENCE);
        let mut gate = hub.gate.watch();
        loop {
            tokio::select! {
                biased;
                () = hub.returning.none() => {}
                _ = gate.wait_for(|gate| gate.draining) => {}
                _ = self.losses.changed() => {
                    self.drop_lost();
                    continue;
                }
            }
            if self.held_back.is_empty() {
                return;
            }
            self.admit_ordered(false);
            if self.held_back.is_empty() {
                return;
            }
            hub.counters.throttled.add(1);
            tokio::select! {
                biased;
                _ = gate.wait_for(|gate| gate.draining) => {
                    hub.release(self.held_back.drain(..));
                }
                _ = self.losses.changed() => self.drop_lost(),
                () = rt::sleep_until(patience), if can.holds_places => self.admit_ordered(true),
                () = hub.ready.lane_room.notified() => {}
            }
        }
    }

    /// Admits messages until one comes whose lane is full. That one waits here, and all behind it, unless such ones are
    /// to be given back: then they go back to the source for a while, and all of their key behind them. Where the store
    /// keeps keys in order, and lanes are of those keys, they do; so they do where the source holds back their place.
    /// What goes back has to arrive before anything more is read.
    fn admit_ordered(&mut self, gives_back: bool) {
        let hub = &*self.hub;
        let (ordering, per_key) = (&hub.spec.ordering, hub.settings.per_key());
        let mut full = Vec::new();
        let mut following = Following(&hub.returning, Vec::new());
        hub.ready.admit_ordered(
            &mut self.held_back,
            ordering,
            per_key,
            gives_back.then_some(&mut full),
            &mut following,
            hub.spare(),
        );
        hub.counters.throttled.add(full.len() + following.1.len());
        self.limited.unspent(full.len() + following.1.len());
        for envelope in following.1 {
            hub.return_later(envelope, LONG_LANE_DELAY.0);
        }
        // Back when about half of what waits will have run.
        let (mut least, most) = LONG_LANE_DELAY;
        if hub.capabilities.holds_places {
            least = HELD_PLACE_DELAY;
        }
        let delay = hub
            .pace()
            .saturating_mul(u32::try_from(per_key / 2).unwrap_or(u32::MAX))
            .clamp(least, most);
        for envelope in full {
            hub.returning.add(envelope.ticket);
            hub.returning.add_followed(envelope.ticket, envelope.order);
            hub.return_later(envelope, delay);
        }
    }

    /// Drops what is lost of what is in hand: nobody else can.
    pub(super) fn drop_lost(&mut self) {
        self.hub.drop_lost_of(&mut self.held_back);
        let mut lost = self.hub.drop_lost_of(&mut self.untimely).into_iter();
        self.turns.retain(|_| lost.next() != Some(true));
    }

    /// Gives up, unrun, what was delivered too often.
    fn reject_deadly(&mut self) {
        let most = self.hub.retry.read().max_deliveries.get();
        if self
            .chunk
            .envelopes
            .iter()
            .all(|envelope| envelope.message.deliveries <= most)
        {
            return;
        }
        let stage = "source".into();
        for envelope in std::mem::take(&mut self.chunk.envelopes) {
            let deliveries = envelope.message.deliveries;
            if deliveries > most {
                self.hub.passed(&envelope);
                let error = format!(
                    "delivered {deliveries} times without an outcome: it seems to end the process that runs it"
                );
                self.hub.give_up(envelope, &stage, Reason::Deliveries, error);
            } else {
                self.chunk.envelopes.push(envelope);
            }
        }
    }

    /// The chunk holds a suspect: everything else in it is given back, and the suspect runs alone, so that only
    /// the culprit's deliveries grow.
    async fn admit_suspect(&mut self) {
        let hub = Arc::clone(&self.hub);
        self.suspicious = true;
        hub.admitting.store(true, Relaxed);
        let mut suspect = None;
        let mut others = Vec::new();
        self.chunk.bytes = 0;
        for envelope in self.chunk.envelopes.drain(..) {
            if suspect.is_none() && envelope.is_suspect() {
                suspect = Some(envelope);
            } else {
                others.push(envelope);
            }
        }
        let Some(suspect) = suspect else { return };
        info!(
            pipeline = hub.name(),
            deliveries = suspect.message.deliveries,
            released = others.len(),
            position = suspect.message.position,
            "a suspect runs alone"
        );
        hub.release(others);
        if let Some(sequence) = &hub.sequence {
            hub.release(sequence.remove(|_| true));
        }
        self.chunk.envelopes.push(suspect);
        self.await_turns().await;
        let Some(suspect) = self.chunk.envelopes.pop() else {
            // Its turn comes later.
            return self.admit_chunk().await;
        };
        hub.passed(&suspect);
        let ticket = suspect.ticket;
        // Where the end of intake finds it.
        self.held_back.push(suspect);
        // Given back for good, not merely asked to be: should the suspect end the process, only its own count stands. What a
        // breaker holds may wait for this very one to succeed.
        let mut gate = hub.gate.watch();
        while !self.held_back.is_empty() {
            tokio::select! {
                biased;
                _ = gate.wait_for(|gate| gate.draining) => return hub.release(self.held_back.drain(..)),
                _ = self.losses.changed() => self.drop_lost(),
                () = hub.places.until(|places| hub.would_run_alone(places, ticket)) => break,
            }
        }
        if self.held_back.is_empty() {
            return;
        }
        hub.counters.suspects.add(1);
        let mut following = Following(&hub.returning, Vec::new());
        hub.ready.admit_ordered(
            &mut self.held_back,
            &hub.spec.ordering,
            usize::MAX,
            None,
            &mut following,
            0,
        );
        hub.release(following.1);
    }

    /// Ends the source: what it still gives goes back untouched.
    async fn drain(&mut self, source: &mut dyn DynSource) -> Result<(), SourceError> {
        source.drain();
        loop {
            let credit = Credit {
                messages: usize::MAX,
                bytes: usize::MAX,
            };
            let read = source.read(credit, &mut self.chunk).await?;
            if !self.chunk.is_empty() {
                self.hub.places.occupy(
                    self.chunk
                        .envelopes
                        .iter_mut()
                        .map(|envelope| &mut envelope.ticket),
                );
                self.hub.counters.received.add(self.chunk.len());
                self.hub.release(
                    self.chunk
                        .drain()
                        .map(|(ticket, message)| Envelope::new(ticket, message)),
                );
            }
            if read == Read::Ended {
                return Ok(());
            }
        }
    }
}

impl Drop for Intake {
    /// What was read and not admitted dies with its source; the store hands it out again.
    fn drop(&mut self) {
        self.hub.admitting.store(false, Relaxed);
        self.hub.returning.let_go();
        self.held_back.append(&mut self.untimely);
        if !self.held_back.is_empty() {
            warn!(
                pipeline = self.hub.name(),
                messages = self.held_back.len(),
                "intake ended with messages held back"
            );
            self.hub.release(self.held_back.drain(..));
        }
        // Fetched by a read that was dropped, and so without places yet.
        if !self.chunk.is_empty() {
            self.hub.places.occupy(
                self.chunk
                    .envelopes
                    .iter_mut()
                    .map(|envelope| &mut envelope.ticket),
            );
            self.hub.counters.received.add(self.chunk.len());
            self.hub.release(
                self.chunk
                    .drain()
                    .map(|(ticket, message)| Envelope::new(ticket, message)),
            );
        }
    }
}
