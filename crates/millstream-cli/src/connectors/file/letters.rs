//! Dead letters in a file of envelopes: [`FileLetters`].
//!
//! A line is removed by writing the file anew without it. Others may append meanwhile: the file is first renamed to
//! `PATH.removing`, which those that append notice ([`Appender`]), and what is kept of it is appended to the new one.
//! Should that end half way, the next visit that removes does it again: letters may then be there twice, and none is lost.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use millstream_core::{BoxFuture, Letter, LetterBox, LetterError, Letters, OpenError, Visit};
use tracing::warn;

use super::append::Appender;
use super::lines::{Line, Lines};
use super::position::{Position, beside};
use crate::envelope::Envelope;

/// How much is appended at a time.
const BLOCK: usize = 1 << 20;

/// The envelopes in a file.
#[derive(Clone, Debug)]
pub(super) struct FileLetters {
    path: PathBuf,
}

impl FileLetters {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    fn begin(&self, visit: Visit) -> Result<Open, OpenError> {
        let removing = beside(&self.path, ".removing");
        let mut folder = None;
        if visit != Visit::Look {
            let held = hold(&self.path)?;
            finish(&self.path, &removing, &held)
                .map_err(|error| OpenError::Unavailable(format!("{}: {error}", removing.display())))?;
            folder = Some(held);
        }
        let mut parts = VecDeque::new();
        for path in [removing, self.path.clone()] {
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(unreadable(&path, &error)),
            };
            let end = file.metadata().map_err(|error| unreadable(&path, &error))?.len();
            let lines = Lines::from(path, file, Position::default(), false)
                .map_err(|error| OpenError::Refused(error.to_string()))?;
            parts.push_back((lines, end));
        }
        Ok(Open {
            path: self.path.clone(),
            folder,
            parts,
            given: HashMap::new(),
            number: 0,
            passed_over: false,
        })
    }
}

fn unreadable(path: &Path, error: &io::Error) -> OpenError {
    OpenError::Refused(format!("cannot read {}: {error}", path.display()))
}

/// Takes the folder, so that one process at a time removes lines there; nobody may be reading the file as a source.
fn hold(path: &Path) -> Result<File, OpenError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let held = File::open(folder).map_err(|error| unreadable(folder, &error))?;
    held.try_lock().map_err(|error| {
        OpenError::Unavailable(format!(
            "another process may be removing letters in {}: {error}",
            folder.display()
        ))
    })?;
    if let Ok(file) = File::open(path) {
        file.try_lock().map_err(|error| {
            OpenError::Unavailable(format!(
                "a pipeline may be reading {}, and its lines can only be removed while none does: {error}",
                path.display()
            ))
        })?;
    }
    Ok(held)
}

/// Ends what was begun by a process that did not come to its end.
fn finish(path: &Path, removing: &Path, folder: &File) -> io::Result<()> {
    if removing.try_exists()? {
        rewrite(path, removing, folder, &mut BTreeMap::new())?;
    }
    Ok(())
}

/// Appends all lines of the renamed file but these to the new one, and removes the renamed one.
fn rewrite(
    path: &Path,
    removing: &Path,
    folder: &File,
    remove: &mut BTreeMap<String, usize>,
) -> io::Result<()> {
    let file = File::open(removing)?;
    let mut lines =
        Lines::from(removing.to_owned(), file, Position::default(), false).map_err(io::Error::other)?;
    let mut appender = Appender::open(path)?;
    let mut kept = Vec::new();
    while let Some(line) = lines.next().map_err(io::Error::other)? {
        if !remove.is_empty()
            && let Some(letter) = letter(&line)
            && let Some(left) = remove.get_mut(&letter.id).filter(|left| **left > 0)
        {
            *left -= 1;
            continue;
        }
        kept.extend_from_slice(&line.bytes);
        kept.push(b'\n');
        if kept.len() >= BLOCK {
            appender.append(&kept)?;
            kept.clear();
        }
    }
    appender.append(&kept)?;
    // The new file's name is on the disk before the old one goes.
    folder.sync_all()?;
    fs::remove_file(removing)
}

/// The letter in a line; none where it is no envelope.
fn letter(line: &Line) -> Option<Letter> {
    let envelope = Envelope::parse(&line.bytes).ok()?;
    let mut letter = Letter {
        payload: envelope.payload,
        key: envelope.key,
        headers: envelope.headers,
        timestamp: envelope.timestamp,
        ..Letter::default()
    };
    letter.id = letter.fingerprint();
    Some(letter)
}

impl LetterBox for FileLetters {
    fn open(&self, visit: Visit) -> BoxFuture<'_, Result<Box<dyn Letters>, OpenError>> {
        let letters = self.clone();
        Box::pin(async move {
            let opened = tokio::task::spawn_blocking(move || letters.begin(visit)).await;
            let opened = opened.map_err(|error| OpenError::Unavailable(error.to_string()))??;
            Ok(Box::new(Session(Some(opened))) as Box<dyn Letters>)
        })
    }
}

/// A visit.
struct Open {
    path: PathBuf,
    /// The folder, held while lines may be removed.
    folder: Option<File>,
    /// What is still to be read, each up to where it ended when the visit began.
    parts: VecDeque<(Lines, u64)>,
    /// What was given and not removed, by its handle.
    given: HashMap<u64, String>,
    number: u64,
    passed_over: bool,
}

impl Open {
    fn read(&mut self, most: usize) -> Result<Vec<Letter>, LetterError> {
        let mut letters = Vec::new();
        while letters.len() < most.max(1)
            && let Some((lines, end)) = self.parts.front_mut()
        {
            let line = lines.next().map_err(|error| LetterError(error.to_string()))?;
            let Some(line) = line.filter(|line| line.place.end <= *end) else {
                self.parts.pop_front();
                continue;
            };
            let Some(mut letter) = letter(&line) else {
                if !line.bytes.iter().all(u8::is_ascii_whitespace) && !self.passed_over {
                    self.passed_over = true;
                    warn!(file = %self.path.display(), line = line.number, "lines that are no envelopes are passed over");
                }
                continue;
            };
            self.number += 1;
            letter.handle = self.number;
            if self.folder.is_some() {
                self.given.insert(letter.handle, letter.id.clone());
            }
            letters.push(letter);
        }
        Ok(letters)
    }

    fn remove(&mut self, handles: &[u64]) -> io::Result<()> {
        let mut remove = BTreeMap::new();
        for handle in handles {
            if let Some(id) = self.given.remove(handle) {
                *remove.entry(id).or_insert(0) += 1;
            }
        }
        let Some(folder) = self.folder.as_ref().filter(|_| !remove.is_empty()) else {
            return Ok(());
        };
        let removing = beside(&self.path, ".removing");
        fs::rename(&self.path, &removing)?;
        rewrite(&self.path, &removing, folder, &mut remove)
    }
}

/// A visit, which is away while it works.
struct Session(Option<Open>);

impl Session {
    async fn work<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Open) -> Result<T, LetterError> + Send + 'static,
    ) -> Result<T, LetterError> {
        let Some(mut open) = self.0.take() else {
            return Err(LetterError("a call before this one has failed".to_owned()));
        };
        let done = tokio::task::spawn_blocking(move || work(&mut open).map(|done| (done, open))).await;
        let (done, open) = done.map_err(|error| LetterError(error.to_string()))??;
        self.0 = Some(open);
        Ok(done)
    }
}

impl Letters for Session {
    fn next(&mut self, most: usize) -> BoxFuture<'_, Result<Vec<Letter>, LetterError>> {
        Box::pin(self.work(move |open| open.read(most)))
    }

    fn remove<'a>(&'a mut self, handles: &'a [u64]) -> BoxFuture<'a, Result<(), LetterError>> {
        let handles = handles.to_vec();
        Box::pin(self.work(move |open| {
            let path = open.path.display().to_string();
            open.remove(&handles)
                .map_err(|error| LetterError(format!("cannot remove lines of {path}: {error}")))
        }))
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, Result<u64, LetterError>> {
        Box::pin(async { Ok(0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(payload: &str) -> String {
        format!("{{\"payload\":\"{payload}\"}}\n")
    }

    fn payloads(letters: &[Letter]) -> Vec<String> {
        let payloads = letters.iter().map(|letter| letter.payload.to_vec());
        payloads
            .map(|payload| String::from_utf8(payload).unwrap())
            .collect()
    }

    #[test]
    fn what_is_appended_while_lines_are_removed_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("dead");
        let mut appender = Appender::open(&path).unwrap();
        appender
            .append([envelope("a"), envelope("b"), envelope("b")].concat().as_bytes())
            .unwrap();
        let mut visit = FileLetters::new(path.clone()).begin(Visit::Purge).unwrap();
        let letters = visit.read(2).unwrap();
        assert_eq!(payloads(&letters), ["a", "b"]);
        // By one that has the file open from before.
        appender.append(envelope("c").as_bytes()).unwrap();
        visit.remove(&[1, 2]).unwrap();
        appender.append(envelope("d").as_bytes()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, [envelope("b"), envelope("c"), envelope("d")].concat());
        // What came after the visit began is not of it.
        assert_eq!(payloads(&visit.read(9).unwrap()), ["b"]);
        assert!(!beside(&path, ".removing").exists());
    }

    #[test]
    fn a_removal_that_ended_half_way_loses_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("dead");
        fs::write(
            beside(&path, ".removing"),
            [envelope("a"), envelope("b")].concat(),
        )
        .unwrap();
        fs::write(&path, envelope("c")).unwrap();
        let letters = FileLetters::new(path.clone());
        assert_eq!(
            payloads(&letters.begin(Visit::Look).unwrap().read(9).unwrap()),
            ["a", "b", "c"]
        );
        let mut visit = letters.begin(Visit::Replay).unwrap();
        assert_eq!(payloads(&visit.read(9).unwrap()), ["c", "a", "b"]);
        assert!(!beside(&path, ".removing").exists());
    }

    #[test]
    fn a_file_that_a_pipeline_reads_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("dead");
        fs::write(&path, envelope("a")).unwrap();
        let reader = File::open(&path).unwrap();
        reader.try_lock().unwrap();
        let letters = FileLetters::new(path);
        assert_eq!(letters.begin(Visit::Look).unwrap().read(9).unwrap().len(), 1);
        let refused = letters.begin(Visit::Purge).err().unwrap().to_string();
        assert!(refused.contains("a pipeline may be reading"), "{refused}");
    }
}
