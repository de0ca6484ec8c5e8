//! What is to be committed, and what came of it.

use std::time::Duration;

use millstream_core::{OriginId, rt};
use rustc_hash::{FxHashMap, FxHashSet};

use super::{Place, Shared, State};
use crate::metadata;

/// How long to wait after a commit has failed before a note is tried again.
const NOTE_AGAIN: Duration = Duration::from_millis(500);

/// What is to be committed for one partition.
#[derive(Debug)]
pub(crate) struct Commit {
    pub(crate) place: Place,
    pub(crate) offset: u64,
    pub(crate) metadata: String,
    generation: u32,
    /// Which note is in it.
    version: u64,
}

impl State {
    /// What has come to be settled and was not sent to be committed, once these are settled too. It counts as sent.
    pub(super) fn uncommitted(&mut self, too: &FxHashMap<OriginId, FxHashSet<u64>>) -> Vec<Commit> {
        let mut commits = Vec::new();
        for (origin, assignment) in &mut self.assignments {
            let offsets = &assignment.offsets;
            let (mark, beyond) = match too.get(origin) {
                Some(too) => offsets.once_settled(|offset| too.contains(&offset)),
                None => (offsets.mark(), offsets.settled()),
            };
            let Some(offset) = mark else {
                continue;
            };
            let written = |at| too.get(origin).is_some_and(|too| too.contains(&at));
            if let Some(unsettled) = offsets.passed(offset, &beyond, written) {
                self.gaps.push((assignment.place.name(), offset, unsettled));
                continue;
            }
            let ends = &assignment.gate.ends;
            let (version, note) = if self.given_up.contains(origin) {
                (0, ends.last_note())
            } else {
                (ends.version(), ends.note())
            };
            let metadata = metadata::encode(offset, &note, &beyond);
            let unchanged = assignment
                .committed
                .as_ref()
                .is_some_and(|(committed, text)| *committed == offset && *text == metadata);
            if unchanged {
                assignment.gate.ends.kept(version);
            } else {
                assignment.committed = Some((offset, metadata.clone()));
                commits.push(Commit {
                    place: assignment.place.clone(),
                    offset,
                    metadata,
                    generation: assignment.generation,
                    version,
                });
            }
        }
        commits
    }
}

impl Shared {
    /// The commits since the last call that would have passed a message that is not settled, and were not made: the
    /// place, the offset, and that of the message.
    pub(crate) fn gaps(&self) -> Vec<(String, u64, u64)> {
        std::mem::take(&mut self.state.lock().gaps)
    }

    /// Whether a message waits for the group to keep a note.
    pub(crate) fn wants_note(&self) -> bool {
        let state = self.state.lock();
        state.note_again.is_none_or(|again| again <= rt::now())
            && state
                .assignments
                .values()
                .any(|assignment| assignment.gate.wants_note())
    }

    /// What has come to be settled and was not sent to be committed. It counts as sent.
    pub(crate) fn uncommitted(&self) -> Vec<Commit> {
        self.state.lock().uncommitted(&FxHashMap::default())
    }

    /// The group has these.
    pub(crate) fn committed(&self, commits: &[Commit]) {
        for assignment in self.state.lock().assignments.values_mut() {
            let commit = commits
                .iter()
                .find(|commit| commit.generation == assignment.generation);
            if let Some(commit) = commit {
                assignment.gate.ends.kept(commit.version);
                assignment.kept = Some((commit.offset, commit.metadata.clone()));
            }
        }
        // Something may have waited for its note.
        self.signal.raise();
    }

    /// These did not come to be committed.
    pub(crate) fn commit_failed(&self, commits: &[Commit]) {
        let mut state = self.state.lock();
        state.note_again = Some(rt::after(NOTE_AGAIN));
        for assignment in state.assignments.values_mut() {
            if commits.iter().any(|commit| commit.place == assignment.place) {
                assignment.committed = None;
            }
        }
    }
}
