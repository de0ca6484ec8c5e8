//! A queue without an engine: [`Queue`].

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use millstream_core::{Delivered, Outgoing};
use parking_lot::Mutex;
use rusqlite::{Connection, ErrorCode, ffi, params};

use crate::database::{Database, Durability};
use crate::dead::DeadLetters;
use crate::error::{Error, Problem};
use crate::group::Group;
use crate::publish;
use crate::row;
use crate::schema::SCHEMA;
use crate::stored::{Stored, stored};

/// A queue in a database: publishes, counts, and looks after what is in it.
///
/// Its calls block, for as long as other processes write, up to five seconds. It may be shared by threads.
///
/// ```
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("orders.db");
/// use millstream_core::Outgoing;
/// use millstream_sqlite::Queue;
///
/// let queue = Queue::open(&path, "orders")?;
/// queue.publish(&[Outgoing::new("one").with_key("customer-7"), Outgoing::new("two")])?;
/// assert_eq!(queue.counts()?.ready, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Queue {
    name: Arc<str>,
    database: Arc<Database>,
    pub(crate) connection: Mutex<Connection>,
}

/// How many messages are in which state, a message counting once for each group that has yet to read it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// May be handed out now.
    pub ready: u64,
    /// Wait for their time.
    pub delayed: u64,
    /// Are with a consumer.
    pub leased: u64,
    /// Were rejected, and are kept.
    pub dead: u64,
}

impl Queue {
    /// Opens a queue, and makes file and tables where they are not there; other tables are left alone.
    ///
    /// The file gets a write-ahead log, and with it two more files beside it while it is open.
    ///
    /// # Errors
    /// [`Error::is_refused`] if the file is no SQLite database, is damaged, or has tables of Millstream's names
    /// that are not those of this release; it is left as it was.
    pub fn open(path: impl AsRef<Path>, queue: &str) -> Result<Self, Error> {
        let database = Database::at(path.as_ref())?;
        let connection = Mutex::new(database.connect(Durability::Commit)?);
        Ok(Self {
            name: queue.into(),
            database,
            connection,
        })
    }

    /// Makes the tables in a database of the user's own, in its open transaction if there is one.
    ///
    /// The same as running [`SCHEMA`].
    ///
    /// # Errors
    /// SQLite's own.
    pub fn create(connection: &Connection) -> rusqlite::Result<()> {
        connection.execute_batch(SCHEMA)
    }

    /// Publishes in the user's own transaction: the messages are there if and when that commits.
    ///
    /// ```
    /// # use millstream_sqlite::{Queue, rusqlite::Connection};
    /// # use millstream_core::Outgoing;
    /// # let directory = tempfile::tempdir()?;
    /// # let path = directory.path().join("shop.db");
    /// let mut shop = Connection::open(&path)?;
    /// shop.execute_batch("CREATE TABLE orders (id INTEGER PRIMARY KEY, sku TEXT)")?;
    /// Queue::create(&shop)?;
    ///
    /// let sale = shop.transaction()?;
    /// sale.execute("INSERT INTO orders (sku) VALUES ('anvil')", [])?;
    /// Queue::publish_in(&sale, "orders", &[Outgoing::new(r#"{"sku": "anvil"}"#)])?;
    /// sale.commit()?;
    ///
    /// assert_eq!(Queue::open(&path, "orders")?.counts()?.ready, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// SQLite's own; then some of the messages may be in the transaction, which should be rolled back.
    pub fn publish_in(connection: &Connection, queue: &str, messages: &[Outgoing]) -> rusqlite::Result<()> {
        let mut results = Vec::with_capacity(messages.len());
        publish::insert(connection, queue, None, messages, &mut results)?;
        if results.iter().all(|result| *result == Delivered::Confirmed) {
            return Ok(());
        }
        Err(rusqlite::Error::SqliteFailure(
            ffi::Error {
                code: ErrorCode::TooBig,
                extended_code: ffi::SQLITE_TOOBIG,
            },
            None,
        ))
    }

    /// Publishes all of these, or none; they are on the disk when it returns.
    ///
    /// # Errors
    /// [`Error::is_too_big`] if one is larger than SQLite stores, [`Error::is_busy`] if others kept the
    /// database locked.
    pub fn publish(&self, messages: &[Outgoing]) -> Result<(), Error> {
        self.write(|connection| Self::publish_in(connection, &self.name, messages))?;
        self.database.wake();
        Ok(())
    }

    /// How many messages are in which state, over all groups.
    ///
    /// # Errors
    /// As for every call.
    pub fn counts(&self) -> Result<Counts, Error> {
        self.read(|connection| counts(connection, &self.name, None))
    }

    /// How many messages of one group are in which state.
    ///
    /// # Errors
    /// As for every call.
    pub fn group_counts(&self, group: &str) -> Result<Counts, Error> {
        self.read(|connection| counts(connection, &self.name, Some(group)))
    }

    /// The groups that read the queue, by name.
    ///
    /// # Errors
    /// As for every call.
    pub fn groups(&self) -> Result<Vec<String>, Error> {
        self.read(|connection| publish::groups(connection, &self.name))
    }

    /// Enters a group before it first reads, so that it misses nothing that is published from now on.
    ///
    /// # Errors
    /// As for every call.
    pub fn add_group(&self, group: &str) -> Result<(), Error> {
        let connection = self.connection.lock();
        self.group(group)
            .enter(&self.database, &connection, |_| Ok(()))
            .map_err(|problem| self.database.error(problem))
    }

    /// Ends a group that reads no more, with the messages that it has not read.
    ///
    /// One that still reads enters itself again, and begins with what the queue holds.
    ///
    /// # Errors
    /// As for every call.
    pub fn remove_group(&self, group: &str) -> Result<(), Error> {
        self.write(|connection| self.group(group).remove(connection))
    }

    /// Messages that are not dead, those of every group, without leasing them: at most `limit` of those with
    /// numbers above `after`, in the order in which they were published.
    ///
    /// # Errors
    /// As for every call.
    pub fn list(&self, after: u64, limit: usize) -> Result<Vec<Stored>, Error> {
        self.read(|connection| stored(connection, &self.name, after, limit))
    }

    /// Removes messages by their numbers, leased ones excepted; returns how many it has removed.
    ///
    /// # Errors
    /// As for every call.
    pub fn remove(&self, positions: &[u64]) -> Result<usize, Error> {
        self.each(
            positions,
            &["DELETE FROM millstream_messages WHERE id = ?1 AND queue = ?2 AND lease IS NULL"],
        )
    }

    /// The dead letters of the queue, oldest first.
    ///
    /// ```
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let queue = millstream_sqlite::Queue::open(directory.path().join("orders.db"), "orders")?;
    /// for letter in queue.dead() {
    ///     let letter = letter?;
    ///     println!("{}: {} ({})", letter.position, letter.error, letter.reason);
    /// }
    /// # Ok::<(), millstream_sqlite::Error>(())
    /// ```
    pub fn dead(&self) -> DeadLetters<'_> {
        DeadLetters::new(self, &self.name)
    }

    /// Puts dead letters back into the queue, for the group that gave them up, as if just published; returns
    /// how many it has put back.
    ///
    /// # Errors
    /// As for every call.
    pub fn replay(&self, positions: &[u64]) -> Result<usize, Error> {
        let replayed = self.each(
            positions,
            &[
                "INSERT INTO millstream_messages (queue, grp, key, priority, headers, payload)
                     SELECT queue, grp, key, priority, headers, payload
                     FROM millstream_dead WHERE id = ?1 AND queue = ?2",
                "DELETE FROM millstream_dead WHERE id = ?1 AND queue = ?2",
            ],
        )?;
        self.database.wake();
        Ok(replayed)
    }

    /// Deletes dead letters for good; returns how many there were.
    ///
    /// # Errors
    /// As for every call.
    pub fn purge(&self, positions: &[u64]) -> Result<usize, Error> {
        self.each(
            positions,
            &["DELETE FROM millstream_dead WHERE id = ?1 AND queue = ?2"],
        )
    }

    /// The number that this query gives for the queue.
    pub(crate) fn last(&self, sql: &str) -> Result<u64, Error> {
        self.read(|connection| connection.query_row(sql, [&*self.name], |row| Ok(row::position(row.get(0)?))))
    }

    fn group(&self, name: &str) -> Group {
        Group {
            queue: self.name.to_string(),
            name: name.to_owned(),
        }
    }

    /// Runs these for each row, and counts the rows that the last of them changed.
    fn each(&self, positions: &[u64], statements: &[&str]) -> Result<usize, Error> {
        self.write(|connection| -> rusqlite::Result<usize> {
            let mut done = 0;
            for &position in positions {
                let mut changed = 0;
                for sql in statements {
                    changed = connection
                        .prepare_cached(sql)?
                        .execute(params![row::id(position), &*self.name])?;
                }
                done += changed;
            }
            Ok(done)
        })
    }

    fn write<T, E>(&self, work: impl FnOnce(&Connection) -> Result<T, E>) -> Result<T, Error>
    where
        E: Into<Problem> + From<rusqlite::Error>,
    {
        let connection = self.connection.lock();
        self.database
            .write(&connection, work)
            .map_err(|error| self.database.error(error))
    }

    pub(crate) fn read<T>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, rusqlite::Error>,
    ) -> Result<T, Error> {
        work(&self.connection.lock()).map_err(|error| self.database.error(Problem::from(error)))
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("name", &self.name)
            .field("database", &self.database)
            .finish_non_exhaustive()
    }
}

/// Counts all states in one statement, and so of one moment: what goes from one state to another meanwhile would be in
/// none, and a queue that is not empty would look so.
fn counts(connection: &Connection, queue: &str, group: Option<&str>) -> rusqlite::Result<Counts> {
    connection
        .prepare_cached(
            "SELECT
                 (SELECT count(*) FROM millstream_messages INDEXED BY millstream_ready
                  WHERE queue = ?1 AND (?2 IS NULL OR grp = ?2) AND lease IS NULL AND not_before = 0),
                 (SELECT count(*) FROM millstream_messages INDEXED BY millstream_delayed
                  WHERE queue = ?1 AND (?2 IS NULL OR grp = ?2) AND not_before > 0),
                 (SELECT count(*) FROM millstream_sessions AS s
                  CROSS JOIN millstream_messages AS m INDEXED BY millstream_leased
                  WHERE s.queue = ?1 AND (?2 IS NULL OR s.grp = ?2) AND m.lease = s.token),
                 (SELECT count(*) FROM millstream_dead INDEXED BY millstream_dead_queue
                  WHERE queue = ?1 AND (?2 IS NULL OR grp = ?2))",
        )?
        .query_row(params![queue, group], |row| {
            let number = |column| {
                row.get(column)
                    .map(|number: i64| u64::try_from(number).unwrap_or(0))
            };
            Ok(Counts {
                ready: number(0)?,
                delayed: number(1)?,
                leased: number(2)?,
                dead: number(3)?,
            })
        })
}
