//! A rate limit in a database: [`SqliteRates`].
//!
//! Processes that share the file share the limit. It has a table of its own, `millstream_rates`, with a row for each key
//! that is not idle. A turn is taken in a transaction, at the time of that.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::SystemTime;

use millstream_core::{Ask, BoxFuture, Bucket, RateError, RateStore, Turns};
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::oneshot;

use crate::database::{Database, Durability};
use crate::error::Error;

const TABLE: &str = "
CREATE TABLE IF NOT EXISTS millstream_rates (
    pipeline TEXT NOT NULL,
    key BLOB NOT NULL,
    at INTEGER NOT NULL,
    taken REAL NOT NULL,
    waiting REAL NOT NULL,
    idle_at INTEGER NOT NULL,
    PRIMARY KEY (pipeline, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS millstream_rates_idle_at ON millstream_rates (pipeline, idle_at);
";

/// Calls that may wait for the thread. The engine makes one at a time; more are those it has given up waiting for.
const WAITING: usize = 4;

/// Idle keys that are deleted in one transaction at most, for each that is asked for.
const SWEPT: usize = 2;

/// Keeps a pipeline's rate limit in a database, which is made if it is not there, for all processes of a machine.
///
/// What a loss of power undoes is a moment of the limit.
///
/// ```
/// # use millstream_core::RateStore as _;
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("limits.db");
/// use std::num::NonZeroU32;
/// use std::time::Duration;
/// use millstream_core::{Ask, Pace};
/// use millstream_sqlite::SqliteRates;
///
/// let pace = Pace { each: Duration::from_secs(3_600), burst: NonZeroU32::new(2).unwrap() };
/// let ask = Ask { key: "a".into(), pace, number: 3, returns: false };
/// let turns = SqliteRates::new(&path, "orders").take(&[ask]).await?;
/// assert_eq!(turns[0].now, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct SqliteRates {
    path: PathBuf,
    pipeline: Arc<str>,
    thread: Mutex<Option<SyncSender<Job>>>,
}

#[derive(Debug)]
struct Job {
    asks: Vec<Ask>,
    reply: oneshot::Sender<Result<Vec<Turns>, Error>>,
}

impl SqliteRates {
    /// The limit of this pipeline in the database at this path.
    pub fn new(path: impl AsRef<Path>, pipeline: &str) -> Self {
        Self {
            path: path.as_ref().to_owned(),
            pipeline: pipeline.into(),
            thread: Mutex::default(),
        }
    }

    /// Hands a job to the thread, which is started for the first one.
    fn give(&self, job: Job) -> Result<(), RateError> {
        let mut thread = self.thread.lock();
        let sender = match &mut *thread {
            Some(sender) => sender,
            none => none.insert(self.start()?),
        };
        sender.try_send(job).map_err(|error| {
            let path = self.path.display();
            if matches!(error, TrySendError::Disconnected(_)) {
                *thread = None;
                return RateError(format!("{path}: the thread of the rate limit has ended"));
            }
            RateError(format!("{path}: the disk does not keep up"))
        })
    }

    fn start(&self) -> Result<SyncSender<Job>, RateError> {
        let (sender, jobs) = sync_channel(WAITING);
        let worker = Worker {
            path: self.path.clone(),
            pipeline: Arc::clone(&self.pipeline),
            open: None,
        };
        std::thread::Builder::new()
            .name("sqlite-rates".to_owned())
            .spawn(move || worker.run(&jobs))
            .map_err(|error| RateError(format!("no thread for the rate limit: {error}")))?;
        Ok(sender)
    }
}

impl RateStore for SqliteRates {
    fn take<'a>(&'a self, asks: &'a [Ask]) -> BoxFuture<'a, Result<Vec<Turns>, RateError>> {
        Box::pin(async move {
            let (reply, turns) = oneshot::channel();
            let asks = asks.to_vec();
            self.give(Job { asks, reply })?;
            match turns.await {
                Ok(turns) => turns.map_err(|error| RateError(error.to_string())),
                Err(_) => Err(RateError("the thread of the rate limit has ended".to_owned())),
            }
        })
    }
}

/// The thread, which alone uses the connection.
struct Worker {
    path: PathBuf,
    pipeline: Arc<str>,
    open: Option<(Arc<Database>, Connection)>,
}

impl Worker {
    fn run(mut self, jobs: &Receiver<Job>) {
        for job in jobs {
            // Nobody waits for it any more, and so nobody would have its turns.
            if !job.reply.is_closed() {
                drop(job.reply.send(self.take(&job.asks)));
            }
        }
    }

    fn open(&mut self) -> Result<&(Arc<Database>, Connection), Error> {
        let open = match self.open.take() {
            Some(open) => open,
            None => {
                let database = Database::at(&self.path)?;
                let connection = database.connect(Durability::Order)?;
                database
                    .write(&connection, |connection| connection.execute_batch(TABLE))
                    .map_err(|error| database.error(error))?;
                (database, connection)
            }
        };
        Ok(self.open.insert(open))
    }

    fn take(&mut self, asks: &[Ask]) -> Result<Vec<Turns>, Error> {
        let pipeline = Arc::clone(&self.pipeline);
        let (database, connection) = self.open()?;
        let taken = database
            .write(connection, |connection| {
                // No other process takes a turn before this one is done.
                let now = now();
                sweep(connection, &pipeline, asks.len().saturating_mul(SWEPT), now)?;
                asks.iter()
                    .map(|ask| take(connection, &pipeline, ask, now))
                    .collect()
            })
            .map_err(|error: rusqlite::Error| database.error(error));
        // The next call makes what may be missing.
        if taken.is_err() {
            self.open = None;
        }
        taken
    }
}

fn take(connection: &Connection, pipeline: &str, ask: &Ask, now: u64) -> rusqlite::Result<Turns> {
    let mut bucket = connection
        .prepare_cached("SELECT at, taken, waiting FROM millstream_rates WHERE pipeline = ?1 AND key = ?2")?
        .query_row(params![pipeline, &ask.key[..]], |row| {
            Ok(Bucket {
                at: u64::try_from(row.get::<_, i64>(0)?).unwrap_or_default(),
                taken: row.get(1)?,
                waiting: row.get(2)?,
            })
        })
        .optional()?
        .unwrap_or_default();
    let turns = bucket.take(ask, now);
    connection
        .prepare_cached(
            "INSERT INTO millstream_rates (pipeline, key, at, taken, waiting, idle_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (pipeline, key) DO UPDATE SET
                 at = excluded.at, taken = excluded.taken, waiting = excluded.waiting, idle_at = excluded.idle_at",
        )?
        .execute(params![
            pipeline,
            &ask.key[..],
            whole(bucket.at),
            bucket.taken,
            bucket.waiting,
            whole(bucket.idle_at(ask.pace.each)),
        ])?;
    Ok(turns)
}

/// Deletes some of those that are idle.
fn sweep(connection: &Connection, pipeline: &str, most: usize, now: u64) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "DELETE FROM millstream_rates WHERE pipeline = ?1 AND key IN
             (SELECT key FROM millstream_rates WHERE pipeline = ?1 AND idle_at <= ?2 ORDER BY idle_at LIMIT ?3)",
        )?
        .execute(params![pipeline, whole(now), i64::try_from(most).unwrap_or(i64::MAX)])
        .map(drop)
}

/// Now, in microseconds since 1970: a time that every process on the machine agrees about.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
}

fn whole(micros: u64) -> i64 {
    i64::try_from(micros).unwrap_or(i64::MAX)
}
