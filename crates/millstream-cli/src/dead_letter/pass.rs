//! One way through the letters that are chosen: [`Pass`].

use anyhow::{Context as _, anyhow};
use millstream_core::{Letter, Letters, OpenError, SharedLetterBox, Visit};

use super::CHUNK;
use super::choice::{Choice, Chosenness};
use crate::args::Chosen;
use crate::named::counted;

/// Goes through the letters of a box, and stops at those that are chosen.
#[derive(Debug)]
pub(super) struct Pass {
    letters: Box<dyn Letters>,
    choice: Choice,
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
        let opened = letters.open(visit).await;
        let letters = opened.map_err(|error| match error {
            OpenError::Refused(cause) | OpenError::Unavailable(cause) => anyhow!(cause),
        })?;
        Ok(Self {
            letters,
            choice: Choice::new(chosen),
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
            let mut letters = self.letters.next(most).await?;
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

    pub(super) async fn remove(&mut self, handles: &[u64]) -> anyhow::Result<()> {
        if handles.is_empty() {
            return Ok(());
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

    /// Gives back what was not removed; how many of the removed are still there.
    pub(super) async fn close(self) -> anyhow::Result<u64> {
        Ok(self.letters.close().await?)
    }
}
