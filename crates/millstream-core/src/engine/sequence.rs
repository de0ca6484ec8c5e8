//! Gaps: what comes behind a message that is missing from its key's numbers is held, reported or given up.
//!
//! Intake alone asks ([`Sequence::pass`]), before the lanes, so that what is let go enters them in order. What is held
//! has its place in the limits and nothing else. A key is known from its first message on, at whatever number that
//! has; keys that have been idle for longest are forgotten.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use bytes::Bytes;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tracing::warn;

use super::envelope::Envelope;
use super::guard;
use super::hub::Hub;
use super::lanes::key_of;
use super::rare::Rare;
use crate::message::{Message, OriginId};
use crate::mutants::{Mutant, mutant};
use crate::rt::{self, Duration, Instant};
use crate::settlement::Reason;
use crate::spec::{OnGap, SequenceSpec};
use crate::ticket::Ticket;

/// Half of the keys that are remembered at most.
const HALF_OF_KEYS: usize = 50_000;

/// The numbers of each key, and what is held for one that is missing.
pub(crate) struct Sequence {
    /// What it was made with; `held` and `wait` as they are now are in the state.
    spec: SequenceSpec,
    state: Mutex<State>,
    told: Rare,
}

#[derive(Default)]
struct State {
    /// Keys without a gap, those that were used of late and those that were before.
    young: FxHashMap<Bytes, Position>,
    old: FxHashMap<Bytes, Position>,
    /// Keys that wait for a message.
    gaps: FxHashMap<Bytes, Gap>,
    /// When which gap is waited for no longer, soonest first; one that has changed meanwhile stands here for nothing.
    until: VecDeque<(Instant, Bytes)>,
    held: usize,
    /// How many may be held, and how long each gap is waited for.
    most: usize,
    wait: Duration,
    /// Counts what is held, so that equal numbers keep their order.
    arrivals: u64,
    /// No longer held, and not passed on yet.
    freed: Vec<Envelope>,
}

/// How far a key has come.
#[derive(Clone, Copy, Debug)]
struct Position {
    last: u64,
    /// Where the last one came from: another process may have had what was between two of these.
    scope: (OriginId, u32),
    /// A message is missing that was waited for in vain, and what follows is given up.
    broken: bool,
}

struct Gap {
    position: Position,
    held: BTreeMap<(u64, u64), Envelope>,
    until: Instant,
}

/// What comes of a chunk.
#[derive(Default)]
struct Passed {
    go: Vec<Envelope>,
    /// With the number that is missing before each.
    given_up: Vec<(Envelope, u64)>,
    gaps: Vec<String>,
    repeats: usize,
    held: usize,
    unnumbered: usize,
}

impl fmt::Debug for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sequence")
            .field("spec", &self.spec)
            .finish_non_exhaustive()
    }
}

fn scope_of(ticket: &Ticket) -> (OriginId, u32) {
    (ticket.origin, ticket.generation)
}

impl State {
    fn position(&mut self, key: &Bytes) -> Option<Position> {
        if let Some(position) = self.young.get(key) {
            return Some(*position);
        }
        self.old.remove(key)
    }

    fn keep(&mut self, key: Bytes, position: Position) {
        if self.young.len() >= HALF_OF_KEYS && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, position);
    }

    /// Lets go what follows without a gap. Says whether something is held yet.
    fn advance(&mut self, key: &Bytes, out: &mut Vec<Envelope>) -> bool {
        let Some(gap) = self.gaps.get_mut(key) else {
            return false;
        };
        while let Some(entry) = gap.held.first_entry() {
            let (number, _) = *entry.key();
            if number > gap.position.last.saturating_add(1) {
                return true;
            }
            gap.position.last = gap.position.last.max(number);
            out.push(entry.remove());
            self.held -= 1;
        }
        if let Some(gap) = self.gaps.remove(key) {
            self.keep(key.clone(), gap.position);
        }
        false
    }

    /// What is held for this key waits anew.
    fn wait_anew(&mut self, key: &Bytes, until: Instant) {
        if let Some(gap) = self.gaps.get_mut(key) {
            gap.until = until;
            self.until.push_back((until, key.clone()));
        }
    }
}

impl Sequence {
    pub(crate) fn new(spec: SequenceSpec) -> Self {
        let state = State {
            most: spec.held.get(),
            wait: spec.wait,
            ..State::default()
        };
        Self {
            spec,
            state: Mutex::new(state),
            told: Rare::default(),
        }
    }

    /// From now on as many are held, and gaps that are found are waited for as long, as this says. What is held already
    /// keeps its time.
    pub(crate) fn set(&self, spec: &SequenceSpec) {
        let mut state = self.state.lock();
        state.most = spec.held.get();
        state.wait = spec.wait;
    }

    /// How many messages wait for one that is missing.
    pub(crate) fn held(&self) -> usize {
        let state = self.state.lock();
        state.held + state.freed.len()
    }

    /// Takes out what is to be held or given up, and puts in what is held no longer.
    pub(crate) fn pass(&self, hub: &Hub, envelopes: &mut Vec<Envelope>) {
        let mut passed = Passed::default();
        let releases = {
            let mut state = self.state.lock();
            passed.go.append(&mut state.freed);
            for envelope in envelopes.drain(..) {
                match self.number(hub, &envelope.message) {
                    Some((key, number)) => self.step(&mut state, key, number, envelope, &mut passed),
                    None => {
                        passed.unnumbered += 1;
                        passed.go.push(envelope);
                    }
                }
            }
            // A drain gives back what is held, and must not miss what is held behind its back.
            if hub.is_draining() {
                state.take(|_| true)
            } else {
                Vec::new()
            }
        };
        hub.release(releases);
        self.carry_out(hub, passed, envelopes);
    }

    /// This one is not run, or not in its turn: what follows it is no gap.
    pub(crate) fn note(&self, hub: &Hub, envelope: &Envelope) {
        let Some((key, number)) = self.number(hub, &envelope.message) else {
            return;
        };
        let mut state = self.state.lock();
        let state = &mut *state;
        let scope = scope_of(&envelope.ticket);
        if let Some(gap) = state.gaps.get_mut(&key) {
            gap.position.last = gap.position.last.max(number);
            let mut freed = std::mem::take(&mut state.freed);
            if state.advance(&key, &mut freed) {
                state.wait_anew(&key, rt::after(state.wait));
            }
            state.freed = freed;
            return;
        }
        let last = state
            .position(&key)
            .map_or(number, |position| position.last.max(number));
        let broken = false;
        state.keep(key, Position { last, scope, broken });
    }

    /// Puts in what was waited for long enough.
    pub(crate) fn expire(&self, hub: &Hub, envelopes: &mut Vec<Envelope>) {
        let mut passed = Passed::default();
        {
            let now = rt::now();
            let mut state = self.state.lock();
            passed.go.append(&mut state.freed);
            while let Some((until, key)) = state.until.pop_front_if(|(until, _)| *until <= now) {
                if state.gaps.get(&key).is_some_and(|gap| gap.until == until) {
                    self.end_gap(&mut state, &key, &mut passed);
                }
            }
        }
        self.carry_out(hub, passed, envelopes);
    }

    /// Waits until there is something to [`expire`](Self::expire).
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn due(&self) {
        let next = {
            let mut state = self.state.lock();
            let state = &mut *state;
            while let Some((until, key)) = state.until.front()
                && state.gaps.get(key).is_none_or(|gap| gap.until != *until)
            {
                state.until.pop_front();
            }
            if !state.freed.is_empty() {
                return;
            }
            state.until.front().map(|(until, _)| *until)
        };
        match next {
            Some(until) => rt::sleep_until(until).await,
            None => std::future::pending().await,
        }
    }

    /// Takes out what is held and `leave` picks.
    pub(crate) fn remove(&self, leave: impl Fn(&Envelope) -> bool) -> Vec<Envelope> {
        self.state.lock().take(leave)
    }

    /// The key and number of a message.
    fn number(&self, hub: &Hub, message: &Message) -> Option<(Bytes, u64)> {
        let key = key_of(&hub.spec.ordering, message)?;
        let number = guard::by(&self.spec.by, message)?;
        let number = std::str::from_utf8(&number).ok()?.trim().parse().ok()?;
        // A copy: the key may share its bytes with all that was fetched with it.
        Some((Bytes::copy_from_slice(&key), number))
    }

    fn step(&self, state: &mut State, key: Bytes, number: u64, envelope: Envelope, passed: &mut Passed) {
        let scope = scope_of(&envelope.ticket);
        if let Some(gap) = state.gaps.get_mut(&key) {
            if number <= gap.position.last {
                passed.repeats += 1;
                return passed.go.push(envelope);
            }
            if number == gap.position.last + 1 {
                gap.position.last = number;
                passed.go.push(envelope);
                if state.advance(&key, &mut passed.go) {
                    state.wait_anew(&key, rt::after(state.wait));
                }
                return;
            }
            if state.held < state.most {
                return self.hold(state, &key, number, envelope, passed);
            }
            self.end_gap(state, &key, passed);
            return self.step(state, key, number, envelope, passed);
        }
        let Some(mut position) = state.position(&key) else {
            let broken = false;
            state.keep(
                key,
                Position {
                    last: number,
                    scope,
                    broken,
                },
            );
            return passed.go.push(envelope);
        };
        let expected = position.last.saturating_add(1);
        if number < expected {
            passed.repeats += 1;
        } else if number > expected && position.scope == scope {
            let waits = self.spec.on_gap != OnGap::Report && !position.broken && !mutant(Mutant::GapIgnored);
            if waits && state.held < state.most {
                state.young.remove(&key);
                let until = rt::after(state.wait);
                let held = BTreeMap::new();
                state.gaps.insert(
                    key.clone(),
                    Gap {
                        position,
                        held,
                        until,
                    },
                );
                state.until.push_back((until, key.clone()));
                return self.hold(state, &key, number, envelope, passed);
            }
            if !position.broken {
                passed.gaps.push(missing(expected, number, &envelope));
            }
            if self.spec.on_gap == OnGap::DeadLetter {
                passed.given_up.push((envelope, expected));
                position.broken = true;
                return state.keep(key, position);
            }
        }
        if number >= expected {
            position = Position {
                last: number,
                scope,
                broken: false,
            };
        }
        state.keep(key, position);
        passed.go.push(envelope);
    }

    fn hold(&self, state: &mut State, key: &Bytes, number: u64, envelope: Envelope, passed: &mut Passed) {
        state.arrivals += 1;
        let arrival = state.arrivals;
        if let Some(gap) = state.gaps.get_mut(key) {
            gap.held.insert((number, arrival), envelope);
            state.held += 1;
            passed.held += 1;
        }
    }

    /// What is missing is waited for no longer.
    fn end_gap(&self, state: &mut State, key: &Bytes, passed: &mut Passed) {
        let Some(gap) = state.gaps.get_mut(key) else {
            return;
        };
        let expected = gap.position.last.saturating_add(1);
        if let Some(((number, _), first)) = gap.held.first_key_value() {
            passed.gaps.push(missing(expected, *number, first));
            if self.spec.on_gap == OnGap::Hold {
                gap.position.last = number - 1;
            }
        }
        if self.spec.on_gap == OnGap::DeadLetter {
            gap.position.broken = true;
            let (position, held) = (gap.position, std::mem::take(&mut gap.held));
            state.gaps.remove(key);
            state.held -= held.len();
            passed
                .given_up
                .extend(held.into_values().map(|envelope| (envelope, expected)));
            return state.keep(key.clone(), position);
        }
        if state.advance(key, &mut passed.go) {
            state.wait_anew(key, rt::after(state.wait));
        }
    }

    fn carry_out(&self, hub: &Hub, passed: Passed, envelopes: &mut Vec<Envelope>) {
        let counters = &hub.counters;
        counters.sequence_gaps.add(passed.gaps.len());
        counters.sequence_repeats.add(passed.repeats);
        counters.sequence_held.add(passed.held);
        counters.unnumbered.add(passed.unnumbered);
        if let Some(gap) = passed.gaps.first()
            && let Some(unwritten) = self.told.tell()
        {
            warn!(
                pipeline = hub.name(),
                gap,
                gaps = passed.gaps.len(),
                unwritten,
                "messages are missing from a sequence"
            );
        }
        envelopes.splice(0..0, passed.go);
        let stage = "source".into();
        for (envelope, expected) in passed.given_up {
            let error = format!("the message with the number {expected} is missing before it");
            hub.give_up(envelope, &stage, Reason::Gap, error);
        }
    }
}

impl State {
    fn take(&mut self, leave: impl Fn(&Envelope) -> bool) -> Vec<Envelope> {
        let mut taken: Vec<_> = self.freed.extract_if(.., |envelope| leave(envelope)).collect();
        let before = taken.len();
        self.gaps.retain(|_, gap| {
            taken.extend(
                gap.held
                    .extract_if(.., |_, envelope| leave(envelope))
                    .map(|(_, envelope)| envelope),
            );
            !gap.held.is_empty()
        });
        self.held -= taken.len() - before;
        taken
    }
}

/// A gap for the log: numbers and positions, and no key.
fn missing(expected: u64, number: u64, envelope: &Envelope) -> String {
    let position = envelope.message.position;
    format!("{expected} was due and {number} came, at position {position}")
}

impl Hub {
    /// This message leaves its sequence in a way of its own: what follows it is no gap.
    pub(crate) fn passed(&self, envelope: &Envelope) {
        if let Some(sequence) = &self.sequence {
            sequence.note(self, envelope);
        }
    }

    /// Waits until something that a sequence holds may go on; for ever where there is none.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn sequence_due(&self) {
        match &self.sequence {
            Some(sequence) => sequence.due().await,
            None => std::future::pending().await,
        }
    }
}
