//! What a source keeps on the disk beside its file: [`Keeper`].

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::append::Appender;
use super::ledger::Mark;
use super::lines::Place;
use super::position::{Position, beside, checksum, read_at, tail};

/// The position, and the lines that were rejected. The file that it holds has the lock.
#[derive(Debug)]
pub(super) struct Keeper {
    file: File,
    position: PathBuf,
    saved: Mark,
    dead: PathBuf,
    appender: Option<Appender>,
}

/// The file in which the position of this one is kept.
pub(super) fn position_of(path: &Path) -> PathBuf {
    beside(path, ".position")
}

/// The file in which what is rejected of this one is kept.
pub(super) fn dead_of(path: &Path) -> PathBuf {
    beside(path, ".dead")
}

impl Keeper {
    /// Keeps what belongs to this file, the position being saved already.
    pub(super) fn new(path: &Path, file: File, saved: Mark) -> Self {
        Self {
            file,
            position: position_of(path),
            saved,
            dead: dead_of(path),
            appender: None,
        }
    }

    /// The bytes at this place, with the line's end.
    pub(super) fn read(&mut self, place: Place) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; place.len()];
        read_at(&mut self.file, place.start, &mut bytes)?;
        Ok(bytes)
    }

    /// Adds these envelopes to the dead.
    pub(super) fn bury(&mut self, lines: &[u8]) -> io::Result<()> {
        // One that has failed is opened anew.
        let mut appender = match self.appender.take() {
            Some(appender) => appender,
            None => Appender::open(&self.dead)?,
        };
        appender.append(lines)?;
        self.appender = Some(appender);
        Ok(())
    }

    /// Saves the position, unless it is saved already.
    pub(super) fn save(&mut self, mark: Mark) -> io::Result<()> {
        if mark == self.saved {
            return Ok(());
        }
        let position = Position {
            line: mark.line,
            offset: mark.offset,
            tail: checksum(&tail(&mut self.file, mark.offset)?),
        };
        position.save(&self.position)?;
        self.saved = mark;
        Ok(())
    }
}
