//! Who holds which leases: [`Session`], and the end of those whose process has ended.
//!
//! A session is one row with a token and a time of expiry, whatever number of messages it leases, and one
//! lock file beside the database, which the operating system unlocks the moment the process ends. Whoever
//! gets that lock may free the session's rows at once; where there are no such locks, or the process hangs,
//! the time of expiry decides.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, params};

use crate::database::{Database, now};
use crate::error::Error;
use crate::group::Group;

/// A right to lease messages of one queue for one group.
#[derive(Debug)]
pub(crate) struct Session {
    /// Marks the rows that are leased by it; never used again.
    pub(crate) token: i64,
    lease: Duration,
    /// Held for as long as the session lives.
    lock: Option<File>,
    file: PathBuf,
}

impl Session {
    /// Opens one, and enters the group for the queue.
    pub(crate) fn open(
        database: &Database,
        connection: &Connection,
        group: &Group,
        lease: Duration,
    ) -> Result<Self, Error> {
        let opened = group.enter(database, connection, |connection| {
            connection
                .prepare_cached(
                    "INSERT INTO millstream_sessions (queue, grp, expires_at, holder) VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute(params![group.queue, group.name, expiry(lease), format!("process {}", std::process::id())])?;
            let token = connection.last_insert_rowid();
            // Locked before anyone can see the row, so that nobody takes the session for dead.
            let file = lock_file(database.path(), token);
            let lock = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&file)?;
            let lock = match lock.try_lock() {
                Ok(()) => Some(lock),
                Err(TryLockError::WouldBlock) => {
                    return Err(std::io::Error::from(std::io::ErrorKind::ResourceBusy).into());
                }
                // A file system without locks: then nobody else can take it either, and expiry decides.
                Err(TryLockError::Error(_)) => None,
            };
            Ok(Self { token, lease, lock, file })
        });
        opened.map_err(|problem| database.error(problem))
    }

    /// Whether it still holds its rows.
    pub(crate) fn is_alive(&self, connection: &Connection) -> rusqlite::Result<bool> {
        connection
            .prepare_cached("SELECT 1 FROM millstream_sessions WHERE token = ?1")?
            .exists([self.token])
    }

    /// Puts its expiry off.
    pub(crate) fn renew(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection
            .prepare_cached("UPDATE millstream_sessions SET expires_at = ?2 WHERE token = ?1")?
            .execute([self.token, expiry(self.lease)])?;
        Ok(())
    }

    /// Ends it: what it still leases is anyone's.
    ///
    /// If that fails, the lock file stays, unlocked: the next session to look frees the rows at once.
    pub(crate) fn close(self, database: &Database, connection: &Connection) -> rusqlite::Result<()> {
        database.write(connection, |connection| end(connection, self.token))?;
        self.abandon();
        Ok(())
    }

    /// Leaves behind a session that another has ended.
    pub(crate) fn abandon(self) {
        // Its name goes before the lock does, or else another could lock a file that no longer means anything.
        std::fs::remove_file(&self.file).ok();
        drop(self.lock);
    }
}

/// Ends every session of the database that has expired or whose process is gone, except `own`.
///
/// Returns whether there was any.
pub(crate) fn reap(database: &Database, connection: &Connection, own: i64) -> rusqlite::Result<bool> {
    let others: Vec<(i64, i64)> = connection
        .prepare_cached("SELECT token, expires_at FROM millstream_sessions WHERE token <> ?1")?
        .query_map([own], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let mut any = false;
    for (token, expires_at) in others {
        let file = lock_file(database.path(), token);
        let lock = File::open(&file).ok().filter(|lock| lock.try_lock().is_ok());
        if lock.is_none() && expires_at > now() {
            continue;
        }
        any |= database.write(connection, |connection| -> rusqlite::Result<bool> {
            // It may have renewed itself meanwhile.
            let dead = lock.is_some()
                || connection
                    .prepare_cached(
                        "SELECT 1 FROM millstream_sessions WHERE token = ?1 AND expires_at <= ?2",
                    )?
                    .exists([token, now()])?;
            if dead {
                end(connection, token)?;
            }
            Ok(dead)
        })?;
        if lock.is_some() {
            std::fs::remove_file(&file).ok();
        }
    }
    Ok(any)
}

/// Frees rows whose session is in no table any more, which only a hand from outside can bring about.
pub(crate) fn free_orphans(database: &Database, connection: &Connection) -> rusqlite::Result<()> {
    const ORPHANS: &str = "lease IS NOT NULL AND lease NOT IN (SELECT token FROM millstream_sessions)";
    if connection
        .prepare(&format!("SELECT 1 FROM millstream_messages WHERE {ORPHANS}"))?
        .exists([])?
    {
        database.write(connection, |connection| -> rusqlite::Result<()> {
            connection.execute(
                &format!("UPDATE millstream_messages SET lease = NULL WHERE {ORPHANS}"),
                [],
            )?;
            connection.execute("UPDATE millstream_groups SET returned = returned + 1", [])?;
            Ok(())
        })?;
    }
    Ok(())
}

fn end(connection: &Connection, token: i64) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "UPDATE millstream_messages INDEXED BY millstream_leased SET lease = NULL WHERE lease = ?1",
        )?
        .execute([token])?;
    connection
        .prepare_cached(
            "UPDATE millstream_groups SET returned = returned + 1
             WHERE (queue, name) = (SELECT queue, grp FROM millstream_sessions WHERE token = ?1)",
        )?
        .execute([token])?;
    connection
        .prepare_cached("DELETE FROM millstream_sessions WHERE token = ?1")?
        .execute([token])?;
    Ok(())
}

fn expiry(lease: Duration) -> i64 {
    now().saturating_add(i64::try_from(lease.as_millis()).unwrap_or(i64::MAX))
}

/// `orders.db-session-7`, beside `orders.db`.
fn lock_file(database: &Path, token: i64) -> PathBuf {
    let mut name: OsString = database.as_os_str().to_owned();
    name.push(format!("-session-{token}"));
    PathBuf::from(name)
}
