//! The reading side: [`RabbitSource`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use millstream_core::{Chunk, Credit, Read, Source, SourceError};
use tokio::time::timeout;

use crate::inbox::{Found, Inbox, Presence};

/// How long the end of a stream's source waits for its position to be stored.
const LAST: Duration = Duration::from_secs(2);

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
                Found::Ended => {
                    if let Some(progress) = self.inbox().progress() {
                        // Should it fail, there is nothing to wait for: some messages come again.
                        timeout(LAST, progress.store()).await.ok();
                    }
                    return Ok(Read::Ended);
                }
                Found::Failed => {
                    let cause = self.inbox().trouble();
                    return Err(SourceError(
                        cause.unwrap_or_else(|| "a reading task has died".to_owned()),
                    ));
                }
                Found::Nothing => self.inbox().readable().await,
            }
        }
    }

    /// Cancels the consumers, unless the next read comes within 50 milliseconds; after half a minute, what was sent
    /// ahead goes back to the queue, but for that of a stream, which has nobody else to give it to.
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
