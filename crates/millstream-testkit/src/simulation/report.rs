//! What runs came to: [`Report`].

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::time::Duration;

use super::run::Outcome;
use super::world::Violation;

/// What the runs of many seeds came to.
#[derive(Debug, Default)]
pub struct Report {
    /// Seeds that were run.
    pub seeds: u64,
    /// Messages that were published.
    pub messages: u64,
    /// Runs that differ from all others in what happened, or in which order or when.
    pub interleavings: usize,
    /// In how many runs each kind of fault struck.
    pub faults: BTreeMap<&'static str, u64>,
    /// The first promise that was found broken.
    pub broken: Option<Broken>,
    /// What was found broken by each seed: one, unless runs [keep going](super::Simulation::keep_going).
    pub violations: BTreeMap<u64, Violation>,
    /// How long all of it took.
    pub took: Duration,
    pub(super) fingerprints: HashSet<u64>,
}

/// A broken promise, and how to see it broken again.
#[derive(Debug)]
pub struct Broken {
    /// The seed: the same seed goes the same way.
    pub seed: u64,
    /// Which promise, and how.
    pub violation: Violation,
    /// What happened until then.
    pub log: Vec<String>,
}

impl Report {
    pub(super) fn add(&mut self, seed: u64, outcome: Outcome) {
        self.seeds += 1;
        self.messages += outcome.messages as u64;
        self.fingerprints.insert(outcome.fingerprint);
        self.interleavings = self.fingerprints.len();
        for fault in outcome.met {
            *self.faults.entry(fault).or_default() += 1;
        }
        let Some(violation) = outcome.violation else {
            return;
        };
        self.violations.insert(seed, violation.clone());
        if self.broken.as_ref().is_none_or(|broken| seed < broken.seed) {
            self.broken = Some(Broken {
                seed,
                violation,
                log: outcome.log,
            });
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.seeds as f64 / self.took.as_secs_f64().max(1e-9);
        writeln!(
            f,
            "{} seeds, {} messages, {} interleavings, in {:.1} s: {rate:.0} seeds a second",
            self.seeds,
            self.messages,
            self.interleavings,
            self.took.as_secs_f64()
        )?;
        for (fault, seeds) in &self.faults {
            let share = 100.0 * *seeds as f64 / self.seeds.max(1) as f64;
            writeln!(f, "{share:>6.1} % {fault}")?;
        }
        for (seed, violation) in &self.violations {
            writeln!(f, "seed {seed}: {violation}")?;
        }
        match &self.broken {
            Some(broken) => write!(f, "{broken}"),
            None => Ok(()),
        }
    }
}

/// Lines of the log that are shown of a broken promise.
const SHOWN: usize = 60;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.log.len().saturating_sub(SHOWN);
        if first > 0 {
            writeln!(f, "… {first} lines before these")?;
        }
        for line in self.log.iter().skip(first) {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "{}", self.violation)?;
        write!(
            f,
            "seed {0}; again, with its whole log: MILLSTREAM_SEED={0}",
            self.seed
        )
    }
}
