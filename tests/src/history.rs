//! What has happened to numbered messages, held against what may: [`History`].

use std::collections::{BTreeMap, BTreeSet};

use crate::Work;
use crate::ledger::{Event, NOT_MEASURED, Record};

/// What has happened, record by record. It panics with the promise that a record breaks.
///
/// Nothing runs again but what a process had when it was killed or when its connection broke, and that once for
/// each such fault; the messages of a key begin in source order until each is completed, and no two of them ever
/// run at the same time, of whatever process and connection. Without keys, each message is a key of its own.
///
/// A process that stood still for longer than its leases last does not know that when it goes on. What it has in hand
/// may run beside what others run, also of the same key, but not before what precedes it: as many runs as it may have
/// in flight, which are counted as [`strays`](Fault::strays).
#[derive(Debug)]
pub struct History {
    work: Work,
    completed: u32,
    begun: u32,
    ended: u32,
    passed_on: u32,
    messages: Vec<Past>,
    keys: BTreeMap<u32, Key>,
    faults: Vec<Fault>,
    /// How many messages a process has in hand at most when it goes on after its leases have expired.
    in_hand: u32,
    /// Runs that each such process has begun since it went on, until they are that many.
    unaware: BTreeMap<u32, u32>,
    /// Runs that hold nothing up: their leases are gone.
    void: BTreeSet<Run>,
}

/// A process that was killed, that stood still, or whose connection broke.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// The process.
    pub actor: u32,
    /// What was done to it.
    pub harm: Harm,
    /// Messages that it had and that were not settled, if that was measured.
    pub unsettled: Option<u32>,
    /// Messages that it had begun with and that ran again afterwards.
    pub repeats: u32,
    /// Messages that it ran itself, once it went on, though others had run them or did.
    pub strays: u32,
}

/// What was done to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// It was killed.
    Killed,
    /// It was cut off from its broker.
    CutOff,
    /// It stood still for longer than its leases last.
    Frozen,
}

/// One message's past.
#[derive(Clone, Copy, Debug, Default)]
struct Past {
    completed: bool,
    /// The process that began with it last.
    last: Option<u32>,
    /// How many faults there had been by then.
    after: usize,
    /// The fault for which it ran again last.
    repeated_for: Option<usize>,
}

/// One key's messages in source order, and how many from the first on are completed.
#[derive(Debug, Default)]
struct Key {
    messages: Vec<u32>,
    completed: usize,
    running: Option<Run>,
    last: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Run {
    actor: u32,
    number: u32,
}

impl History {
    /// Nothing has happened yet to so many messages.
    #[must_use]
    pub fn new(work: Work, messages: u32) -> Self {
        let mut keys: BTreeMap<u32, Key> = BTreeMap::new();
        for number in 0..messages {
            keys.entry(key_of(&work, number))
                .or_default()
                .messages
                .push(number);
        }
        Self {
            work,
            completed: 0,
            begun: 0,
            ended: 0,
            passed_on: 0,
            messages: vec![Past::default(); messages as usize],
            keys,
            faults: Vec::new(),
            in_hand: 0,
            unaware: BTreeMap::new(),
            void: BTreeSet::new(),
        }
    }

    /// A process whose leases expire while it stands still has at most so many messages in hand.
    #[must_use]
    pub fn in_hand(mut self, messages: u32) -> Self {
        self.in_hand = messages;
        self
    }

    /// Takes note of what happened next.
    ///
    /// # Panics
    /// If it must not happen.
    pub fn add(&mut self, record: Record) {
        let Record {
            event, actor, number, ..
        } = record;
        match event {
            Event::Begin => self.begin(Run { actor, number }),
            Event::End => self.end(Run { actor, number }),
            Event::Cancelled => self.leave(Run { actor, number }),
            Event::Killing => self.harm(actor, Harm::Killed, number),
            Event::Breaking => self.harm(actor, Harm::CutOff, number),
            Event::Frozen => {
                let running = self.keys.values().filter_map(|key| key.running);
                self.void.extend(running.filter(|run| run.actor == actor));
                self.harm(actor, Harm::Frozen, number);
            }
            Event::Mended => {
                let last = self.faults.iter().rev().find(|fault| fault.actor == actor);
                if last.is_some_and(|fault| fault.harm == Harm::Frozen) {
                    self.unaware.insert(actor, 0);
                }
            }
            Event::Dead | Event::Looked | Event::GivenUp | Event::Down | Event::Letter => {}
        }
    }

    /// Messages of which a run has ended.
    #[must_use]
    pub fn completed(&self) -> u32 {
        self.completed
    }

    /// Runs that have begun.
    #[must_use]
    pub fn begun(&self) -> u32 {
        self.begun
    }

    /// Runs that have ended.
    #[must_use]
    pub fn ended(&self) -> u32 {
        self.ended
    }

    /// How often a key's runs went from one process to another.
    #[must_use]
    pub fn passed_on(&self) -> u32 {
        self.passed_on
    }

    /// How many messages the key with the most has.
    #[must_use]
    pub fn hottest(&self) -> usize {
        self.keys
            .values()
            .map(|key| key.messages.len())
            .max()
            .unwrap_or_default()
    }

    /// The faults, each with no more repeats than the process had messages unsettled.
    ///
    /// # Panics
    /// If one has more, or a process had more than may be in flight.
    #[must_use]
    pub fn faults(&self, in_flight: u32) -> &[Fault] {
        for fault in &self.faults {
            let most = fault.unsettled.unwrap_or(in_flight);
            assert!(
                most <= in_flight,
                "P4: {fault:?} with at most {in_flight} in flight"
            );
            assert!(
                fault.repeats <= most && fault.strays <= most,
                "P1: more ran again than was unsettled: {fault:?}"
            );
        }
        &self.faults
    }

    fn harm(&mut self, actor: u32, harm: Harm, number: u32) {
        self.faults.push(Fault {
            actor,
            harm,
            unsettled: (number != NOT_MEASURED).then_some(number),
            repeats: 0,
            strays: 0,
        });
    }

    /// Whether the process may not know yet that its leases are gone; it is another run of its.
    fn is_unaware(&mut self, actor: u32) -> bool {
        let Some(begun) = self.unaware.get_mut(&actor) else {
            return false;
        };
        *begun += 1;
        let may_be = *begun <= self.in_hand;
        if !may_be {
            self.unaware.remove(&actor);
        }
        may_be
    }

    fn key(&mut self, number: u32) -> (u32, &mut Key) {
        let name = key_of(&self.work, number);
        (name, self.keys.get_mut(&name).expect("every key is known"))
    }

    fn begin(&mut self, run: Run) {
        self.begun += 1;
        let unaware = self.is_unaware(run.actor);
        let repeats = self
            .messages
            .get(run.number as usize)
            .is_some_and(|past| past.last.is_some());
        let (name, key) = self.key(run.number);
        let place = key
            .messages
            .binary_search(&run.number)
            .expect("every message is known");
        let next = key.messages.get(key.completed).copied();
        assert!(
            place <= key.completed,
            "P3: {run:?} began before {next:?} of the same key {name}; the last fault was {:?}",
            self.faults.last()
        );
        if unaware {
            let beside = key.running.is_some_and(|other| other.actor != run.actor);
            self.void.insert(run);
            if repeats || beside {
                let mut faults = self.faults.iter_mut().rev();
                let its = faults.find(|fault| fault.actor == run.actor && fault.harm == Harm::Frozen);
                its.expect("it stood still").strays += 1;
                return;
            }
        }
        let (_, key) = self.key(run.number);
        let other = key.running.replace(run);
        let passed = key.last.replace(run.actor).is_some_and(|last| last != run.actor);
        if let Some(other) = other {
            let is_dead = |fault: &Fault| fault.harm == Harm::Killed && fault.actor == other.actor;
            assert!(
                other.actor != run.actor && (self.void.contains(&other) || self.faults.iter().any(is_dead)),
                "P3: {run:?} began while {other:?} of the same key {name} ran; the last fault was {:?}",
                self.faults.last()
            );
        }
        self.passed_on += u32::from(passed);
        let past = self
            .messages
            .get_mut(run.number as usize)
            .expect("every message is known");
        let after = std::mem::replace(&mut past.after, self.faults.len());
        if let Some(last) = past.last.replace(run.actor) {
            // The first that befell it while it ran; or the last, as some last for a while.
            let befell = |fault: &Fault| fault.actor == last;
            let first = self.faults.iter().skip(after).position(befell);
            let fault = first
                .map(|first| after + first)
                .or_else(|| self.faults.iter().rposition(befell));
            let fault = fault.unwrap_or_else(|| {
                panic!("P1: {run:?} repeats what process {last} has, and nothing happened to that")
            });
            let before = past.repeated_for.replace(fault);
            assert_ne!(
                before,
                Some(fault),
                "P1: {run:?} runs again twice after one fault"
            );
            if let Some(fault) = self.faults.get_mut(fault) {
                fault.repeats += 1;
            }
        }
    }

    fn end(&mut self, run: Run) {
        self.ended += 1;
        self.leave(run);
        let past = self
            .messages
            .get_mut(run.number as usize)
            .expect("every message is known");
        if !std::mem::replace(&mut past.completed, true) {
            // That it was the next of its key was seen when it began.
            self.key(run.number).1.completed += 1;
            self.completed += 1;
        }
    }

    /// The run is over, one way or the other.
    fn leave(&mut self, run: Run) {
        let void = self.void.remove(&run);
        let (name, key) = self.key(run.number);
        if key.running == Some(run) {
            key.running = None;
        } else {
            let other = key.running;
            assert!(
                void,
                "P3: {run:?} of key {name} was over while {other:?} of it ran"
            );
        }
    }
}

fn key_of(work: &Work, number: u32) -> u32 {
    if work.keys == 0 { number } else { work.key(number) }
}
