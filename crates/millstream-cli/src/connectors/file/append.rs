//! A file that only grows: [`Appender`].

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Appends whole lines, each call on the disk when it returns.
#[derive(Debug)]
pub(super) struct Appender(File);

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
        Ok(Self(file))
    }

    /// Appends these bytes, which end with a line feed. After an error any part of them may be there, and the file
    /// must be opened anew.
    pub(super) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        self.0.write_all(lines)?;
        self.0.sync_data()
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
