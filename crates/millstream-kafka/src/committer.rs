//! Who commits what is settled: [`Committer`].

use tokio::sync::oneshot;

use crate::callbacks::Callbacks;
use crate::commits::Commits;
use crate::transactions::writer::Running;

/// Who commits what is settled, as the thread that polls has it.
#[derive(Debug)]
pub(crate) enum Committer {
    /// The consumer, offsets alone.
    Consumer(Commits),
    /// The producer, with what was written.
    Producer(Running),
}

impl Committer {
    /// Has what is settled committed, if it is time or somebody has asked for it. Whether what was due is done with.
    pub(crate) fn serve(
        &mut self,
        callbacks: &Callbacks,
        asked: Vec<oneshot::Sender<bool>>,
        due: bool,
    ) -> bool {
        match self {
            Self::Consumer(commits) => commits.serve(callbacks, asked, due),
            Self::Producer(running) => running.serve(asked, due),
        }
    }

    /// Ends its thread, once that has done what is under way.
    pub(crate) fn end(&mut self) {
        match self {
            Self::Consumer(commits) => commits.end(),
            Self::Producer(running) => running.end(),
        }
    }
}
