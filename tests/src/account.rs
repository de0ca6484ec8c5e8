//! What has become of messages, held against their fates: [`Account`].

use std::collections::BTreeMap;

use millstream_core::Reason;

use crate::ledger::{EVERY, Event, Record};
use crate::{ATTEMPTS, Fate, Report};

/// How often what came again after a fault may run while the breaker opens for it and closes.
const RELAPSE: u32 = 4;

/// What has become of each message, record by record. It panics with the promise that a record breaks.
///
/// A message's *life* is the time from a delivery until it is settled or lost. Only a fault gives it another one: its
/// process was killed, or the broker was restarted. Within a life its attempts are counted without a gap and end where
/// its fate says; what is away for a while, so that the breaker opens, may cost it attempts and runs.
#[derive(Debug)]
pub struct Account {
    seed: u64,
    in_flight: u32,
    pasts: Vec<Past>,
    faults: Vec<Fault>,
    /// The first fault that may still befall what begins, and how many runs it may so at most once it is over.
    open: Option<(usize, Option<u32>)>,
    /// For each process, the run up to which the breaker may be open, or have been since the outage.
    outages: BTreeMap<u32, u32>,
    /// The run up to which it may for what came again after a fault: most of that is what fails, as it stays longest.
    relapse: u32,
    runs: u32,
    begun: u32,
    ended: u32,
    down: u32,
    letters: u32,
}

/// One message's past.
#[derive(Clone, Copy, Debug, Default)]
struct Past {
    lives: u8,
    ends: u8,
    letters: u8,
    runs: u16,
    /// The attempt that began last, or that ended it.
    attempt: u8,
    /// Whether its life has ended, and how.
    over: Option<Event>,
    /// Something that it needs was away meanwhile.
    in_outage: bool,
    /// The process that it is in.
    actor: u32,
    /// The first fault that may end its life.
    since: u32,
    /// Its last run, among all.
    run: u32,
}

/// A process that was killed, or a broker that was restarted.
#[derive(Clone, Copy, Debug)]
struct Fault {
    actor: u32,
    /// Messages that had begun and were not settled, or began while the fault lasted.
    unsettled: u32,
    /// Messages that have another life for it.
    repeats: u32,
}

impl Account {
    /// Nothing has become of any yet. Of so many a process has hold at most.
    #[must_use]
    pub fn new(seed: u64, messages: u32, in_flight: u32) -> Self {
        Self {
            seed,
            in_flight,
            pasts: vec![Past::default(); messages as usize],
            faults: Vec::new(),
            open: None,
            outages: BTreeMap::new(),
            relapse: 0,
            runs: 0,
            begun: 0,
            ended: 0,
            down: 0,
            letters: 0,
        }
    }

    /// Takes note of what happened next. The number of a fault is how many messages the store had left to be settled,
    /// counted while the process stood still.
    ///
    /// # Panics
    /// If it must not happen.
    pub fn add(&mut self, record: Record) {
        let Record {
            event, actor, number, ..
        } = record;
        match event {
            Event::Begin => self.begin(&record),
            Event::End | Event::GivenUp => self.end(&record),
            Event::Down => {
                self.down += 1;
                self.outages.insert(actor, self.runs + self.in_flight);
                self.past(number).in_outage = true;
            }
            Event::Letter => self.letter(&record),
            Event::Killing | Event::Breaking => {
                let messages = u32::try_from(self.pasts.len()).unwrap_or(u32::MAX);
                let unsettled = (self.begun + number).checked_sub(messages);
                let unsettled = unsettled.unwrap_or_else(|| {
                    panic!(
                        "P1: {number} of {messages} are left, and only {} have begun",
                        self.begun
                    )
                });
                if event == Event::Breaking {
                    let (first, _) = self.open.unwrap_or((self.faults.len(), None));
                    self.open = Some((first, None));
                }
                self.faults.push(Fault {
                    actor,
                    unsettled,
                    repeats: 0,
                });
            }
            Event::Mended => {
                // It may take a process a while to notice.
                self.open = self.open.map(|(first, _)| (first, Some(self.in_flight)));
                self.relapse = self.runs + RELAPSE * self.in_flight;
            }
            Event::Dead => self.relapse = self.runs + RELAPSE * self.in_flight,
            Event::Cancelled | Event::Looked | Event::Frozen => panic!("nobody writes {record:?}"),
        }
    }

    /// Messages that have ended, each where its fate says.
    #[must_use]
    pub fn ended(&self) -> u32 {
        self.ended
    }

    /// Some of the messages that have not, each with its fate and its past: for who waits in vain.
    #[must_use]
    pub fn laggards(&self) -> Vec<String> {
        let open = (0..).zip(&self.pasts).filter(|(_, past)| past.ends == 0);
        open.take(20)
            .map(|(number, past)| format!("{number}: {:?} {past:?}", Fate::of(self.seed, number)))
            .collect()
    }

    /// Dead letters that were found.
    #[must_use]
    pub fn letters(&self) -> u32 {
        self.letters
    }

    fn past(&mut self, number: u32) -> &mut Past {
        let past = self.pasts.get_mut(number as usize);
        past.expect("every message is known")
    }

    /// The run up to which this process' breaker may be open, or have been.
    fn outage(&self, actor: u32) -> u32 {
        let own = self.outages.get(&actor).copied().unwrap_or_default();
        own.max(self.relapse)
    }

    /// The first fault that may befall what begins now.
    fn since(&self) -> u32 {
        let first = self.open.map_or(self.faults.len(), |(first, _)| first);
        u32::try_from(first).expect("a few faults")
    }

    fn begin(&mut self, record: &Record) {
        let Record {
            actor,
            number,
            attempt,
            ..
        } = *record;
        self.runs += 1;
        if let Some((first, left)) = &mut self.open {
            for fault in self.faults.iter_mut().skip(*first) {
                fault.unsettled += 1;
            }
            let over = left.as_mut().is_some_and(|left| {
                *left = left.saturating_sub(1);
                *left == 0
            });
            if over {
                self.open = None;
            }
        }
        let (runs, since) = (self.runs, self.since());
        let outage = self.outage(actor);
        let past = *self.past(number);
        let in_outage = past.run <= outage && past.lives > 0 || runs <= outage;
        let uncounted = in_outage && attempt == u32::from(past.attempt);
        let goes_on = past.actor == actor
            && match past.over {
                None => attempt == u32::from(past.attempt) + 1 || uncounted,
                // While most of the latest runs failed, as when little is left but what fails, a last attempt may not count.
                Some(over) => {
                    over == Event::GivenUp
                        && (uncounted || attempt == ATTEMPTS && attempt == u32::from(past.attempt))
                }
            };
        let fault = (attempt == 1).then(|| self.fault_of(&past)).flatten();
        let next = match (past.lives, fault) {
            (0, _) => {
                self.begun += 1;
                Past {
                    lives: 1,
                    ..Past::default()
                }
            }
            (lives, Some(fault)) => {
                if let Some(fault) = self.faults.get_mut(fault) {
                    fault.repeats += 1;
                }
                Past {
                    lives: lives.saturating_add(1),
                    over: None,
                    ..past
                }
            }
            (_, None) => {
                let fate = Fate::of(self.seed, number);
                assert!(
                    goes_on,
                    "P1: {record:?} of a message that {fate:?} and had {past:?}; {} had ended, there were {} faults",
                    self.ended,
                    self.faults.len()
                );
                // The last attempt did not count, and so it was no end, and one run with this one.
                let again = past.over.is_some();
                self.ended -= u32::from(again && past.ends == 1);
                Past {
                    over: None,
                    ends: past.ends - u8::from(again),
                    runs: past.runs - u16::from(again),
                    ..past
                }
            }
        };
        let keeps = next.lives == past.lives;
        *self.past(number) = Past {
            runs: next.runs.saturating_add(1),
            attempt: u8::try_from(attempt).unwrap_or(u8::MAX),
            in_outage: past.in_outage || in_outage,
            actor,
            since: if keeps { past.since } else { since },
            run: runs,
            ..next
        };
        assert!(keeps || attempt == 1, "{record:?} is its first of this life");
    }

    /// The latest fault that may have ended this life.
    fn fault_of(&self, past: &Past) -> Option<usize> {
        let fault = self
            .faults
            .iter()
            .rposition(|fault| fault.actor == past.actor || fault.actor == EVERY)?;
        (fault >= past.since as usize).then_some(fault)
    }

    fn end(&mut self, record: &Record) {
        let fate = Fate::of(self.seed, record.number);
        let outage = self.outage(record.actor);
        let past = self.past(record.number);
        let given_up = record.event == Event::GivenUp;
        assert_eq!(
            given_up,
            fate.letter().is_some(),
            "{record:?} of a message that {fate:?}"
        );
        past.in_outage |= past.run <= outage;
        let exact = past.lives == 1 && !past.in_outage;
        assert!(
            !exact || record.attempt == fate.last_attempt(),
            "{record:?} of a message that {fate:?} and had {past:?}"
        );
        past.over = Some(record.event);
        past.ends = past.ends.saturating_add(1);
        self.ended += u32::from(past.ends == 1);
    }

    fn letter(&mut self, record: &Record) {
        let fate = Fate::of(self.seed, record.number);
        let past = self.past(record.number);
        let reason = Reason::ALL.get(record.deliveries as usize).copied();
        let Some((why, failures)) = fate.letter() else {
            panic!("{record:?} ({reason:?}) of a message that {fate:?} and had {past:?}");
        };
        let exact = why == Reason::Attempts || !past.in_outage;
        assert!(
            reason == Some(why) && (!exact || record.attempt == failures),
            "{record:?} ({reason:?}) of a message that {fate:?} and had {past:?}"
        );
        past.letters = past.letters.saturating_add(1);
        self.letters += 1;
    }

    /// Every message has ended, as often as it may; what there is to tell goes to the report.
    ///
    /// # Panics
    /// If one has not, or more was repeated than was unsettled.
    pub fn close(&self, report: &mut Report) {
        let mut fates: BTreeMap<&str, u32> = BTreeMap::new();
        let (mut touched, mut in_outage, mut surplus) = (0, 0, 0);
        for (number, past) in (0..).zip(&self.pasts) {
            let fate = Fate::of(self.seed, number);
            *fates.entry(named(fate)).or_default() += 1;
            let said = || format!("message {number}, which {fate:?}, had {past:?}");
            assert!(past.ends > 0, "P1: lost: {}", said());
            assert_eq!(past.letters > 0, fate.letter().is_some(), "P1: {}", said());
            touched += u32::from(past.lives > 1);
            in_outage += u32::from(past.in_outage);
            let exact = past.lives == 1 && !past.in_outage;
            assert!(
                !exact || (past.ends == 1 && u32::from(past.runs) == fate.runs()),
                "it ran more often than its fate says: {}",
                said()
            );
            assert!(past.in_outage || past.ends <= past.lives, "P1: {}", said());
            surplus += u32::from(past.letters.saturating_sub(past.lives));
        }
        for fault in &self.faults {
            assert!(
                fault.repeats <= fault.unsettled,
                "P1: more ran again than was unsettled: {fault:?}"
            );
        }
        let restarts = self.faults.iter().filter(|fault| fault.actor == EVERY);
        let most = restarts.map(|fault| fault.unsettled).sum::<u32>();
        assert!(
            surplus <= most,
            "P1: {surplus} letters were written twice in one life, and {most} were unsettled"
        );
        assert!(
            self.down > 0,
            "nothing was ever away, and the breaker had nothing to do"
        );
        for (fate, messages) in fates {
            report.add(&format!("messages that {fate}"), messages);
        }
        report.add("handler runs", self.runs);
        report.add("  of which failed because what they need was away", self.down);
        report.add("messages that ran meanwhile", in_outage);
        report.add("messages that a fault gave another life", touched);
        report.add("dead letters", self.letters);
        let distinct = self.pasts.iter().filter(|past| past.letters > 0).count();
        report.add("  of which repeated", self.letters as usize - distinct);
        for (what, every) in [
            ("a process was killed", false),
            ("the broker was restarted", true),
        ] {
            let these = self.faults.iter().filter(|fault| (fault.actor == EVERY) == every);
            let these: Vec<_> = these.map(|fault| (fault.unsettled, fault.repeats)).collect();
            report.add(&format!("times that {what}"), these.len());
            report.add("  unsettled and run again", format_args!("{these:?}"));
        }
        report.add("lost, ended elsewhere, counted wrongly", 0);
    }
}

/// What a report calls it.
fn named(fate: Fate) -> &'static str {
    match fate {
        Fate::Succeeds => "succeed at once",
        Fate::Fails(_) => "fail, and then succeed",
        Fate::FailsForEver => "fail for ever",
        Fate::Rejected => "are rejected",
        Fate::Panics => "panic once",
        Fate::Hangs => "hang once",
        Fate::FailsInBatch(_) => "fail in their batch, and then succeed",
        Fate::RejectedInBatch => "are rejected in their batch",
    }
}
