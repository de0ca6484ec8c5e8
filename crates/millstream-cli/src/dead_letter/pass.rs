//! One way through the letters that are chosen: [`Pass`].

use anyhow::{Context as _, anyhow};
use millstream_core::rt::{self, Duration, Instant};
use millstream_core::{Letter, LetterError, Letters, OpenError, SharedLetterBox, Visit};
use tokio::time::timeout;

use super::CHUNK;
use super::choice::{Choice, Chosenness};
use crate::args::Chosen;
use crate::named::counted;
use crate::progress::Progress;
use crate::screen;
use crate::signals::Signals;

/// How long a store has to end what it is at when a signal comes, so that nothing is left half done.
const GRACE: Duration = Duration::from_secs(2);

/// Goes through the letters of a box, and stops at those that are chosen. SIGINT and SIGTERM are errors of its calls,
/// each with its name; it can be closed after that.
#[derive(Debug)]
pub(super) struct Pass {
    letters: Box<dyn Letters>,
    signals: Signals,
    choice: Choice,
    /// How many were looked at, where nothing else may show for long that anything is done.
    looked: Option<(Progress, u64)>,
    /// How many more there may be.
    left: u64,
    /// Letters of other pipelines that were passed over.
    elsewhere: u64,
}

impl Pass {
    pub(super) async fn open(
        letters: &SharedLetterBox,
        visit: Visit,
        chosen: &Chosen,
    ) -> anyhow::Result<Self> {
        let mut signals = Signals::listen()?;
        let opened = tokio::select! {
            biased;
            signal = signals.end() => return Err(anyhow!(signal)),
            opened = letters.open(visit) => opened,
        };
        let letters = opened.map_err(|error| match error {
            OpenError::Refused(cause) | OpenError::Unavailable(cause) => anyhow!(cause),
        })?;
        Ok(Self {
            letters,
            signals,
            choice: Choice::new(chosen),
            looked: match visit {
                // What it finds goes to standard output meanwhile.
                Visit::Look => screen::may_show_beside_output(),
                Visit::Replay | Visit::Purge => !chosen.filter.is_empty(),
            }
            .then(|| (Progress::counting("looked at"), 0)),
            left: chosen.limit.unwrap_or(u64::MAX),
            elsewhere: 0,
        })
    }

    /// The next letters that are chosen, and at most so many; none when there are no more.
    pub(super) async fn next(&mut self, most: usize) -> anyhow::Result<Vec<Letter>> {
        while self.left > 0 {
            let most = most
                .min(usize::try_from(self.left).unwrap_or(usize::MAX))
                .min(CHUNK);
            let mut letters = self.read(most).await?;
            if let Some((progress, looked)) = &mut self.looked {
                *looked += letters.len() as u64;
                progress.advance(0, *looked);
            }
            if letters.is_empty() {
                break;
            }
            letters.retain(|letter| match self.choice.of(letter) {
                Chosenness::Yes => true,
                Chosenness::No => false,
                Chosenness::Elsewhere => {
                    self.elsewhere += 1;
                    false
                }
            });
            if !letters.is_empty() {
                self.left -= letters.len() as u64;
                return Ok(letters);
            }
        }
        Ok(Vec::new())
    }

    async fn read(&mut self, most: usize) -> anyhow::Result<Vec<Letter>> {
        let Self { letters, signals, .. } = self;
        let mut next = letters.next(most);
        let signal = tokio::select! {
            biased;
            signal = signals.end() => signal,
            letters = &mut next => return Ok(letters?),
        };
        // What it brings stays where it is.
        let _: Result<Result<_, LetterError>, _> = timeout(GRACE, next).await;
        Err(anyhow!(signal))
    }

    /// Waits until then.
    pub(super) async fn wait_until(&mut self, then: Instant) -> anyhow::Result<()> {
        tokio::select! {
            biased;
            signal = self.signals.end() => Err(anyhow!(signal)),
            () = rt::sleep_until(then) => Ok(()),
        }
    }

    /// The signals, for what else the command waits for.
    pub(super) fn signals(&mut self) -> &mut Signals {
        &mut self.signals
    }

    /// Removes letters that were given last; how many it has removed.
    pub(super) async fn remove(&mut self, handles: &[u64]) -> anyhow::Result<u64> {
        if handles.is_empty() {
            return Ok(0);
        }
        let removed = self.letters.remove(handles).await;
        removed.context("letters cannot be removed")
    }

    /// What there is to say of letters that were passed over as another pipeline's.
    pub(super) fn elsewhere(&self) -> String {
        match self.elsewhere {
            0 => String::new(),
            number => format!(
                "passed over {} of other pipelines: --filter pipeline=NAME chooses them\n",
                counted(number, "letter")
            ),
        }
    }

    /// Gives back what was not removed; how many of the removed are still there. A signal breaks it off.
    pub(super) async fn close(mut self) -> anyhow::Result<u64> {
        tokio::select! {
            biased;
            signal = self.signals.end() => Err(anyhow!("{signal}: what was looked at comes back later")),
            closed = self.letters.close() => Ok(closed?),
        }
    }
}
