//! Which letters a command is about: [`Choice`].

use std::time::SystemTime;

use millstream_core::Letter;

use super::filter::Filter;
use crate::args::Chosen;

/// The letters that meet all filters, as they were when the command began.
#[derive(Debug)]
pub(super) struct Choice {
    filters: Vec<Filter>,
    /// Letters of others are left out; none where a filter says which pipeline's.
    pipeline: Option<String>,
    now: SystemTime,
}

/// Whether a letter is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chosenness {
    Yes,
    No,
    /// It would be, were it not another pipeline's.
    Elsewhere,
}

impl Choice {
    pub(super) fn new(chosen: &Chosen) -> Self {
        let names_pipeline = chosen.filter.iter().any(Filter::is_of_pipeline);
        Self {
            filters: chosen.filter.clone(),
            pipeline: (!names_pipeline).then(|| chosen.pipeline.clone()),
            now: SystemTime::now(),
        }
    }

    pub(super) fn of(&self, letter: &Letter) -> Chosenness {
        if !self.filters.iter().all(|filter| filter.meets(letter, self.now)) {
            return Chosenness::No;
        }
        match (&self.pipeline, letter.says("pipeline")) {
            (Some(own), Some(theirs)) if own != theirs => Chosenness::Elsewhere,
            _ => Chosenness::Yes,
        }
    }
}
