//! What a source leaves that ends before its process does, and can commit no more: [`Left`].

use std::sync::Arc;

use millstream_core::OriginId;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use super::{Place, Shared};
use crate::ends::Note;

/// For each partition what the group has of it, and the note that it would have if the source could have committed.
///
/// Whoever finds the note of a member that holds the partition takes that for an unclean end. The source that is opened
/// next in the same process knows better, as long as nobody has committed in between.
#[derive(Debug, Default)]
pub(crate) struct Left(Mutex<FxHashMap<Place, (u64, String, Note)>>);

impl Left {
    /// The note that was to replace this one.
    pub(super) fn take(&self, place: &Place, offset: u64, text: &str) -> Option<Note> {
        let (at, found, note) = self.0.lock().remove(place)?;
        (at == offset && found == text).then_some(note)
    }
}

impl Shared {
    /// Begins with what the source before it has left.
    pub(crate) fn after(mut self, left: Arc<Left>) -> Self {
        self.left = left;
        self
    }

    /// Leaves what the group has of these to the source that is opened next.
    pub(crate) fn leave(&self, origins: &[OriginId]) {
        let state = self.state.lock();
        let mut left = self.left.0.lock();
        for assignment in origins.iter().filter_map(|origin| state.assignments.get(origin)) {
            if let Some((offset, text)) = assignment.kept.clone() {
                let note = assignment.gate.ends.last_note();
                left.insert(assignment.place.clone(), (offset, text, note));
            }
        }
    }
}
