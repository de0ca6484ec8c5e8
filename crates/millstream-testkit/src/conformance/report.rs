//! What a run of the suite came to: [`Report`].

use std::fmt;

use millstream_core::rt::Duration;

use super::cases::Case;
use super::features::Feature;
use super::scale::Scale;

/// What every case came to for one subject. It prints as a row per case.
#[derive(Clone, Debug)]
pub struct Report {
    /// The subject's name.
    pub subject: String,
    /// At which scale it ran.
    pub scale: Scale,
    /// The cases, in the suite's order.
    pub rows: Vec<Row>,
}

/// What one case came to.
#[derive(Clone, Debug)]
pub struct Row {
    /// The case.
    pub case: &'static Case,
    /// What it came to.
    pub verdict: Verdict,
    /// How long it took.
    pub took: Duration,
}

/// What one case came to, in one word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The promise was kept.
    Passed,
    /// The subject does not declare what the case needs, and the case was not run.
    NotDeclared(Feature),
    /// The promise was broken; this says how.
    Failed(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("passed"),
            Self::NotDeclared(feature) => write!(f, "not declared: {}", feature.as_str()),
            Self::Failed(_) => f.write_str("FAILED"),
        }
    }
}

impl Report {
    /// Cases that passed.
    pub fn passed(&self) -> usize {
        self.count(|verdict| *verdict == Verdict::Passed)
    }

    /// Cases that were run, because the subject declares what they need.
    pub fn declared(&self) -> usize {
        self.count(|verdict| !matches!(verdict, Verdict::NotDeclared(_)))
    }

    /// Whether every case that was run has passed, and any was run.
    pub fn is_conformant(&self) -> bool {
        self.declared() > 0 && self.passed() == self.declared()
    }

    /// What the case of this name came to.
    pub fn verdict(&self, case: &str) -> Option<&Verdict> {
        self.rows
            .iter()
            .find(|row| row.case.name == case)
            .map(|row| &row.verdict)
    }

    fn count(&self, which: impl Fn(&Verdict) -> bool) -> usize {
        self.rows.iter().filter(|row| which(&row.verdict)).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "conformance of {}, {:?} scale", self.subject, self.scale)?;
        for Row { case, verdict, took } in &self.rows {
            let (name, from, guards) = (case.name, case.from, case.guards);
            writeln!(
                f,
                "{:>8.3} s  {name:<36} {from:<22} {guards:<4} {verdict}",
                took.as_secs_f64()
            )?;
            if let Verdict::Failed(how) = verdict {
                writeln!(f, "            {}", case.claim)?;
                writeln!(f, "            {how}")?;
            }
        }
        write!(
            f,
            "{} of {} declared cases passed",
            self.passed(),
            self.declared()
        )
    }
}
