//! Reads a file: [`FileSource`], its [`Reading`] source and its [`Settling`] acknowledger.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use millstream_core::rt::{self, Duration};
use millstream_core::{
    Acknowledger, Capabilities, Chunk, Connector, Credit, EngineHandle, Facts, Finding, OpenError, Outcome,
    Read, Settle, SharedLetterBox, Source, SourceError, Ticket,
};

use super::keeper::{Keeper, dead_of, position_of};
use super::kind::Format;
use super::ledger::{Ledger, Mark};
use super::letters::FileLetters;
use super::lines::{Lines, LinesError};
use super::lock::lock;
use super::position::Position;
use super::shared::Shared;
use super::sink::has_folder;

/// How often a file that is followed is looked at.
const POLL: Duration = Duration::from_millis(200);

/// Reads the lines of a file.
#[derive(Debug)]
pub(super) struct FileSource {
    path: PathBuf,
    format: Format,
    follow: bool,
    generations: AtomicU32,
}

impl FileSource {
    pub(super) fn new(path: PathBuf, format: Format, follow: bool) -> Self {
        Self {
            path,
            format,
            follow,
            generations: AtomicU32::new(0),
        }
    }

    fn open_file(&self) -> Result<File, OpenError> {
        let file = File::open(&self.path).and_then(|file| match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(io::Error::other("it is no regular file")),
        });
        file.map_err(|error| {
            let text = format!("cannot read {}: {error}", self.path.display());
            match error.kind() {
                io::ErrorKind::NotFound if self.follow => OpenError::Unavailable(text),
                _ => OpenError::Refused(text),
            }
        })
    }
}

impl Connector for FileSource {
    type Source = Reading;
    type Acknowledger = Settling;

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            delay: true,
            keeps_rejected: true,
            counts_deliveries: false,
            orders_keys: false,
            ..Capabilities::default()
        }
    }

    fn letters(&self) -> Option<SharedLetterBox> {
        Some(Arc::new(FileLetters::new(dead_of(&self.path))))
    }

    async fn open(&self, engine: EngineHandle) -> Result<(Reading, Settling), OpenError> {
        let locked = self.open_file()?;
        if let Err(error) = lock(&locked, &self.path) {
            let text = format!(
                "another process may be reading {}, or removing lines of it: {error}",
                self.path.display()
            );
            return Err(OpenError::Unavailable(text));
        }
        let position = Position::load(&position_of(&self.path))
            .map_err(|error| OpenError::Refused(error.to_string()))?;
        let lines = Lines::from(self.path.clone(), self.open_file()?, position, self.follow)
            .map_err(|error| OpenError::Refused(error.to_string()))?;
        let mark = Mark {
            line: position.line,
            offset: position.offset,
        };
        let shared = Arc::new(Shared::new(
            &self.path,
            self.format,
            self.generations.fetch_add(1, Ordering::Relaxed),
            Ledger::from(mark),
            Keeper::new(&self.path, locked, mark),
            engine,
        ));
        let source = Reading {
            shared: Arc::clone(&shared),
            lines,
            follow: self.follow,
            draining: false,
        };
        Ok((source, Settling(shared)))
    }

    async fn check(&self, _: &Facts<'_>) -> Vec<Finding> {
        match self.open_file() {
            Ok(_) => Vec::new(),
            // It is waited for, where it can come.
            Err(OpenError::Unavailable(_)) if has_folder(&self.path) => Vec::new(),
            Err(error) => vec![Finding::from(error).at("path")],
        }
    }
}

/// The source of a [`FileSource`].
#[derive(Debug)]
pub(super) struct Reading {
    shared: Arc<Shared>,
    lines: Lines,
    follow: bool,
    draining: bool,
}

impl Reading {
    /// Adds lines to the chunk: those that come again, then new ones. Whether any was taken from the file.
    fn take(&mut self, credit: Credit, chunk: &mut Chunk) -> Result<bool, SourceError> {
        let has_room = |chunk: &Chunk| chunk.len() < credit.messages && chunk.bytes() < credit.bytes;
        while has_room(chunk) {
            let Some(again) = self.shared.ledger.lock().again(rt::now()) else {
                break;
            };
            let line = self.lines.again(again.number, again.place)?;
            // It was a message before.
            if let Ok(Some(mut message)) = self.shared.message(line.number, line.bytes) {
                message.failures = again.failures.unwrap_or(message.failures);
                chunk.push(self.ticket(line.number), message);
            }
        }
        let (mut read, mut broken) = (0, Vec::new());
        while has_room(chunk) && read < credit.messages && !self.shared.ledger.lock().is_full() {
            let Some(line) = self.lines.next()? else {
                break;
            };
            read += 1;
            self.shared.ledger.lock().out(&line);
            match self.shared.message(line.number, line.bytes.clone()) {
                Ok(Some(message)) => chunk.push(self.ticket(line.number), message),
                Ok(None) => drop(self.shared.ledger.lock().done(line.number)),
                Err(error) => broken.push((line, error)),
            }
        }
        self.shared.bury_broken(&broken).map_err(|error| {
            SourceError(format!(
                "cannot keep a line of {} that is broken: {error}",
                self.shared.name
            ))
        })?;
        Ok(read > 0)
    }

    fn ticket(&self, number: u64) -> Ticket {
        Ticket::new(self.shared.generation, self.shared.origin, number)
    }
}

impl From<LinesError> for SourceError {
    fn from(error: LinesError) -> Self {
        Self(error.to_string())
    }
}

impl Source for Reading {
    async fn read(&mut self, credit: Credit, chunk: &mut Chunk) -> Result<Read, SourceError> {
        loop {
            if self.draining {
                return Ok(Read::Ended);
            }
            let read = self.take(credit, chunk)?;
            if !chunk.is_empty() {
                return Ok(Read::Messages);
            }
            if read {
                // There was nothing but broken or empty lines, and there may be many more.
                tokio::task::yield_now().await;
                continue;
            }
            let due = self.shared.ledger.lock().due();
            tokio::select! {
                biased;
                // Told before it is waited for, it is remembered.
                () = self.shared.changed.notified() => {}
                () = rt::sleep_until(due.unwrap_or_else(rt::now)), if due.is_some() => {}
                () = rt::sleep(POLL), if self.follow => {}
            }
        }
    }

    fn drain(&mut self) {
        self.draining = true;
    }
}

/// The acknowledger of a [`FileSource`]. It keeps nothing back.
#[derive(Debug)]
pub(super) struct Settling(Arc<Shared>);

impl Acknowledger for Settling {
    async fn settle(&mut self, settlements: &[Settle], outcomes: &mut Vec<(Settle, Outcome)>) {
        let (shared, settles) = (Arc::clone(&self.0), settlements.to_vec());
        let settled = tokio::task::spawn_blocking(move || shared.settle(&settles)).await;
        let mut settled = settled.unwrap_or_default().into_iter();
        outcomes.extend(
            settlements
                .iter()
                .map(|settle| (settle.clone(), settled.next().unwrap_or(Outcome::Failed))),
        );
    }

    /// The position may not have been saved when it should have been.
    async fn flush(&mut self, _: &mut Vec<(Settle, Outcome)>) {
        let shared = Arc::clone(&self.0);
        if let Err(error) = tokio::task::spawn_blocking(move || shared.save()).await {
            tracing::error!(%error, "saving a position has died");
        }
    }
}
