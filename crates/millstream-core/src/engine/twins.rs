//! Deduplication: messages that were done of late are acknowledged unrun, and one whose twin is in flight waits for
//! what comes of that.
//!
//! Intake registers what it reads by id, and asks the store of ids about what is new to it ([`Twins::admit`]). What
//! is in flight under an id is its *first*; later ones are its *twins*. A twin is admitted as any other message, so
//! that it has its turn in its lane; a worker that takes it puts it aside unless its first has ended ([`Twins::turn`]).
//! Settlements pass by on their way to the acknowledger: the store has the ids of what is done before the source hears of
//! it ([`Twins::enter`]), and nothing else waits for the store.

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::sync::watch;

use super::envelope::Envelope;
use super::hub::Hub;
use super::stores::Calls;
use crate::dedup::{DeduplicateSpec, IdBy, Ids, OnStoreFailure};
use crate::message::Message;
use crate::mutants::{Mutant, mutant};
use crate::rt::{self, Duration, Instant};
use crate::settlement::{Rejection, Settle, Settlement};
use crate::ticket::Ticket;

/// How long the store may take to answer.
const STORE_PATIENCE: Duration = Duration::from_secs(5);

/// The longest id: what is longer is no id.
const LONGEST_ID: usize = 1024;

/// What the pipeline's condition calls the store.
pub(super) const STORE: &str = "deduplicate";

/// What is in flight by id, and the store of what was done.
#[derive(Debug)]
pub(crate) struct Twins {
    spec: DeduplicateSpec,
    calls: Calls,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What is in flight and has an id.
    ids: FxHashMap<Ticket, Bytes>,
    flights: FxHashMap<Bytes, Flight>,
}

/// The messages in flight that have one id.
#[derive(Debug, Default)]
struct Flight {
    /// The one that runs; nothing once it is settled or gone.
    first: Option<Ticket>,
    /// What comes of it, as soon as that is known.
    fate: Option<Fate>,
    /// The others.
    twins: usize,
}

/// What comes of a first, and so of its twins.
#[derive(Clone, Debug)]
enum Fate {
    Done,
    GivenUp(Arc<Rejection>),
}

/// What a twin shall do.
#[derive(Debug)]
pub(crate) enum Turn {
    /// Its first went away unsettled: it is the first now.
    Run,
    /// Nothing is known yet.
    Wait,
    /// Its first is done, and so is it.
    Done,
    /// Its first was given up, and so is it.
    GivenUp(Arc<Rejection>),
}

/// What the store says of ids.
enum Said {
    /// For each, whether it was done.
    Seen(Vec<bool>),
    /// Nothing, and they run.
    Nothing,
    /// Nothing, and the pipeline drains.
    Draining,
}

impl Flight {
    /// Whether its twins need not wait.
    fn is_decided(&self) -> bool {
        self.fate.is_some() || self.first.is_none()
    }
}

impl State {
    fn flight(&mut self, ticket: &Ticket) -> Option<&mut Flight> {
        self.flights.get_mut(self.ids.get(ticket)?)
    }

    /// This one is settled or gone. Says whether twins have been waiting for that.
    fn forget(&mut self, ticket: &Ticket, fate: Option<Fate>) -> bool {
        let Some(id) = self.ids.remove(ticket) else {
            return false;
        };
        let Some(flight) = self.flights.get_mut(&id) else {
            return false;
        };
        if flight.first == Some(*ticket) {
            flight.first = None;
            if flight.fate.is_none() {
                flight.fate = fate;
            }
        } else {
            flight.twins -= 1;
        }
        let decided = flight.is_decided();
        if flight.first.is_none() && flight.twins == 0 {
            self.flights.remove(&id);
            return false;
        }
        decided
    }
}

impl Twins {
    pub(crate) fn new(spec: DeduplicateSpec) -> Self {
        Self {
            spec,
            calls: Calls::new(STORE, STORE_PATIENCE),
            state: Mutex::default(),
        }
    }

    /// Registers what was read, takes out and acknowledges what was done already, and marks twins of what is in
    /// flight. While it waits for the store, all of it stays where it is but for what is lost.
    pub(crate) async fn admit(
        &self,
        hub: &Hub,
        envelopes: &mut Vec<Envelope>,
        losses: &mut watch::Receiver<u64>,
    ) {
        let mut unidentified = 0;
        let mut new = Vec::new();
        {
            let mut state = self.state.lock();
            let state = &mut *state;
            for envelope in envelopes.iter_mut() {
                let Some(id) = self.id(hub, &envelope.message) else {
                    unidentified += 1;
                    continue;
                };
                state.ids.insert(envelope.ticket, id.clone());
                let flight = state.flights.entry(id.clone()).or_default();
                if flight.first.is_none() && flight.twins == 0 {
                    flight.first = Some(envelope.ticket);
                    new.push(id);
                } else {
                    flight.twins += 1;
                    envelope.is_twin = true;
                }
            }
        }
        hub.counters.unidentified.add(unidentified);
        let said = {
            let mut look = pin!(self.look(hub, &new));
            loop {
                tokio::select! {
                    biased;
                    said = &mut look => break said,
                    Ok(()) = losses.changed() => drop(hub.drop_lost_of(envelopes)),
                }
            }
        };
        match said {
            Said::Draining => return hub.release(envelopes.drain(..)),
            Said::Nothing => hub.counters.unchecked.add(new.len()),
            Said::Seen(seen) => {
                let mut state = self.state.lock();
                for (id, _) in new.iter().zip(seen).filter(|(_, seen)| *seen) {
                    if let Some(flight) = state.flights.get_mut(id) {
                        flight.fate = Some(Fate::Done);
                    }
                }
            }
        }
        let duplicates: Vec<_> = {
            let mut state = self.state.lock();
            envelopes
                .extract_if(.., |envelope| {
                    let flight = state.flight(&envelope.ticket);
                    flight.is_some_and(|flight| matches!(flight.fate, Some(Fate::Done)))
                })
                .collect()
        };
        hub.counters.duplicates.add(duplicates.len());
        for envelope in &duplicates {
            hub.passed(envelope);
        }
        let acks = duplicates
            .iter()
            .filter_map(|envelope| envelope.settle(Settlement::Ack));
        hub.settling.add(acks);
    }

    /// The id of a message.
    fn id(&self, hub: &Hub, message: &Message) -> Option<Bytes> {
        let id = match &self.spec.by {
            IdBy::By(by) => super::guard::by(by, message)?,
            IdBy::Source => match hub.capabilities.ids {
                Ids::None => return None,
                Ids::Header(name) => Bytes::copy_from_slice(message.headers.get(name)?.as_bytes()),
                Ids::Position => Bytes::from(format!(
                    "{}@{}",
                    hub.origin_name(message.origin),
                    message.position
                )),
            },
        };
        (!id.is_empty() && id.len() <= LONGEST_ID).then_some(id)
    }

    /// Asks the store. Where messages wait for it, so does this, until the pipeline drains.
    async fn look(&self, hub: &Hub, ids: &[Bytes]) -> Said {
        if ids.is_empty() {
            return Said::Seen(Vec::new());
        }
        let mut gate = hub.gate.watch();
        loop {
            let call = || self.spec.store.seen(ids);
            if let Some(seen) = self.calls.ask(hub, &hub.counters.store_failures, call).await {
                return Said::Seen(seen);
            }
            if self.spec.on_store_failure == OnStoreFailure::Run {
                return Said::Nothing;
            }
            tokio::select! {
                biased;
                _ = gate.wait_for(|gate| gate.draining) => return Said::Draining,
                () = rt::sleep_until(self.calls.again_at()) => {}
            }
        }
    }

    /// When the store may be asked again: it is not asked for every chunk while it is away.
    pub(crate) fn again_at(&self) -> Instant {
        self.calls.again_at()
    }

    /// What a twin shall do now that it would have its turn.
    pub(crate) fn turn(&self, ticket: &Ticket) -> Turn {
        let mut state = self.state.lock();
        let Some(flight) = state.flight(ticket) else {
            return Turn::Run;
        };
        match &flight.fate {
            Some(Fate::Done) => Turn::Done,
            Some(Fate::GivenUp(rejection)) => Turn::GivenUp(Arc::clone(rejection)),
            None if flight.first.is_some() && !mutant(Mutant::TwinRuns) => Turn::Wait,
            None => {
                flight.first = Some(*ticket);
                flight.twins -= 1;
                Turn::Run
            }
        }
    }

    /// Brings back those that were put aside and need wait no longer.
    pub(crate) fn bring_back(&self, hub: &Hub) {
        hub.ready.bring_back(|envelope| {
            let decided = self
                .state
                .lock()
                .flight(&envelope.ticket)
                .is_none_or(|flight| flight.is_decided());
            decided || hub.is_lost(&envelope.ticket)
        });
    }

    /// This one goes where the policy says, and so do its twins.
    pub(crate) fn given_up(&self, hub: &Hub, ticket: &Ticket, rejection: &Arc<Rejection>) {
        let waiting = self.state.lock().flight(ticket).is_some_and(|flight| {
            if flight.first != Some(*ticket) || flight.fate.is_some() {
                return false;
            }
            flight.fate = Some(Fate::GivenUp(Arc::clone(rejection)));
            flight.twins > 0
        });
        if waiting {
            self.bring_back(hub);
        }
    }

    /// These left without an outcome, and come again as others.
    pub(crate) fn gone<'a>(&self, hub: &Hub, tickets: impl Iterator<Item = &'a Ticket>) {
        let mut waiting = false;
        {
            let mut state = self.state.lock();
            for ticket in tickets {
                waiting |= state.forget(ticket, None);
            }
        }
        if waiting {
            self.bring_back(hub);
        }
    }

    /// Moves what says that a first is done to `successes`: the store has it before its source hears of it.
    pub(crate) fn sort_out(&self, given: &mut Vec<Settle>, successes: &mut Vec<Settle>) {
        let mut state = self.state.lock();
        successes.extend(given.extract_if(.., |settle| state.is_success(settle)));
    }

    /// The ids of these.
    pub(crate) fn ids(&self, settles: &[Settle]) -> Vec<Bytes> {
        let state = self.state.lock();
        let ids = settles.iter().filter_map(|settle| state.ids.get(&settle.ticket));
        ids.cloned().collect()
    }

    /// Enters the ids of what is done. Says whether its source may hear of it: not where the store is away and messages
    /// wait for it.
    pub(crate) async fn enter(&self, hub: &Hub, ids: &[Bytes]) -> bool {
        if mutant(Mutant::IdForgotten) {
            return true;
        }
        let call = || self.spec.store.enter(ids, self.spec.window);
        match self.calls.ask(hub, &hub.counters.store_failures, call).await {
            Some(forgotten) => hub.counters.forgotten_ids.add(forgotten),
            None if self.spec.on_store_failure == OnStoreFailure::Run => {
                hub.counters.unchecked.add(ids.len());
            }
            None => return false,
        }
        true
    }

    /// The source is about to hear of these: what comes of them is known, and what waited for that need wait no longer.
    pub(crate) fn told(&self, hub: &Hub, given: &[Settle]) {
        let mut waiting = false;
        {
            let mut state = self.state.lock();
            for settle in given {
                let fate = match &settle.settlement {
                    Settlement::Ack => Some(Fate::Done),
                    Settlement::Reject(rejection) => Some(Fate::GivenUp(Arc::clone(rejection))),
                    Settlement::Retry { .. } | Settlement::Release => None,
                };
                waiting |= state.forget(&settle.ticket, fate);
            }
        }
        if waiting {
            self.bring_back(hub);
        }
    }
}

impl State {
    /// Whether this says that a first is done, and nothing else was known of it.
    fn is_success(&mut self, settle: &Settle) -> bool {
        settle.settlement == Settlement::Ack
            && self
                .flight(&settle.ticket)
                .is_some_and(|flight| flight.first == Some(settle.ticket) && flight.fate.is_none())
    }
}
