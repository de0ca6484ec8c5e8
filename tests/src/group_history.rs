//! What has happened to the messages of a topic that a group of processes shares, held against what may:
//! [`GroupHistory`].

use std::collections::BTreeMap;
use std::time::Duration;

use crate::Work;
use crate::ledger::{EVERY, Event, Record};

/// What has happened, record by record. It panics with the promise that a record breaks.
///
/// The messages of a key begin in source order until each is completed, and no process ever runs two of them at once.
/// Nothing runs again but what a blow kept from being committed: what its process had unsettled, and what it had
/// settled since its last commit.
///
/// A process that its group may have given up, and that need not know it yet, may run what others run too. So long it
/// is not held to what is committed, and not to being the only one.
#[derive(Debug)]
pub struct GroupHistory {
    work: Work,
    /// A commit is due after this.
    interval: Duration,
    /// For so long the group waits for a process that it does not hear.
    session: Duration,
    records: usize,
    completed: u32,
    ended: u32,
    messages: Vec<Past>,
    keys: BTreeMap<u32, Key>,
    begins: Vec<Begin>,
    blows: Vec<Blow>,
    looks: Vec<(usize, u32)>,
}

/// What was done to a process, or to the broker of every process.
#[derive(Clone, Copy, Debug)]
pub struct Blow {
    /// The process; [`EVERY`] for all.
    pub actor: u32,
    /// Whether it ended the process.
    pub deadly: bool,
    /// Messages that ran again for it.
    pub repeats: u32,
    /// Of which it had cut short the run; the others were settled and not committed.
    pub cut_short: u32,
    began: Duration,
    mended: Option<Duration>,
}

/// One message's past.
#[derive(Clone, Copy, Debug, Default)]
struct Past {
    /// When a run of it ended first, in records.
    completed: Option<usize>,
    /// The process that began with it last, when anything was heard of that, and whether it came to its end.
    last: Option<(u32, Duration, bool)>,
}

/// One key's messages in source order, how many from the first on are completed, and who runs one.
#[derive(Debug, Default)]
struct Key {
    messages: Vec<u32>,
    completed: usize,
    running: Vec<Run>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    actor: u32,
    number: u32,
}

#[derive(Clone, Copy, Debug)]
struct Begin {
    run: Run,
    record: usize,
    unaware: bool,
}

/// Where each message is: its partition, counted from zero, and its offset there.
type Positions = [(usize, u64)];

impl GroupHistory {
    /// Nothing has happened yet to so many messages.
    #[must_use]
    pub fn new(work: Work, messages: u32, interval: Duration, session: Duration) -> Self {
        let mut keys: BTreeMap<u32, Key> = BTreeMap::new();
        for number in 0..messages {
            keys.entry(work.key(number)).or_default().messages.push(number);
        }
        Self {
            work,
            interval,
            session,
            records: 0,
            completed: 0,
            ended: 0,
            messages: vec![Past::default(); messages as usize],
            keys,
            begins: Vec::new(),
            blows: Vec::new(),
            looks: Vec::new(),
        }
    }

    /// Takes note of what happened next, so long after the beginning.
    ///
    /// # Panics
    /// If it must not happen.
    pub fn add(&mut self, record: Record, at: Duration) {
        self.records += 1;
        let Record {
            event, actor, number, ..
        } = record;
        let run = Run { actor, number };
        match event {
            Event::Begin => self.begin(run, at),
            Event::End => self.end(run, at),
            Event::Cancelled => {
                self.leave(run);
                self.heard(run, at, false);
            }
            Event::Killing | Event::Breaking | Event::Frozen => self.blows.push(Blow {
                actor,
                deadly: event == Event::Killing,
                repeats: 0,
                cut_short: 0,
                began: at,
                mended: None,
            }),
            Event::Dead => {
                for key in self.keys.values_mut() {
                    key.running.retain(|run| run.actor != actor);
                }
                self.mend(actor, at);
            }
            Event::Mended => self.mend(actor, at),
            Event::Looked => self.looks.push((self.records, number)),
            Event::GivenUp | Event::Down | Event::Letter => {}
        }
    }

    /// Messages of which a run has ended.
    #[must_use]
    pub fn completed(&self) -> u32 {
        self.completed
    }

    /// Runs that have begun, and how many have ended.
    #[must_use]
    pub fn runs(&self) -> (usize, u32) {
        (self.begins.len(), self.ended)
    }

    /// Runs that began in a process that need not know yet what its group had given to others.
    #[must_use]
    pub fn begun_unaware(&self) -> usize {
        self.begins.iter().filter(|begin| begin.unaware).count()
    }

    /// What was done, and what ran again for it.
    #[must_use]
    pub fn blows(&self) -> &[Blow] {
        &self.blows
    }

    /// Holds what was committed, look by look, against what had completed and what ran again.
    ///
    /// # Panics
    /// If a committed offset was beyond a message that had not completed, or such a message ran again.
    #[allow(clippy::indexing_slicing, reason = "a test fails by panicking")]
    pub fn hold_against(&self, looks: &[Vec<u64>], positions: &Positions) {
        let partitions = looks.first().map_or(0, Vec::len);
        let mut logs: Vec<Vec<(u64, u32)>> = vec![Vec::new(); partitions];
        for (number, (partition, offset)) in (0..).zip(positions) {
            logs[*partition].push((*offset, number));
        }
        for (partition, log) in logs.iter_mut().enumerate() {
            log.sort_unstable();
            let mut rest = log.iter().peekable();
            for (record, look) in &self.looks {
                let committed = looks[*look as usize][partition];
                while let Some((offset, number)) = rest.next_if(|(offset, _)| *offset < committed) {
                    assert!(
                        self.messages[*number as usize]
                            .completed
                            .is_some_and(|completed| completed < *record),
                        "P7: {committed} was committed of partition {partition}, and message {number} at {offset} \
                         had not completed"
                    );
                }
            }
        }
        let mut known = vec![0; partitions];
        let mut coming = self.looks.iter().peekable();
        for begin in &self.begins {
            while let Some((_, look)) = coming.next_if(|(record, _)| *record < begin.record) {
                known.clone_from(&looks[*look as usize]);
            }
            let (partition, offset) = positions[begin.run.number as usize];
            assert!(
                begin.unaware || offset >= known[partition],
                "P1: {:?} runs again at {offset} of partition {partition}, of which {} was committed",
                begin.run,
                known[partition]
            );
        }
    }

    fn mend(&mut self, actor: u32, at: Duration) {
        let broken = self
            .blows
            .iter_mut()
            .rfind(|blow| blow.actor == actor && blow.mended.is_none());
        broken.expect("what is mended was broken").mended = Some(at);
    }

    /// The last blow for which a process may do what its group has given to others meanwhile: one that lasted for most
    /// of a session, and is not long over.
    fn unaware(&self, actor: u32, at: Duration) -> Option<usize> {
        let most = self.session * 2 / 3;
        self.blows.iter().rposition(|blow| {
            blow.hits(actor)
                && !blow.deadly
                && blow.began + most <= at
                && blow
                    .mended
                    .is_none_or(|mended| mended >= blow.began + most && at <= mended + most)
        })
    }

    fn key(&mut self, number: u32) -> (u32, &mut Key) {
        let name = self.work.key(number);
        (name, self.keys.get_mut(&name).expect("every key is known"))
    }

    fn past(&mut self, number: u32) -> &mut Past {
        self.messages
            .get_mut(number as usize)
            .expect("every message is known")
    }

    fn heard(&mut self, run: Run, at: Duration, ended: bool) {
        let past = self.past(run.number);
        if past.last.is_some_and(|(actor, _, _)| actor == run.actor) {
            past.last = Some((run.actor, at, ended));
        }
    }

    fn begin(&mut self, run: Run, at: Duration) {
        let (name, key) = self.key(run.number);
        let place = key
            .messages
            .binary_search(&run.number)
            .expect("every message is known");
        let (next, in_turn) = (key.messages.get(key.completed).copied(), place <= key.completed);
        let others = key.running.clone();
        key.running.push(run);
        assert!(
            in_turn,
            "P3: {run:?} began before {next:?} of the same key {name}"
        );
        let unaware = self.unaware(run.actor, at).is_some();
        for other in others {
            assert!(
                other.actor != run.actor && (unaware || self.unaware(other.actor, at).is_some()),
                "P3: {run:?} began while {other:?} of the same key {name} ran"
            );
        }
        self.begins.push(Begin {
            run,
            record: self.records,
            unaware,
        });
        if let Some((last, heard, ended)) = self.past(run.number).last.replace((run.actor, at, false)) {
            let Some(cause) = self.cause(run.actor, last, heard, at) else {
                panic!(
                    "P1: {run:?} at {at:?} repeats what process {last} had at {heard:?} (to its end: {ended}), and \
                     nothing kept that from being committed; last was done {:?}",
                    self.blows.iter().rfind(|blow| blow.hits(last))
                )
            };
            if let Some(blow) = self.blows.get_mut(cause) {
                blow.repeats += 1;
                blow.cut_short += u32::from(!ended);
            }
        }
    }

    /// The blow for which a process runs again what another had, and was last heard of then: the last that can have
    /// kept that from being committed, or may have had a rebalance wait for which nothing could be.
    fn cause(&self, actor: u32, last: u32, heard: Duration, at: Duration) -> Option<usize> {
        let grace = self.session * 5 / 3;
        let kept_back = self.blows.iter().rposition(|blow| {
            blow.hits(last)
                && blow.began <= heard + self.interval + grace
                && blow.mended.is_none_or(|mended| mended + grace >= heard)
        });
        kept_back.or_else(|| self.unaware(actor, at))
    }

    fn leave(&mut self, run: Run) {
        let (name, key) = self.key(run.number);
        let running = key.running.iter().position(|other| *other == run);
        let running =
            running.unwrap_or_else(|| panic!("P3: a run of key {name} ended that had not begun: {run:?}"));
        key.running.swap_remove(running);
    }

    fn end(&mut self, run: Run, at: Duration) {
        self.ended += 1;
        self.leave(run);
        self.heard(run, at, true);
        let record = self.records;
        let completed = &mut self.past(run.number).completed;
        if completed.is_none() {
            *completed = Some(record);
            // That it was the next of its key was seen when it began.
            self.key(run.number).1.completed += 1;
            self.completed += 1;
        }
    }
}

impl Blow {
    fn hits(&self, actor: u32) -> bool {
        self.actor == actor || self.actor == EVERY
    }
}
