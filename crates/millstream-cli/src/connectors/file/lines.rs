//! The lines of a file that may grow: [`Lines`].

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;

use bytes::Bytes;
use thiserror::Error;

use super::position::{Position, checksum, read_at, tail};

/// How much is read at a time.
const BLOCK: usize = 64 << 10;
/// A longer line is an error: it is not a file of lines then.
const LONGEST: usize = 128 << 20;

/// Reads lines, one after the other.
#[derive(Debug)]
pub(super) struct Lines {
    path: PathBuf,
    file: File,
    follow: bool,
    /// What was read and is not yet handed out starts at `start` of `buffer`, and at `offset` of the file.
    buffer: Vec<u8>,
    start: usize,
    offset: u64,
    /// How far the buffer was searched for a line end.
    searched: usize,
    /// Lines that came before.
    line: u64,
    /// The last line had no end when it was handed out.
    unended: bool,
    /// There will be no more.
    over: bool,
}

/// One line without its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// From 1.
    pub(super) number: u64,
    pub(super) place: Place,
    pub(super) bytes: Bytes,
}

/// Where a line is in its file, its end included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Place {
    pub(super) fn len(self) -> usize {
        usize::try_from(self.end - self.start).unwrap_or_default()
    }
}

/// Why lines cannot be read.
#[derive(Debug, Error)]
pub(super) enum LinesError {
    #[error("cannot read {0}: {1}")]
    Unreadable(PathBuf, io::Error),
    #[error(
        "{path} was truncated: {read} bytes of it were read, and it has {len}; remove {path}.position to read it from \
         its start"
    )]
    Truncated { path: PathBuf, read: u64, len: u64 },
    #[error(
        "{0} was replaced by another file since it was read; remove {0}.position to read the new one from its start"
    )]
    Replaced(PathBuf),
    #[error("line {line} of {path} is longer than 128 MiB: is this a file of lines?")]
    Long { path: PathBuf, line: u64 },
}

impl Lines {
    /// Lines from this position on, if the file is still the one in which it was taken.
    pub(super) fn from(
        path: PathBuf,
        file: File,
        position: Position,
        follow: bool,
    ) -> Result<Self, LinesError> {
        let mut lines = Self {
            path,
            file,
            follow,
            buffer: Vec::new(),
            start: 0,
            offset: position.offset,
            searched: 0,
            line: position.line,
            unended: false,
            over: false,
        };
        lines.check_length()?;
        if position.offset > 0 {
            let tail = tail(&mut lines.file, position.offset)
                .map_err(|error| LinesError::Unreadable(lines.path.clone(), error))?;
            if checksum(&tail) != position.tail {
                return Err(LinesError::Replaced(lines.path));
            }
            lines.unended = tail.last() != Some(&b'\n');
        }
        Ok(lines)
    }

    /// The next line; `None` if there is none now.
    pub(super) fn next(&mut self) -> Result<Option<Line>, LinesError> {
        loop {
            let rest = self.buffer.get(self.start..).unwrap_or_default();
            if self.unended && !rest.is_empty() {
                self.unended = false;
                let end = match rest {
                    [b'\n', ..] => 1,
                    [b'\r', b'\n', ..] => 2,
                    _ => 0,
                };
                (self.start, self.offset) = (self.start + end, self.offset + end as u64);
                self.searched = self.start;
                continue;
            }
            let unsearched = self.buffer.get(self.searched..).unwrap_or_default();
            if let Some(at) = unsearched.iter().position(|byte| *byte == b'\n') {
                return Ok(Some(self.take(self.searched + at + 1)));
            }
            self.searched = self.buffer.len();
            if self.over {
                return Ok(None);
            }
            if rest.len() > LONGEST {
                return Err(LinesError::Long {
                    path: self.path.clone(),
                    line: self.line + 1,
                });
            }
            if self.fill()? == 0 {
                self.check_length()?;
                if self.follow {
                    self.check_identity()?;
                    return Ok(None);
                }
                self.over = true;
                if self.buffer.len() > self.start {
                    // What follows is no longer followed: this is the last line, if without an end.
                    self.unended = true;
                    let line = self.take(self.buffer.len());
                    return Ok(Some(line));
                }
            }
        }
    }

    /// The line at this place, which was read before.
    pub(super) fn again(&mut self, number: u64, place: Place) -> Result<Line, LinesError> {
        let mut bytes = vec![0; place.len()];
        self.read_at(place.start, &mut bytes)?;
        trim(&mut bytes);
        Ok(Line {
            number,
            place,
            bytes: bytes.into(),
        })
    }

    /// The line that ends here in the buffer.
    fn take(&mut self, end: usize) -> Line {
        let mut bytes = self.buffer.get(self.start..end).unwrap_or_default().to_vec();
        let place = Place {
            start: self.offset,
            end: self.offset + bytes.len() as u64,
        };
        trim(&mut bytes);
        self.line += 1;
        (self.start, self.searched, self.offset) = (end, end, place.end);
        Line {
            number: self.line,
            place,
            bytes: bytes.into(),
        }
    }

    /// Reads a block more; says how many bytes it had.
    fn fill(&mut self) -> Result<usize, LinesError> {
        self.buffer.drain(..self.start);
        (self.start, self.searched) = (0, self.searched - self.start);
        let had = self.buffer.len();
        self.buffer.resize(had + BLOCK, 0);
        let end = self.offset + had as u64;
        let mut read = || {
            self.file.seek(SeekFrom::Start(end))?;
            self.file.read(self.buffer.get_mut(had..).unwrap_or_default())
        };
        let read = read();
        self.buffer.truncate(had + read.as_ref().map_or(0, |read| *read));
        read.map_err(|error| self.unreadable(error))
    }

    fn read_at(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), LinesError> {
        match read_at(&mut self.file, offset, bytes) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                self.check_length()?;
                Err(self.unreadable(error))
            }
            Err(error) => Err(self.unreadable(error)),
        }
    }

    fn check_length(&self) -> Result<(), LinesError> {
        let len = self
            .file
            .metadata()
            .map_err(|error| self.unreadable(error))?
            .len();
        let read = self.offset + (self.buffer.len() - self.start) as u64;
        if len < read {
            return Err(LinesError::Truncated {
                path: self.path.clone(),
                read,
                len,
            });
        }
        Ok(())
    }

    /// Whether the path still names the file that is open.
    fn check_identity(&self) -> Result<(), LinesError> {
        let there = fs::metadata(&self.path).map_err(|error| self.unreadable(error))?;
        let open = self.file.metadata().map_err(|error| self.unreadable(error))?;
        if same(&there, &open) {
            return Ok(());
        }
        Err(LinesError::Replaced(self.path.clone()))
    }

    fn unreadable(&self, error: io::Error) -> LinesError {
        LinesError::Unreadable(self.path.clone(), error)
    }
}

/// Whether both are of one file.
#[cfg(unix)]
pub(super) fn same(one: &fs::Metadata, other: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Elsewhere only the length tells.
#[cfg(not(unix))]
pub(super) fn same(one: &fs::Metadata, other: &fs::Metadata) -> bool {
    one.len() >= other.len()
}

pub(super) fn trim(line: &mut Vec<u8>) {
    if line.pop_if(|last| *last == b'\n').is_some() {
        line.pop_if(|last| *last == b'\r');
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    struct Scratch {
        path: PathBuf,
        _directory: tempfile::TempDir,
    }

    impl Scratch {
        fn new(text: &[u8]) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("log");
            fs::write(&path, text).unwrap();
            Self {
                path,
                _directory: directory,
            }
        }

        fn append(&self, text: &[u8]) {
            let mut file = fs::OpenOptions::new().append(true).open(&self.path).unwrap();
            file.write_all(text).unwrap();
        }

        fn lines(&self, position: Position, follow: bool) -> Result<Lines, LinesError> {
            Lines::from(
                self.path.clone(),
                File::open(&self.path).unwrap(),
                position,
                follow,
            )
        }
    }

    fn all(lines: &mut Lines) -> Vec<String> {
        std::iter::from_fn(|| lines.next().unwrap())
            .map(|line| String::from_utf8(line.bytes.to_vec()).unwrap())
            .collect()
    }

    fn position(lines: &mut Lines) -> Position {
        let tail = tail(&mut lines.file, lines.offset).unwrap();
        Position {
            line: lines.line,
            offset: lines.offset,
            tail: checksum(&tail),
        }
    }

    #[test]
    fn a_line_that_is_followed_is_none_before_its_end() {
        let file = Scratch::new(b"one\r\n\ntw");
        let mut lines = file.lines(Position::default(), true).unwrap();
        assert_eq!(all(&mut lines), ["one", ""]);
        file.append(b"o\nthree\n");
        assert_eq!(all(&mut lines), ["two", "three"]);
    }

    #[test]
    fn the_last_line_needs_no_end_and_what_is_appended_later_is_read_from_there() {
        let file = Scratch::new(b"one\ntwo");
        let mut lines = file.lines(Position::default(), false).unwrap();
        assert_eq!(all(&mut lines), ["one", "two"]);
        let read = position(&mut lines);
        file.append(b"\nthree\n");
        assert_eq!(all(&mut lines), [] as [&str; 0]);
        let mut lines = file.lines(read, false).unwrap();
        assert_eq!(lines.next().unwrap().unwrap().number, 3);
    }

    #[test]
    fn a_file_that_is_another_is_told() {
        let file = Scratch::new(b"one\ntwo\n");
        let mut lines = file.lines(Position::default(), true).unwrap();
        assert_eq!(all(&mut lines).len(), 2);
        let read = position(&mut lines);
        fs::write(&file.path, "one\n").unwrap();
        assert!(matches!(
            lines.next(),
            Err(LinesError::Truncated { read: 8, len: 4, .. })
        ));
        assert!(matches!(
            file.lines(read, true),
            Err(LinesError::Truncated { .. })
        ));
        fs::write(&file.path, "eins\nzwei\ndrei\n").unwrap();
        assert!(matches!(file.lines(read, true), Err(LinesError::Replaced(_))));
        let mut lines = file.lines(Position::default(), true).unwrap();
        assert_eq!(all(&mut lines).len(), 3);
        fs::rename(&file.path, file.path.with_extension("old")).unwrap();
        fs::write(&file.path, "eins\nzwei\ndrei\n").unwrap();
        assert!(matches!(lines.next(), Err(LinesError::Replaced(_))));
    }

    proptest! {
        #[test]
        fn every_line_is_read_once_wherever_blocks_end_and_again_from_its_place(
            texts in prop::collection::vec(prop_oneof![Just(0), 0..100usize, 60_000..70_000usize], 0..12),
        ) {
            let texts: Vec<_> = texts.iter().map(|length| "x".repeat(*length)).collect();
            let file = Scratch::new(texts.iter().map(|text| format!("{text}\n")).collect::<String>().as_bytes());
            let mut lines = file.lines(Position::default(), false).unwrap();
            let mut read = Vec::new();
            while let Some(line) = lines.next().unwrap() {
                prop_assert_eq!(&lines.again(line.number, line.place).unwrap(), &line);
                prop_assert_eq!(line.number, read.len() as u64 + 1);
                read.push(String::from_utf8(line.bytes.to_vec()).unwrap());
            }
            prop_assert_eq!(read, texts);
        }
    }
}
