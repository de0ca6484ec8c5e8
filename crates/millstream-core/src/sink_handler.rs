//! The batch handler behind [`Flow::sink`](crate::Flow::sink): writes a batch to a sink.

use parking_lot::Mutex;
use tracing::warn;

use crate::batch::{Batch, DynBatchHandler};
use crate::connector::{Delivered, DynSink, SharedSinkConnector};
use crate::engine::patience;
use crate::errors::OpenError;
use crate::failure::Failure;
use crate::future::BoxFuture;
use crate::message::Outgoing;
use crate::rt;

/// Keeps open sinks between batches: as many as batches were written at a time.
pub(crate) struct SinkHandler {
    connector: SharedSinkConnector,
    open: Mutex<Vec<Box<dyn DynSink>>>,
}

impl SinkHandler {
    pub(crate) fn new(connector: SharedSinkConnector) -> Self {
        Self {
            connector,
            open: Mutex::new(Vec::new()),
        }
    }

    async fn sink(&self) -> Result<Box<dyn DynSink>, Failure> {
        let open = self.open.lock().pop();
        match open {
            Some(sink) => Ok(sink),
            None => Ok(self.connector.open().await?),
        }
    }
}

impl DynBatchHandler<Outgoing> for SinkHandler {
    fn start(&self) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async {
            let mut failures = 0;
            let sink = loop {
                match self.connector.open().await {
                    Ok(sink) => break sink,
                    Err(error @ OpenError::Refused(_)) => return Err(error.into()),
                    // As with a source: it may come, and there is nothing to be lost until then.
                    Err(OpenError::Unavailable(why)) => {
                        failures += 1;
                        let wait = patience(failures);
                        warn!(cause = %why, ?wait, "the sink does not open yet");
                        rt::sleep(wait).await;
                    }
                }
            };
            self.open.lock().push(sink);
            Ok(())
        })
    }

    fn handle<'a>(&'a self, batch: &'a mut Batch<Outgoing>) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async {
            let mut results = Vec::with_capacity(batch.len());
            // Dropped on an error or a timeout: what was written is then unknown, and the next batch opens another.
            let mut sink = self.sink().await?;
            sink.send(batch.items(), &mut results).await?;
            self.open.lock().push(sink);
            for index in 0..batch.len() {
                match results.get(index) {
                    Some(Delivered::Confirmed) => {}
                    Some(Delivered::Refused(why)) => batch.fail(index, Failure::reject(why.as_str())),
                    Some(Delivered::Failed(why)) => batch.fail(index, Failure::retry(why.as_str())),
                    None => batch.fail(index, Failure::retry("the sink gave no result for it")),
                }
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::connector::SinkConnector;
    use crate::memory::{MemoryQueue, MemorySink};

    /// Cannot be reached so often, then opens, or refuses.
    struct Late {
        failures: AtomicU32,
        refuses: bool,
    }

    impl SinkConnector for Late {
        type Sink = MemorySink;

        async fn open(&self) -> Result<MemorySink, OpenError> {
            let left = self.failures.fetch_sub(1, Ordering::Relaxed);
            match (left, self.refuses) {
                (0, true) => Err(OpenError::Refused("no such exchange".to_owned())),
                (0, false) => SinkConnector::open(&MemoryQueue::new()).await,
                _ => Err(OpenError::Unavailable("no answer".to_owned())),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_sink_that_cannot_be_reached_yet_is_waited_for_and_one_that_refuses_is_not() {
        for refuses in [false, true] {
            let handler = SinkHandler::new(Arc::new(Late {
                failures: AtomicU32::new(20),
                refuses,
            }));
            assert_eq!(handler.start().await.is_err(), refuses);
        }
    }
}
