//! Where a file was read to, on the disk: [`Position`].

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How many bytes before the place are looked at to see whether the file is the same.
const TAIL: u64 = 256;

/// So many lines were settled, which end so many bytes into the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Position {
    /// Lines.
    pub(super) line: u64,
    /// Bytes.
    pub(super) offset: u64,
    /// A checksum of what stands before the offset.
    pub(super) tail: u64,
}

/// Why a position cannot be used.
#[derive(Debug, Error)]
pub(super) enum PositionError {
    #[error("cannot read {0}: {1}")]
    Unreadable(PathBuf, io::Error),
    #[error("{0} is damaged: remove it to read the file again from its start")]
    Damaged(PathBuf),
}

/// The path with this at its end.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

impl Position {
    /// The position kept here, or the start where there is none.
    pub(super) fn load(path: &Path) -> Result<Self, PositionError> {
        match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|_| PositionError::Damaged(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(PositionError::Unreadable(path.to_owned(), error)),
        }
    }

    /// Puts it in the place of the one before, never half.
    pub(super) fn save(&self, path: &Path) -> io::Result<()> {
        let text = serde_json::to_vec(self)?;
        let next = beside(path, ".next");
        fs::write(&next, text)?;
        fs::rename(next, path)
    }
}

/// Fills the bytes with what stands at this offset.
pub(super) fn read_at(file: &mut File, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(bytes)
}

/// What stands before this offset, as much of it as the checksum is of.
pub(super) fn tail(file: &mut File, offset: u64) -> io::Result<Vec<u8>> {
    let length = offset.min(TAIL);
    let mut tail = vec![0; usize::try_from(length).unwrap_or_default()];
    read_at(file, offset - length, &mut tail)?;
    Ok(tail)
}

/// FNV-1a: the same in every release and on every machine.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_as_it_was_saved_and_a_damaged_one_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log.position");
        assert_eq!(Position::load(&path).unwrap(), Position::default());
        let position = Position {
            line: 3,
            offset: 40,
            tail: checksum(b"three"),
        };
        position.save(&path).unwrap();
        assert_eq!(Position::load(&path).unwrap(), position);
        fs::write(&path, "").unwrap();
        assert!(
            Position::load(&path)
                .unwrap_err()
                .to_string()
                .contains("is damaged")
        );
    }
}
