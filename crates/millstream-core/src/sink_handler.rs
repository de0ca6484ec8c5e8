//! The batch handler behind [`Flow::sink`](crate::Flow::sink): writes a batch to a sink.

use parking_lot::Mutex;

use crate::batch::{Batch, DynBatchHandler};
use crate::connector::{BoxFuture, Delivered, DynSink, SharedSinkConnector};
use crate::failure::Failure;
use crate::message::Outgoing;

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
            let sink = self.sink().await?;
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
