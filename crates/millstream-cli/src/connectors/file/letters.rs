//! Dead letters in a file of envelopes: [`FileLetters`].
//!
//! A line is removed by writing spaces over it, which readers pass over. At the end of the visit the file is written anew
//! without these. Others may append meanwhile: the file is first renamed to `PATH.removing`, which those that append notice
//! ([`Appender`]), and what is kept of it is appended to the new one. Should a visit end before that, blank lines stay
//! until one that removes letters is over. Should it end within, the next visit that removes does it again: letters may
//! then be there twice, and none is lost.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use millstream_core::{Aside, BoxFuture, Letter, LetterBox, LetterError, Letters, OpenError, Visit};
use tracing::warn;

use super::append::Appender;
use super::keeper::position_of;
use super::lines::{Line, Lines};
use super::lock::lock;
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
        let mut held = None;
        if visit != Visit::Look {
            let folder = hold(&self.path)?;
            refuse_if_read(&self.path)?;
            finish(&self.path, &removing, &folder)
                .map_err(|error| OpenError::Unavailable(format!("{}: {error}", removing.display())))?;
            held = Some(Held {
                folder,
                file: None,
                given: HashMap::new(),
                removed: false,
            });
        }
        let mut parts = VecDeque::new();
        for path in [removing, self.path.clone()] {
            let opened = match visit {
                Visit::Look => File::open(&path),
                Visit::Replay | Visit::Purge => File::options().read(true).write(true).open(&path),
            };
            let file = match opened {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(unreadable(&path, &error)),
            };
            let end = file.metadata().map_err(|error| unreadable(&path, &error))?.len();
            if let Some(held) = &mut held {
                lock(&file, &path).map_err(|error| {
                    OpenError::Unavailable(format!(
                        "a pipeline may be reading {}, and its lines can only be removed while none does: {error}",
                        path.display()
                    ))
                })?;
                held.file = Some(file.try_clone().map_err(|error| unreadable(&path, &error))?);
            }
            let lines = Lines::from(path, file, Position::default(), false)
                .map_err(|error| OpenError::Refused(error.to_string()))?;
            parts.push_back((lines, end));
        }
        Ok(Open {
            path: self.path.clone(),
            held,
            parts,
            number: 0,
            passed_over: false,
        })
    }
}

fn unreadable(path: &Path, error: &io::Error) -> OpenError {
    OpenError::Refused(format!("cannot read {}: {error}", path.display()))
}

/// Takes the folder, so that one process at a time removes lines there.
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
    Ok(held)
}

/// Ends what was begun by a process that did not come to its end.
fn finish(path: &Path, removing: &Path, folder: &File) -> io::Result<()> {
    if removing.try_exists()? {
        rewrite(path, removing, folder)?;
    }
    Ok(())
}

/// Lines may not be moved where a pipeline has read some of them: its place would be among others then, and it would not start
/// again.
fn refuse_if_read(path: &Path) -> Result<(), OpenError> {
    let place = position_of(path);
    let position = Position::load(&place).map_err(|error| OpenError::Refused(error.to_string()))?;
    if position.offset == 0 {
        return Ok(());
    }
    Err(OpenError::Refused(format!(
        "a pipeline has read {path} up to line {line}, as {place} says, and would not find its place again once lines are \
         removed: remove {place} if none is to go on there; one that reads the file after that begins at its start",
        path = path.display(),
        line = position.line,
        place = place.display(),
    )))
}

/// Appends all lines of the renamed file that are not blank to the new one, and removes the renamed one.
fn rewrite(path: &Path, removing: &Path, folder: &File) -> io::Result<()> {
    let file = File::open(removing)?;
    let mut lines =
        Lines::from(removing.to_owned(), file, Position::default(), false).map_err(io::Error::other)?;
    let mut appender = Appender::open(path)?;
    let mut kept = Vec::new();
    while let Some(line) = lines.next().map_err(io::Error::other)? {
        if is_blank(&line) {
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

fn is_blank(line: &Line) -> bool {
    line.bytes.iter().all(u8::is_ascii_whitespace)
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
            Ok(Box::new(Session(Aside::new(opened))) as Box<dyn Letters>)
        })
    }
}

/// A visit.
struct Open {
    path: PathBuf,
    /// Where lines may be removed.
    held: Option<Held>,
    /// What is still to be read, each up to where it ended when the visit began.
    parts: VecDeque<(Lines, u64)>,
    number: u64,
    passed_over: bool,
}

/// What lines are removed with.
struct Held {
    /// The folder, which is locked.
    folder: File,
    /// The file, where there is one. It is locked too, until it has been written anew: whoever reads it as a source has
    /// its place in bytes.
    file: Option<File>,
    /// Where the lines that were given and not removed begin, and how long they are, by their handles.
    given: HashMap<u64, (u64, usize)>,
    /// There are blank lines in the file.
    removed: bool,
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
                if !is_blank(&line) && !self.passed_over {
                    self.passed_over = true;
                    warn!(file = %self.path.display(), line = line.number, "lines that are no envelopes are passed over");
                }
                continue;
            };
            self.number += 1;
            letter.handle = self.number;
            if let Some(held) = &mut self.held {
                held.given
                    .insert(letter.handle, (line.place.start, line.bytes.len()));
            }
            letters.push(letter);
        }
        Ok(letters)
    }

    fn remove(&mut self, handles: &[u64]) -> io::Result<u64> {
        match &mut self.held {
            Some(held) => held.blank(handles),
            None => Ok(0),
        }
    }

    /// Writes the file anew, if lines of it were removed.
    fn end(&mut self) -> io::Result<()> {
        let Some(held) = self.held.take().filter(|held| held.removed) else {
            return Ok(());
        };
        let removing = beside(&self.path, ".removing");
        fs::rename(&self.path, &removing)?;
        rewrite(&self.path, &removing, &held.folder)
    }
}

impl Held {
    /// Writes spaces over these lines, their ends excepted.
    fn blank(&mut self, handles: &[u64]) -> io::Result<u64> {
        let mut places: Vec<_> = handles
            .iter()
            .filter_map(|handle| self.given.remove(handle))
            .collect();
        places.sort_unstable();
        let Some(file) = self.file.as_mut().filter(|_| !places.is_empty()) else {
            return Ok(0);
        };
        self.removed = true;
        for (start, length) in &places {
            file.seek(SeekFrom::Start(*start))?;
            file.write_all(&vec![b' '; *length])?;
        }
        file.sync_data()?;
        Ok(places.len() as u64)
    }
}

/// A visit, whose calls block.
struct Session(Aside<Open>);

fn failed(path: &Path, error: &io::Error) -> LetterError {
    LetterError(format!("cannot remove lines of {}: {error}", path.display()))
}

impl Letters for Session {
    fn next(&mut self, most: usize) -> BoxFuture<'_, Result<Vec<Letter>, LetterError>> {
        Box::pin(self.0.work(move |open| open.read(most)))
    }

    fn remove<'a>(&'a mut self, handles: &'a [u64]) -> BoxFuture<'a, Result<u64, LetterError>> {
        let handles = handles.to_vec();
        Box::pin(self.0.work(move |open| {
            let removed = open.remove(&handles);
            removed.map_err(|error| failed(&open.path, &error))
        }))
    }

    fn close(mut self: Box<Self>) -> BoxFuture<'static, Result<u64, LetterError>> {
        Box::pin(async move {
            let ended = self.0.work(|open| {
                let ended = open.end();
                ended.map_err(|error| failed(&open.path, &error))
            });
            ended.await.map(|()| 0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::lines::same;
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
        assert_eq!(visit.remove(&[1, 2]).unwrap(), 2);
        assert_eq!(visit.remove(&[1, 2]).unwrap(), 0);
        // What came after the visit began is not of it.
        assert_eq!(payloads(&visit.read(9).unwrap()), ["b"]);
        visit.end().unwrap();
        appender.append(envelope("d").as_bytes()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, [envelope("b"), envelope("c"), envelope("d")].concat());
        assert!(!beside(&path, ".removing").exists());
    }

    /// A visit that is killed leaves what it has removed blank, and the file is written anew once: by the next visit that
    /// removes.
    #[test]
    fn what_is_removed_is_gone_at_once_and_the_file_is_written_anew_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("dead");
        let last = envelope("d");
        let all = [
            envelope("a"),
            "no envelope\n".to_owned(),
            envelope("b"),
            envelope("c"),
            last.trim_end().to_owned(),
        ];
        fs::write(&path, all.concat()).unwrap();
        let before = File::open(&path).unwrap().metadata().unwrap();
        let letters = FileLetters::new(path.clone());
        let mut killed = letters.begin(Visit::Replay).unwrap();
        for handle in [1, 2, 4] {
            while killed.number < handle {
                killed.read(1).unwrap();
            }
            assert_eq!(killed.remove(&[handle]).unwrap(), 1);
        }
        drop(killed);
        let after = File::open(&path).unwrap().metadata().unwrap();
        assert!(same(&before, &after), "it was written anew");
        assert_eq!(
            payloads(&letters.begin(Visit::Look).unwrap().read(9).unwrap()),
            ["c"]
        );

        Appender::open(&path)
            .unwrap()
            .append(envelope("e").as_bytes())
            .unwrap();
        let mut next = letters.begin(Visit::Purge).unwrap();
        assert_eq!(payloads(&next.read(9).unwrap()), ["c", "e"]);
        assert_eq!(next.remove(&[1]).unwrap(), 1);
        next.end().unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            ["no envelope\n".to_owned(), envelope("e")].concat()
        );
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

    /// A pipeline that finds other lines before its place refuses to start, at every start.
    #[test]
    fn a_file_that_a_pipeline_has_read_in_part_keeps_its_lines() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("dead");
        fs::write(&path, [envelope("a"), envelope("b")].concat()).unwrap();
        let letters = FileLetters::new(path.clone());
        Position::default().save(&position_of(&path)).unwrap();
        letters.begin(Visit::Purge).unwrap();
        let position = Position {
            line: 1,
            offset: envelope("a").len() as u64,
            tail: 0,
        };
        position.save(&position_of(&path)).unwrap();
        letters.begin(Visit::Look).unwrap();
        for visit in [Visit::Replay, Visit::Purge] {
            let refused = letters.begin(visit).err().unwrap().to_string();
            assert!(
                refused.contains("up to line 1") && refused.contains("remove"),
                "{refused}"
            );
        }
    }

    /// A source keeps its place in bytes, which the end of a visit moves.
    #[test]
    fn a_file_of_which_lines_are_removed_is_not_read_by_a_pipeline_meanwhile() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("dead");
        fs::write(&path, [envelope("a"), envelope("b")].concat()).unwrap();
        let reads = || lock(&File::open(&path).unwrap(), &path).is_ok();
        let letters = FileLetters::new(path.clone());
        let look = letters.begin(Visit::Look).unwrap();
        assert!(reads());
        drop(look);
        for kind in [Visit::Replay, Visit::Purge] {
            let mut visit = letters.begin(kind).unwrap();
            assert!(!reads(), "as it begins");
            while !visit.read(1).unwrap().is_empty() {}
            assert!(!reads(), "once all were read");
            visit.remove(&[1]).unwrap();
            assert!(!reads(), "once one is removed");
            visit.end().unwrap();
            assert!(reads(), "it has ended");
        }
    }
}
