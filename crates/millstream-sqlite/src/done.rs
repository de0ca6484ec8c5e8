//! A store of ids in a database: [`SqliteStore`].
//!
//! Processes that share the file share what it knows. It has a table of its own, `millstream_done`, beside those of
//! queues, which may be in the same file.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use bytes::Bytes;
use millstream_core::{BoxFuture, DedupError, DedupStore, DeduplicateSpec};
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::oneshot;

use crate::database::{self, Database, Durability};
use crate::error::Error;

const TABLE: &str = "
CREATE TABLE IF NOT EXISTS millstream_done (
    pipeline TEXT NOT NULL,
    id BLOB NOT NULL,
    until INTEGER NOT NULL,
    PRIMARY KEY (pipeline, id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS millstream_done_until ON millstream_done (pipeline, until);
";

/// Calls that may wait for the thread. The engine makes two at a time; more are those it has given up waiting for.
const WAITING: usize = 16;

/// How much more than the bound the table may hold before it is cut, as a part of the bound.
const SLACK: usize = 16;

/// Ids that are deleted in one transaction at most, for each that is entered.
const SWEPT: usize = 2;

/// Remembers ids in a database, which is made if it is not there. An entry is on the disk before it counts.
///
/// ```
/// # use millstream_core::DedupStore as _;
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("orders.db");
/// use std::time::Duration;
/// use millstream_sqlite::SqliteStore;
///
/// let store = SqliteStore::new(&path, "orders");
/// store.enter(&["7".into()], Duration::from_secs(600)).await?;
/// assert_eq!(store.seen(&["7".into(), "8".into()]).await?, [true, false]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    pipeline: Arc<str>,
    most: usize,
    thread: Mutex<Option<SyncSender<Job>>>,
}

#[derive(Debug)]
enum Job {
    Seen(Vec<Bytes>, oneshot::Sender<Result<Vec<bool>, Error>>),
    Enter(Vec<Bytes>, Duration, oneshot::Sender<Result<usize, Error>>),
}

impl SqliteStore {
    /// The store of this pipeline in the database at this path.
    pub fn new(path: impl AsRef<Path>, pipeline: &str) -> Self {
        Self {
            path: path.as_ref().to_owned(),
            pipeline: pipeline.into(),
            most: DeduplicateSpec::MAX_ENTRIES.get(),
            thread: Mutex::default(),
        }
    }

    /// How many ids it remembers at most, give or take a sixteenth: those whose time is over first are forgotten for
    /// new ones.
    #[must_use]
    pub const fn max_entries(mut self, most: NonZeroUsize) -> Self {
        self.most = most.get();
        self
    }

    /// Hands a job to the thread, which is started for the first one.
    fn give(&self, job: Job) -> Result<(), DedupError> {
        let mut thread = self.thread.lock();
        let sender = match &mut *thread {
            Some(sender) => sender,
            none => none.insert(self.start()?),
        };
        sender.try_send(job).map_err(|error| {
            let path = self.path.display();
            if matches!(error, TrySendError::Disconnected(_)) {
                *thread = None;
                return DedupError(format!("{path}: the thread of ids has ended"));
            }
            DedupError(format!("{path}: the disk does not keep up"))
        })
    }

    fn start(&self) -> Result<SyncSender<Job>, DedupError> {
        let (sender, jobs) = sync_channel(WAITING);
        let worker = Worker {
            path: self.path.clone(),
            pipeline: Arc::clone(&self.pipeline),
            most: self.most,
            open: None,
            uncounted: self.most,
        };
        std::thread::Builder::new()
            .name("sqlite-done".to_owned())
            .spawn(move || worker.run(&jobs))
            .map_err(|error| DedupError(format!("no thread for ids: {error}")))?;
        Ok(sender)
    }
}

/// What the thread answers.
async fn answer<T>(answer: oneshot::Receiver<Result<T, Error>>) -> Result<T, DedupError> {
    match answer.await {
        Ok(answer) => answer.map_err(|error| DedupError(error.to_string())),
        Err(_) => Err(DedupError("the thread of ids has ended".to_owned())),
    }
}

impl DedupStore for SqliteStore {
    fn seen<'a>(&'a self, ids: &'a [Bytes]) -> BoxFuture<'a, Result<Vec<bool>, DedupError>> {
        Box::pin(async move {
            let (reply, seen) = oneshot::channel();
            self.give(Job::Seen(ids.to_vec(), reply))?;
            answer(seen).await
        })
    }

    fn enter<'a>(&'a self, ids: &'a [Bytes], window: Duration) -> BoxFuture<'a, Result<usize, DedupError>> {
        Box::pin(async move {
            let (reply, entered) = oneshot::channel();
            self.give(Job::Enter(ids.to_vec(), window, reply))?;
            answer(entered).await
        })
    }
}

/// The thread, which alone uses the connection.
struct Worker {
    path: PathBuf,
    pipeline: Arc<str>,
    most: usize,
    open: Option<(Arc<Database>, Connection)>,
    /// Ids entered since they were counted last.
    uncounted: usize,
}

impl Worker {
    fn run(mut self, jobs: &Receiver<Job>) {
        // Whoever asked may have given up waiting.
        for job in jobs {
            match job {
                Job::Seen(ids, reply) => drop(reply.send(self.seen(&ids))),
                Job::Enter(ids, window, reply) => drop(reply.send(self.enter(&ids, window))),
            }
        }
    }

    fn open(&mut self) -> Result<&(Arc<Database>, Connection), Error> {
        let open = match self.open.take() {
            Some(open) => open,
            None => {
                let database = Database::at(&self.path)?;
                let connection = database.connect(Durability::Commit)?;
                database
                    .write(&connection, |connection| connection.execute_batch(TABLE))
                    .map_err(|error| database.error(error))?;
                (database, connection)
            }
        };
        Ok(self.open.insert(open))
    }

    fn seen(&mut self, ids: &[Bytes]) -> Result<Vec<bool>, Error> {
        let pipeline = Arc::clone(&self.pipeline);
        let (database, connection) = self.open()?;
        look(connection, &pipeline, ids).map_err(|error| database.error(error))
    }

    fn enter(&mut self, ids: &[Bytes], window: Duration) -> Result<usize, Error> {
        let (pipeline, most) = (Arc::clone(&self.pipeline), self.most);
        let uncounted = self.uncounted.saturating_add(ids.len());
        let count = uncounted.saturating_mul(SLACK) >= most;
        let (database, connection) = self.open()?;
        let now = database::now();
        let until = now.saturating_add(i64::try_from(window.as_millis()).unwrap_or(i64::MAX));
        let forgotten = database
            .write(connection, |connection| {
                insert(connection, &pipeline, ids, until)?;
                sweep(connection, &pipeline, ids.len().saturating_mul(SWEPT), now)?;
                if count {
                    cut(connection, &pipeline, most)
                } else {
                    Ok(0)
                }
            })
            .map_err(|error: rusqlite::Error| database.error(error))?;
        self.uncounted = if count { 0 } else { uncounted };
        Ok(forgotten)
    }
}

fn look(connection: &Connection, pipeline: &str, ids: &[Bytes]) -> rusqlite::Result<Vec<bool>> {
    let now = database::now();
    let transaction = connection.unchecked_transaction()?;
    let mut seen = Vec::with_capacity(ids.len());
    {
        let mut statement = transaction
            .prepare_cached("SELECT 1 FROM millstream_done WHERE pipeline = ?1 AND id = ?2 AND until > ?3")?;
        for id in ids {
            let found = statement
                .query_row(params![pipeline, &id[..], now], |_| Ok(()))
                .optional()?;
            seen.push(found.is_some());
        }
    }
    transaction.commit()?;
    Ok(seen)
}

fn insert(connection: &Connection, pipeline: &str, ids: &[Bytes], until: i64) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO millstream_done (pipeline, id, until) VALUES (?1, ?2, ?3)
         ON CONFLICT (pipeline, id) DO UPDATE SET until = excluded.until",
    )?;
    for id in ids {
        statement.execute(params![pipeline, &id[..], until])?;
    }
    Ok(())
}

/// Deletes some of those whose time is over.
fn sweep(connection: &Connection, pipeline: &str, most: usize, now: i64) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "DELETE FROM millstream_done WHERE pipeline = ?1 AND id IN
             (SELECT id FROM millstream_done WHERE pipeline = ?1 AND until <= ?2 ORDER BY until LIMIT ?3)",
        )?
        .execute(params![pipeline, now, i64::try_from(most).unwrap_or(i64::MAX)])
        .map(drop)
}

/// Deletes what is beyond the bound, and says how many that were.
fn cut(connection: &Connection, pipeline: &str, most: usize) -> rusqlite::Result<usize> {
    let entries: i64 = connection
        .prepare_cached("SELECT count(*) FROM millstream_done WHERE pipeline = ?1")?
        .query_row(params![pipeline], |row| row.get(0))?;
    let surplus = entries.saturating_sub(i64::try_from(most).unwrap_or(i64::MAX));
    if surplus <= 0 {
        return Ok(0);
    }
    connection
        .prepare_cached(
            "DELETE FROM millstream_done WHERE pipeline = ?1 AND id IN
             (SELECT id FROM millstream_done WHERE pipeline = ?1 ORDER BY until LIMIT ?2)",
        )?
        .execute(params![pipeline, surplus])
}
