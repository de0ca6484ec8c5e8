//! The reading side: [`SqliteConnector`], its [`Leasing`] source and its [`Settling`] acknowledger.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use millstream_core::{
    Acknowledger, Capabilities, Chunk, Connector, Credit, EngineHandle, Facts, Finding, Ids, OpenError,
    Outcome, Read, Settle, SharedLetterBox, SharedSinkConnector, Source, SourceError,
};
use tokio::sync::oneshot;

use crate::check::check;
use crate::consumer::Consumer;
use crate::inbox::{Found, Inbox};
use crate::letters::Kept;
use crate::sink::SqliteSink;

/// The shortest lease, which is renewed three times in that time, and the longest.
const LEASE: (Duration, Duration) = (Duration::from_millis(30), Duration::from_hours(24 * 365));
/// The shortest wait between polls, and the longest.
const POLL: (Duration, Duration) = (Duration::from_millis(1), Duration::from_hours(24));

/// Reads a queue in a database, which is made if it is not there.
///
/// Any number of processes may read one queue. Each message goes to one of those that read for the same
/// [`group`](Self::group); every group sees every message.
///
/// ```
/// # use millstream_core::{Acknowledger as _, Chunk, Connector as _, Credit, EngineHandle, Outgoing};
/// # use millstream_core::{Settle, Settlement, Source as _};
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("orders.db");
/// # let (engine, _) = EngineHandle::detached();
/// use millstream_sqlite::{Queue, SqliteConnector};
///
/// Queue::open(&path, "orders")?.publish(&[Outgoing::new("one")])?;
///
/// let (mut source, mut acknowledger) = SqliteConnector::new(&path, "orders").open(engine).await?;
/// let mut chunk = Chunk::new();
/// source.read(Credit { messages: 10, bytes: 1 << 20 }, &mut chunk).await?;
/// let (ticket, message) = chunk.drain().next().ok_or("it was published")?;
/// assert_eq!(message.payload, "one");
///
/// let mut outcomes = Vec::new();
/// acknowledger.settle(&[Settle { ticket, settlement: Settlement::Ack }], &mut outcomes).await;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct SqliteConnector {
    settings: Settings,
    generations: Arc<AtomicU32>,
}

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) path: PathBuf,
    pub(crate) queue: String,
    pub(crate) group: String,
    pub(crate) lease: Duration,
    pub(crate) poll: Duration,
    pub(crate) ordered: bool,
}

impl SqliteConnector {
    /// Reads this queue in the database at this path, for the group `default`, with a lease of 30 seconds and
    /// a poll every 20 milliseconds.
    pub fn new(path: impl Into<PathBuf>, queue: &str) -> Self {
        Self {
            settings: Settings {
                path: path.into(),
                queue: queue.to_owned(),
                group: "default".to_owned(),
                lease: Duration::from_secs(30),
                poll: Duration::from_millis(20),
                ordered: false,
            },
            generations: Arc::default(),
        }
    }

    /// Reads for this group.
    ///
    /// A new group begins with what the queue still holds. It keeps everything that is published until it has
    /// read it; [`Queue::remove_group`](crate::Queue::remove_group) ends one that reads no more.
    #[must_use]
    pub fn group(mut self, group: &str) -> Self {
        self.settings.group = group.to_owned();
        self
    }

    /// How long a process that hangs keeps its messages; one that has ended loses them at once.
    ///
    /// Renewed while the process lives, however long a message takes. From 30 milliseconds to a year.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.settings.lease = lease.clamp(LEASE.0, LEASE.1);
        self
    }

    /// How often to look for messages of other processes while there are none; those of this one are seen at
    /// once. From a millisecond to a day.
    #[must_use]
    pub fn poll(mut self, poll: Duration) -> Self {
        self.settings.poll = poll.clamp(POLL.0, POLL.1);
        self
    }

    /// Whether to hold the order of each key across processes (P3): no message goes out while an earlier one
    /// of its key is out to another process or is delayed.
    ///
    /// All processes of a group must agree about it.
    #[must_use]
    pub fn ordered(mut self, ordered: bool) -> Self {
        self.settings.ordered = ordered;
        self
    }
}

impl Connector for SqliteConnector {
    type Source = Leasing;
    type Acknowledger = Settling;

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            delay: true,
            keeps_rejected: true,
            counts_deliveries: true,
            orders_keys: self.settings.ordered,
            ids: Ids::Position,
            ..Capabilities::default()
        }
    }

    fn letters(&self) -> Option<SharedLetterBox> {
        let Settings {
            path, queue, group, ..
        } = &self.settings;
        Some(Arc::new(Kept::beside(path.clone(), queue, group)))
    }

    fn replay_sink(&self) -> Option<SharedSinkConnector> {
        let Settings {
            path, queue, group, ..
        } = &self.settings;
        Some(Arc::new(SqliteSink::new(path, queue).group(group)))
    }

    async fn open(&self, engine: EngineHandle) -> Result<(Leasing, Settling), OpenError> {
        let (settings, generations) = (self.settings.clone(), Arc::clone(&self.generations));
        let (reply, opened) = oneshot::channel();
        let serve = move || {
            let consumer = match Consumer::open(settings, engine, generations) {
                Ok(consumer) => consumer,
                Err(error) => return drop(reply.send(Err(error))),
            };
            let (source, acknowledger) = (Leasing(consumer.inbox()), Settling(consumer.inbox()));
            // If nobody waits for them any more, both are dropped here, and the thread ends cleanly.
            reply.send(Ok((source, acknowledger))).ok();
            consumer.run();
        };
        std::thread::Builder::new()
            .name("sqlite-consume".to_owned())
            .spawn(serve)
            .map_err(|error| OpenError::Unavailable(error.to_string()))?;
        match opened.await {
            Ok(opened) => Ok(opened?),
            Err(_) => Err(OpenError::Unavailable(
                "the consuming thread has ended".to_owned(),
            )),
        }
    }

    async fn check(&self, _: &Facts<'_>) -> Vec<Finding> {
        check(self.settings.path.clone()).await
    }
}

/// The source of a [`SqliteConnector`].
///
/// Dropping it and its acknowledger ends the session: what was read and not settled is free for others at
/// once, with the delivery counted. The last of the two to be dropped waits for that, but no longer than a quarter
/// of a second.
pub struct Leasing(Arc<Inbox>);

impl Source for Leasing {
    async fn read(&mut self, credit: Credit, chunk: &mut Chunk) -> Result<Read, SourceError> {
        loop {
            match self.0.read(credit, chunk) {
                Found::Messages => return Ok(Read::Messages),
                Found::Ended => return Ok(Read::Ended),
                Found::Failed => return Err(SourceError("the consuming thread has ended".to_owned())),
                Found::Nothing => {
                    let _demand = Demand(&self.0);
                    self.0.readable().await;
                }
            }
        }
    }

    fn pause(&mut self) {
        self.0.withdraw();
    }

    /// Stops fetching. What was fetched and not read is released, so `read` ends at once.
    fn drain(&mut self) {
        self.0.drain();
    }
}

impl Drop for Leasing {
    fn drop(&mut self) {
        self.0.leave_source();
    }
}

impl fmt::Debug for Leasing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Leasing")
    }
}

/// Demand that lasts as long as somebody waits for it to be met.
struct Demand<'a>(&'a Inbox);

impl Drop for Demand<'_> {
    fn drop(&mut self) {
        self.0.withdraw();
    }
}

/// The acknowledger of a [`SqliteConnector`].
///
/// It keeps nothing back: settlements that arrive while a transaction runs share the next one.
pub struct Settling(Arc<Inbox>);

impl Acknowledger for Settling {
    async fn settle(&mut self, settlements: &[Settle], outcomes: &mut Vec<(Settle, Outcome)>) {
        let answer = match self.0.settle(settlements.to_vec()) {
            Some(answer) => answer.await.unwrap_or_default(),
            None => Vec::new(),
        };
        let mut answer = answer.into_iter();
        // What has no answer has no thread either: the session is over, and its messages are free.
        outcomes.extend(
            settlements
                .iter()
                .map(|settle| (settle.clone(), answer.next().unwrap_or(Outcome::Stale))),
        );
    }

    async fn flush(&mut self, _: &mut Vec<(Settle, Outcome)>) {}
}

impl Drop for Settling {
    fn drop(&mut self) {
        self.0.leave_acknowledger();
    }
}

impl fmt::Debug for Settling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Settling")
    }
}
