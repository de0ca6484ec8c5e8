//! The reading side: [`RabbitSource`].

use std::fmt;
use std::sync::Arc;

use millstream_core::{Chunk, Credit, Read, Source, SourceError};

use crate::inbox::{Found, Inbox, Presence};

/// The source of a [`RabbitConnector`](crate::RabbitConnector).
///
/// What the broker sends ahead, at most the prefetch, waits here until there is credit for it. A message that was
/// delivered more than three times comes alone, once everything else that was sent ahead is back at the broker.
pub struct RabbitSource(Arc<Presence>);

impl RabbitSource {
    pub(crate) fn new(presence: Arc<Presence>) -> Self {
        Self(presence)
    }

    fn inbox(&self) -> &Inbox {
        self.0.inbox()
    }
}

impl Source for RabbitSource {
    async fn read(&mut self, credit: Credit, chunk: &mut Chunk) -> Result<Read, SourceError> {
        loop {
            match self.inbox().read(credit, chunk) {
                Found::Messages => return Ok(Read::Messages),
                Found::Ended => return Ok(Read::Ended),
                Found::Failed => return Err(SourceError("a reading task has died".to_owned())),
                Found::Nothing => self.inbox().readable().await,
            }
        }
    }

    /// Cancels the consumers, unless the next read comes within 50 milliseconds; after half a minute, what was sent
    /// ahead goes back to the queue.
    fn pause(&mut self) {
        self.inbox().pause();
    }

    fn drain(&mut self) {
        self.inbox().drain();
    }
}

impl fmt::Debug for RabbitSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RabbitSource")
    }
}
