//! One database file as this process uses it: connections to it, and whose turn it is to write.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use millstream_core::rt;
use parking_lot::{Mutex, MutexGuard};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};

use crate::error::{Error, Problem, Refusal};
use crate::inbox::Inbox;
use crate::publisher::Publisher;
use crate::schema::{self, Found, SCHEMA};

/// How long a writer waits for the writers of other processes.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a first opening looks for damage; what it has not seen by then shows itself when it is read.
const INSPECTION: Duration = Duration::from_millis(100);

/// A small cache, since a queue reads what it has just written, and an idle host stays small; and a log that is
/// carried over less often than SQLite's own choice of 1000 pages, because each time flushes the disk twice.
const PRAGMAS: &str = "
    PRAGMA cache_size = -1024;
    PRAGMA temp_store = MEMORY;
    PRAGMA wal_autocheckpoint = 4000;
    PRAGMA journal_size_limit = 16777216;";

/// The databases that this process has open, one each however often it is named.
static OPEN: Mutex<Vec<Weak<Database>>> = Mutex::new(Vec::new());

/// What must survive a loss of power.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Durability {
    /// Every commit: publishes.
    Commit,
    /// Consistency alone: a settlement that is undone repeats a message and loses none.
    Order,
}

/// A database file.
pub(crate) struct Database {
    path: PathBuf,
    /// Writers of one process queue up here, where they are woken in turn; those of others must be polled for.
    turn: Mutex<()>,
    inspected: Mutex<bool>,
    consumers: Mutex<Vec<Weak<Inbox>>>,
    publisher: Mutex<Weak<Publisher>>,
}

impl Database {
    /// The database at this path, whether or not there is a file yet.
    pub(crate) fn at(path: &Path) -> Result<Arc<Self>, Error> {
        let path = resolve(path).map_err(|problem| Error::new(path, problem))?;
        let mut open = OPEN.lock();
        open.retain(|known| known.strong_count() > 0);
        if let Some(known) = open
            .iter()
            .filter_map(Weak::upgrade)
            .find(|known| known.path == path)
        {
            return Ok(known);
        }
        let database = Arc::new(Self {
            path,
            turn: Mutex::new(()),
            inspected: Mutex::new(false),
            consumers: Mutex::default(),
            publisher: Mutex::default(),
        });
        open.push(Arc::downgrade(&database));
        Ok(database)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// An error that names this database.
    pub(crate) fn error(&self, problem: impl Into<Problem>) -> Error {
        Error::new(&self.path, problem)
    }

    /// A connection to it, which has the tables by then.
    pub(crate) fn connect(&self, durability: Durability) -> Result<Connection, Error> {
        self.try_connect(durability)
            .map_err(|problem| self.error(problem))
    }

    fn try_connect(&self, durability: Durability) -> Result<Connection, Problem> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(&self.path, flags)?;
        be_patient(&mut connection)?;
        connection.set_prepared_statement_cache_capacity(48);
        // Plans are fixed by the statement, so that SQLite does not plan it again for each new value.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        connection.execute_batch(PRAGMAS)?;
        let found = schema::look(&connection)?;
        self.inspect(&mut connection, found)?;
        write_ahead(&connection)?;
        connection.execute_batch(match durability {
            Durability::Commit => "PRAGMA synchronous = FULL",
            Durability::Order => "PRAGMA synchronous = NORMAL",
        })?;
        if found == Found::Incomplete {
            let turn = self.turn.lock();
            let transaction = Transaction::new_unchecked(&connection, TransactionBehavior::Immediate)?;
            // Another process may have been here first, with a release of its own.
            schema::look(&transaction)?;
            transaction.execute_batch(SCHEMA)?;
            transaction.commit()?;
            MutexGuard::unlock_fair(turn);
        }
        Ok(connection)
    }

    /// Looks for damage, once a process and not for long.
    fn inspect(&self, connection: &mut Connection, found: Found) -> Result<(), Problem> {
        let mut inspected = self.inspected.lock();
        if *inspected || found == Found::Incomplete {
            return Ok(());
        }
        let until = rt::now() + INSPECTION;
        connection.progress_handler(10_000, Some(move || rt::now() >= until))?;
        let verdict = connection.query_row("PRAGMA quick_check('millstream_messages')", [], |row| {
            row.get::<_, String>(0)
        });
        connection.progress_handler(0, None::<fn() -> bool>)?;
        match verdict {
            Ok(word) if word == "ok" => {}
            Ok(damage) => return Err(Refusal::Damaged(damage).into()),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => {}
            Err(error) => return Err(error.into()),
        }
        *inspected = true;
        Ok(())
    }

    /// Runs `work` in a write transaction: all of it, or none.
    pub(crate) fn write<T, E: From<rusqlite::Error>>(
        &self,
        connection: &Connection,
        work: impl FnOnce(&Connection) -> Result<T, E>,
    ) -> Result<T, E> {
        let turn = self.turn.lock();
        let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
        let done = work(&transaction)?;
        transaction.commit()?;
        MutexGuard::unlock_fair(turn);
        Ok(done)
    }

    /// Has `consumer` woken by publishes of this process.
    pub(crate) fn listen(&self, consumer: &Arc<Inbox>) {
        let mut consumers = self.consumers.lock();
        consumers.retain(|known| known.strong_count() > 0);
        consumers.push(Arc::downgrade(consumer));
    }

    /// Tells the consumers of this process that there may be something for them.
    pub(crate) fn wake(&self) {
        for consumer in self.consumers.lock().iter().filter_map(Weak::upgrade) {
            consumer.wake();
        }
    }

    /// The publisher that all sinks of this process share, so that their messages share transactions.
    pub(crate) fn publisher(self: &Arc<Self>) -> Result<Arc<Publisher>, Error> {
        let mut publisher = self.publisher.lock();
        if let Some(running) = publisher.upgrade() {
            return Ok(running);
        }
        let started = Publisher::start(self)?;
        *publisher = Arc::downgrade(&started);
        Ok(started)
    }
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// Milliseconds since 1970.
pub(crate) fn millis(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Now, in milliseconds since 1970: a time that every process on the machine agrees about.
pub(crate) fn now() -> i64 {
    millis(SystemTime::now())
}

/// A path that names the same file the same way whoever asks.
fn resolve(path: &Path) -> Result<PathBuf, Problem> {
    let Some(name) = path.file_name() else {
        return Err(Refusal::NoFile.into());
    };
    if name == ":memory:" {
        return Err(Refusal::NoFile.into());
    }
    if path.is_dir() {
        return Err(Refusal::Directory.into());
    }
    if let Ok(existing) = path.canonicalize() {
        return Ok(existing);
    }
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let directory = directory.canonicalize().map_err(|_| Refusal::NoDirectory)?;
    Ok(directory.join(name))
}

/// Whether there is, or could be, a database with the tables at this path; it is left as it is.
pub(crate) fn examine(path: &Path) -> Result<(), Error> {
    let look = || {
        let path = resolve(path)?;
        if !path.exists() {
            return Ok(());
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(&path, flags)?;
        be_patient(&mut connection)?;
        schema::look(&connection).map(drop)
    };
    look().map_err(|problem| Error::new(path, problem))
}

/// Waits for other processes in short naps of random length, so that nobody is passed over for long.
fn be_patient(connection: &mut Connection) -> rusqlite::Result<()> {
    let mut until = None;
    connection.busy_handler(Some(move |count| {
        let now = rt::now();
        if count == 0 {
            until = Some(now + PATIENCE);
        }
        let nap = if count < 4 { 100 } else { 1000 };
        std::thread::sleep(Duration::from_micros(fastrand::u64(nap / 4..nap)));
        until.is_some_and(|until| now < until)
    }))
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
    )
}

fn write_ahead(connection: &Connection) -> Result<(), Problem> {
    let mode = |sql| connection.query_row(sql, [], |row| row.get::<_, String>(0));
    if mode("PRAGMA journal_mode")? == "wal" {
        return Ok(());
    }
    // Others that open the file at the same time are in the way here, and SQLite does not wait for them.
    let until = rt::now() + PATIENCE;
    let changed = loop {
        match mode("PRAGMA journal_mode = WAL") {
            Err(error) if is_busy(&error) && rt::now() < until => {
                std::thread::sleep(Duration::from_millis(1));
            }
            other => break other?,
        }
    };
    match changed {
        wal if wal == "wal" => Ok(()),
        other => Err(Refusal::Journal(other).into()),
    }
}
