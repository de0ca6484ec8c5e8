//! A file that one process has for itself: [`lock`].

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::lines::same;

/// Takes the file that was opened under this name for as long as it is open, for who reads it as a source, or removes
/// lines of it: neither bears the other. Those that append need no lock.
///
/// # Errors
/// When another has it, or has put a new one in its place before it was locked.
pub(super) fn lock(file: &File, path: &Path) -> io::Result<()> {
    file.try_lock()?;
    match same(&fs::metadata(path)?, &file.metadata()?) {
        true => Ok(()),
        false => Err(io::Error::other("it has just been written anew")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_on_what_was_replaced_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lines");
        fs::write(&path, "one\n").unwrap();
        let old = File::open(&path).unwrap();
        fs::rename(&path, directory.path().join("old")).unwrap();
        assert!(lock(&old, &path).is_err(), "there is no such file");
        fs::write(&path, "two\n").unwrap();
        let replaced = lock(&old, &path).unwrap_err().to_string();
        assert!(replaced.contains("written anew"), "{replaced}");
        let new = File::open(&path).unwrap();
        lock(&new, &path).unwrap();
        assert!(lock(&File::open(&path).unwrap(), &path).is_err());
    }
}
