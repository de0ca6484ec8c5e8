//! `dead-letter replay`: letters back to where their pipeline reads.
//!
//! A letter is removed once its replay is confirmed, some at a time. A process that is killed in between leaves those
//! that it had sent and not removed, one chunk at most, and they are replayed again: at least once, and none lost.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Context as _, anyhow};
use millstream_config::PipelineConfig;
use millstream_core::rt::{self, Duration, Instant};
use millstream_core::{Letter, Outgoing, SharedLetterBox, SharedSinkConnector, Visit};

use super::CHUNK;
use super::pass::Pass;
use super::table::Table;
use crate::args::Replay;
use crate::named::{counted, messages};
use crate::program::{print_part, say};
use crate::progress::Progress;
use crate::sender::Sender;

pub(super) async fn replay(
    letters: SharedLetterBox,
    pipeline: &PipelineConfig,
    args: &Replay,
) -> anyhow::Result<String> {
    let target = target(pipeline)?;
    let visit = if args.dry_run { Visit::Look } else { Visit::Replay };
    let mut pass = Pass::open(&letters, visit, &args.chosen).await?;
    let mut run = Run {
        args,
        sender: Sender::new(target),
        begun: rt::now(),
        would: 0,
        worn: 0,
    };
    let ended = run.all(&mut pass).await;
    say(&pass.elsewhere());
    let closed = pass.close().await;
    let mut said = if args.dry_run {
        format!("would replay {}\n", messages(run.would))
    } else {
        format!("replayed {}\n", messages(run.sender.confirmed()))
    };
    if run.worn > 0 {
        said.push_str(&format!(
            "passed over {} that came back {} times already: --max-replays lets them\n",
            counted(run.worn, "letter"),
            args.max_replays
        ));
    }
    ended
        .and(closed.map(drop))
        .with_context(|| said.trim_end().replace('\n', "; "))?;
    Ok(said)
}

fn target(pipeline: &PipelineConfig) -> anyhow::Result<SharedSinkConnector> {
    let own = pipeline.spec.source.replay_sink();
    own.or_else(|| pipeline.publish_to.clone()).ok_or_else(|| {
        anyhow!(
            "the source of pipeline `{}` cannot be published to; `list --json` prints the letters as envelopes, which \
             `publish --json` takes",
            pipeline.spec.name
        )
    })
}

/// What an error calls a letter.
struct Named {
    handle: u64,
    id: String,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "letter {}", self.id)
    }
}

struct Run<'a> {
    args: &'a Replay,
    sender: Sender,
    begun: Instant,
    /// How many a dry run has found.
    would: u64,
    /// How many were replayed too often already.
    worn: u64,
}

impl Run<'_> {
    async fn all(&mut self, pass: &mut Pass) -> anyhow::Result<()> {
        let mut table = Table::default();
        let mut progress = (!self.args.dry_run).then(|| Progress::counting("replayed"));
        loop {
            let mut letters = pass.next(self.chunk()).await?;
            if letters.is_empty() {
                return Ok(());
            }
            let all = letters.len();
            letters.retain(|letter| letter.replays() < self.args.max_replays);
            self.worn += (all - letters.len()) as u64;
            if self.args.dry_run {
                self.would += letters.len() as u64;
                if !print_part(table.lines(&letters).as_bytes())? {
                    return Ok(());
                }
                continue;
            }
            self.send(pass, &letters).await?;
            if let Some(progress) = &mut progress {
                progress.advance(0, self.sender.confirmed());
            }
            // What is sent is removed before it ends.
            pass.wait_until(self.due()).await?;
        }
    }

    /// Sends letters, and removes those that are confirmed.
    async fn send(&mut self, pass: &mut Pass, letters: &[Letter]) -> anyhow::Result<()> {
        let mut batch: Vec<(Named, Outgoing)> = letters
            .iter()
            .map(|letter| {
                let named = Named {
                    handle: letter.handle,
                    id: letter.id.clone(),
                };
                (named, letter.replay())
            })
            .collect();
        let sent = self.sender.send(&mut batch, pass.signals()).await;
        let left: BTreeSet<_> = batch.iter().map(|(named, _)| named.handle).collect();
        let handles: Vec<_> = letters
            .iter()
            .map(|letter| letter.handle)
            .filter(|handle| !left.contains(handle))
            .collect();
        pass.remove(&handles).await?;
        sent
    }

    /// How many are sent at a time: with a rate, as many as a tenth of a second has room for.
    fn chunk(&self) -> usize {
        match self.args.rate {
            Some(rate) => usize::try_from(rate.get() / 10).unwrap_or(CHUNK).clamp(1, CHUNK),
            None => CHUNK,
        }
    }

    /// When the next ones may be sent.
    fn due(&self) -> Instant {
        match self.args.rate {
            Some(rate) => {
                self.begun + Duration::from_secs_f64(self.sender.confirmed() as f64 / f64::from(rate.get()))
            }
            None => self.begun,
        }
    }
}
