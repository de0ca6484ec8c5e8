//! The writing side: [`SqliteSink`].

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use millstream_core::{
    Delivered, Finding, OpenError, Outgoing, SharedLetterBox, Sink, SinkConnector, SinkError,
};
use tokio::sync::oneshot;

use crate::check::check;
use crate::database::Database;
use crate::error::Error;
use crate::letters::Kept;
use crate::publisher::Publisher;

/// Publishes to a queue in a database, which is made if it is not there.
///
/// A message is confirmed once its transaction is on the disk. Delay, priority, key and headers are honoured.
///
/// ```
/// # use millstream_core::{Delivered, Outgoing, Sink as _, SinkConnector as _};
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("orders.db");
/// let mut sink = millstream_sqlite::SqliteSink::new(path, "orders").open().await?;
/// let mut results = Vec::new();
/// sink.send(&[Outgoing::new("one").with_key("customer-7")], &mut results).await?;
/// assert_eq!(results, [Delivered::Confirmed]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct SqliteSink {
    path: PathBuf,
    queue: Arc<str>,
    group: Option<Arc<str>>,
}

impl SqliteSink {
    /// A sink for this queue in the database at this path.
    pub fn new(path: impl Into<PathBuf>, queue: &str) -> Self {
        Self {
            path: path.into(),
            queue: queue.into(),
            group: None,
        }
    }

    /// Writes for the readers of this group alone, where others read the queue too.
    #[must_use]
    pub fn group(mut self, group: &str) -> Self {
        self.group = Some(group.into());
        self
    }
}

impl SinkConnector for SqliteSink {
    type Sink = Publishing;

    fn letters(&self) -> Option<SharedLetterBox> {
        Some(Arc::new(Kept::in_queue(
            self.path.clone(),
            Arc::clone(&self.queue),
        )))
    }

    async fn open(&self) -> Result<Publishing, OpenError> {
        let (path, queue, group) = (self.path.clone(), Arc::clone(&self.queue), self.group.clone());
        let (reply, opened) = oneshot::channel();
        // Opening may wait for other processes, so it has a thread of its own.
        let start = move || -> Result<Publishing, Error> {
            let database = Database::at(&path)?;
            let publisher = database.publisher()?;
            Ok(Publishing {
                queue,
                group,
                publisher,
                _database: database,
            })
        };
        std::thread::Builder::new()
            .name("sqlite-open".to_owned())
            .spawn(move || reply.send(start()).ok())
            .map_err(|error| OpenError::Unavailable(error.to_string()))?;
        let opened = opened
            .await
            .map_err(|_| OpenError::Unavailable("the opening thread has ended".to_owned()))?;
        Ok(opened?)
    }

    async fn check(&self) -> Vec<Finding> {
        check(self.path.clone()).await
    }
}

/// An open [`SqliteSink`].
pub struct Publishing {
    queue: Arc<str>,
    group: Option<Arc<str>>,
    publisher: Arc<Publisher>,
    _database: Arc<Database>,
}

impl Sink for Publishing {
    async fn send(&mut self, messages: &[Outgoing], results: &mut Vec<Delivered>) -> Result<(), SinkError> {
        if messages.is_empty() {
            return Ok(());
        }
        results.extend(
            self.publisher
                .publish(&self.queue, self.group.as_ref(), messages.to_vec())
                .await
                .map_err(SinkError)?,
        );
        Ok(())
    }
}

impl fmt::Debug for Publishing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publishing")
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}
