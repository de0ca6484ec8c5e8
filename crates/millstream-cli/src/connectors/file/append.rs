//! A file that only grows: [`Appender`].

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::lines::same;

/// Appends whole lines, each call on the disk when it returns.
///
/// The file may be renamed meanwhile, by who removes lines of it: then they are in the new one too.
#[derive(Debug)]
pub(super) struct Appender {
    path: PathBuf,
    file: File,
}

impl Appender {
    /// Opens the file, or makes it. A line that a crash cut short is ended, so that it spoils no other.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)?;
        if file.metadata()?.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if file.seek(SeekFrom::End(0))? > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
            }
        }
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Appends these bytes, which end with a line feed. After an error any part of them may be there, and the file
    /// must be opened anew.
    pub(super) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        loop {
            if !self.is_there()? {
                *self = Self::open(&self.path)?;
            }
            self.file.write_all(lines)?;
            self.file.sync_data()?;
            if self.is_there()? {
                return Ok(());
            }
        }
    }

    /// Whether the open file is still the one of this name.
    fn is_there(&self) -> io::Result<bool> {
        match fs::metadata(&self.path) {
            Ok(there) => Ok(same(&there, &self.file.metadata()?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_cut_short_spoils_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        for lines in ["one\n", "tw", "three\n"] {
            Appender::open(&path).unwrap().append(lines.as_bytes()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), "one\ntw\nthree\n");
    }
}
