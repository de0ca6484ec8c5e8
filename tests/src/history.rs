//! What has happened to numbered messages, held against what may: [`History`].

use std::collections::BTreeMap;

use crate::Work;
use crate::ledger::{Event, NOT_MEASURED, Record};

/// What has happened, record by record. It panics with the promise that a record breaks.
///
/// Nothing runs again but what a process had when it was killed or when its connection broke, and that once for
/// each such fault; the messages of a key begin in source order until each is completed, and no two of them ever
/// run at the same time, of whatever process and connection.
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
}

/// A process that was killed, or whose connection broke.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// The process.
    pub actor: u32,
    /// Whether it ended the process.
    pub deadly: bool,
    /// Messages that it had and that were not settled, if that was measured.
    pub unsettled: Option<u32>,
    /// Messages that it had begun with and that ran again afterwards.
    pub repeats: u32,
}

/// One message's past.
#[derive(Clone, Copy, Debug, Default)]
struct Past {
    completed: bool,
    /// The process that began with it last.
    last: Option<u32>,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
            keys.entry(work.key(number)).or_default().messages.push(number);
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
        }
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
            Event::Cancelled => self.cancelled(Run { actor, number }),
            Event::Killing | Event::Breaking => self.faults.push(Fault {
                actor,
                deadly: event == Event::Killing,
                unsettled: (number != NOT_MEASURED).then_some(number),
                repeats: 0,
            }),
            Event::Dead | Event::Mended | Event::Looked => {}
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
                fault.repeats <= most,
                "P1: more ran again than was unsettled: {fault:?}"
            );
        }
        &self.faults
    }

    fn key(&mut self, number: u32) -> (u32, &mut Key) {
        let name = self.work.key(number);
        (name, self.keys.get_mut(&name).expect("every key is known"))
    }

    fn begin(&mut self, run: Run) {
        self.begun += 1;
        let (name, key) = self.key(run.number);
        let other = key.running.replace(run);
        let place = key
            .messages
            .binary_search(&run.number)
            .expect("every message is known");
        let next = key.messages.get(key.completed).copied();
        let in_turn = place <= key.completed;
        let passed = key.last.replace(run.actor).is_some_and(|last| last != run.actor);
        if let Some(other) = other {
            assert!(
                other.actor != run.actor
                    && self
                        .faults
                        .iter()
                        .any(|fault| fault.deadly && fault.actor == other.actor),
                "P3: {run:?} began while {other:?} of the same key {name} ran"
            );
        }
        assert!(
            in_turn,
            "P3: {run:?} began before {next:?} of the same key {name}; the last fault was {:?}",
            self.faults.last()
        );
        self.passed_on += u32::from(passed);
        let past = self
            .messages
            .get_mut(run.number as usize)
            .expect("every message is known");
        if let Some(last) = past.last.replace(run.actor) {
            let fault = self.faults.iter().rposition(|fault| fault.actor == last);
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
        let (name, key) = self.key(run.number);
        let running = key.running.take();
        assert_eq!(
            running,
            Some(run),
            "P3: a run of key {name} ended while another of it ran"
        );
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

    fn cancelled(&mut self, run: Run) {
        let (name, key) = self.key(run.number);
        let running = key.running.take();
        assert_eq!(
            running,
            Some(run),
            "P3: a run of key {name} was cancelled while another of it ran"
        );
    }
}
