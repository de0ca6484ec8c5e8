//! The reading side: [`Polling`].

use std::fmt;
use std::sync::Arc;

use millstream_core::{Chunk, Credit, Read, Source, SourceError, rt};

use crate::desk::{Desk, Found, Seat};
use crate::poll::poll;

/// The source of an [`SqsConnector`](crate::SqsConnector).
///
/// Dropping it and its acknowledger gives back what was received and not settled, with the delivery counted; the
/// runtime has to live a moment longer for that.
pub struct Polling {
    pub(crate) desk: Arc<Desk>,
    pub(crate) _seat: Arc<Seat>,
}

impl Source for Polling {
    /// # Cancel safety
    /// Cancel safe: polls are tasks of their own, which end when SQS has answered.
    async fn read(&mut self, credit: Credit, chunk: &mut Chunk) -> Result<Read, SourceError> {
        loop {
            let mut changed = std::pin::pin!(self.desk.changed.notified());
            changed.as_mut().enable();
            for reservation in self.desk.reserve(credit) {
                drop(rt::spawn(poll(reservation)));
            }
            match self.desk.take(credit, chunk) {
                Found::Messages => return Ok(Read::Messages),
                Found::Ended => return Ok(Read::Ended),
                Found::Nothing => changed.await,
            }
        }
    }

    /// Stops polling. What was received, and what polls under way still bring, can be read; the last of them ends
    /// after [`wait_time`](crate::SqsConnector::wait_time) at most.
    fn drain(&mut self) {
        self.desk.drain();
    }
}

impl fmt::Debug for Polling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Polling")
    }
}
