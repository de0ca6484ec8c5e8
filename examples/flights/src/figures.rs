//! The figures of the carriers, in a database of their own.
//!
//! A message may be handled more than once, so a departure counts only if its number was not there before: adding
//! the same batch twice changes nothing.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use millstream::sqlite::rusqlite::{Connection, params};

#[allow(clippy::disallowed_types, reason = "an example shows what every reader knows")]
type Mutex<T> = std::sync::Mutex<T>;
type MutexGuard<'a, T> = std::sync::MutexGuard<'a, T>;

static AIRLINES: &str = include_str!("../data/airlines.csv");

/// A departure and its delay, if it took place.
#[derive(Debug)]
pub(crate) struct Delayed {
    pub(crate) id: u32,
    pub(crate) carrier: String,
    pub(crate) minutes: Option<i64>,
}

/// How far all of it has come, in departures.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    pub(crate) published: u32,
    pub(crate) done: u32,
    pub(crate) cancelled: u32,
}

/// A handle to the database; every clone is the same one.
#[derive(Clone, Debug)]
pub(crate) struct Figures(Arc<Mutex<Connection>>);

impl Figures {
    pub(crate) fn open(path: impl AsRef<Path>) -> anyhow::Result<Self> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(10))?;
        connection.execute_batch(
            "PRAGMA journal_mode = WAL;
             PRAGMA synchronous = NORMAL;
             CREATE TABLE IF NOT EXISTS published (number INTEGER NOT NULL);
             CREATE TABLE IF NOT EXISTS departures (id INTEGER PRIMARY KEY);
             CREATE TABLE IF NOT EXISTS cancelled (id INTEGER PRIMARY KEY);
             CREATE TABLE IF NOT EXISTS carriers (
                 carrier TEXT PRIMARY KEY,
                 departures INTEGER NOT NULL DEFAULT 0,
                 late INTEGER NOT NULL DEFAULT 0,
                 minutes INTEGER NOT NULL DEFAULT 0
             );",
        )?;
        Ok(Self(Arc::new(Mutex::new(connection))))
    }

    fn connection(&self) -> anyhow::Result<MutexGuard<'_, Connection>> {
        self.0
            .lock()
            .map_err(|_| anyhow::anyhow!("a thread panicked with the figures"))
    }

    /// So many have been published.
    pub(crate) fn note_published(&self, number: u32) -> anyhow::Result<()> {
        let mut connection = self.connection()?;
        let transaction = connection.transaction()?;
        transaction.execute("DELETE FROM published", [])?;
        transaction.execute("INSERT INTO published (number) VALUES (?)", [number])?;
        transaction.commit()?;
        Ok(())
    }

    /// How far it has come.
    pub(crate) fn progress(&self) -> anyhow::Result<Progress> {
        let progress = self.connection()?.query_row(
            "SELECT (SELECT coalesce(max(number), 0) FROM published),
                    (SELECT coalesce(sum(departures), 0) FROM carriers),
                    (SELECT count(*) FROM cancelled)",
            [],
            |row| {
                Ok(Progress {
                    published: row.get(0)?,
                    done: row.get(1)?,
                    cancelled: row.get(2)?,
                })
            },
        )?;
        Ok(progress)
    }

    /// Adds departures, all or none.
    pub(crate) fn add(&self, departures: &[Delayed]) -> anyhow::Result<()> {
        let mut connection = self.connection()?;
        let transaction = connection.transaction()?;
        {
            let mut cancel = transaction.prepare_cached("INSERT OR IGNORE INTO cancelled (id) VALUES (?)")?;
            let mut count = transaction.prepare_cached("INSERT OR IGNORE INTO departures (id) VALUES (?)")?;
            let mut add = transaction.prepare_cached(
                "INSERT INTO carriers (carrier, departures, late, minutes) VALUES (?1, 1, ?2, ?3)
                 ON CONFLICT (carrier) DO UPDATE SET
                     departures = departures + 1, late = late + ?2, minutes = minutes + ?3",
            )?;
            for Delayed { id, carrier, minutes } in departures {
                match minutes {
                    None => drop(cancel.execute([id])?),
                    Some(minutes) => {
                        if count.execute([id])? == 1 {
                            add.execute(params![carrier, *minutes > 15, minutes])?;
                        }
                    }
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }

    /// The table of carriers, the worst first, and what went where of so many departures.
    pub(crate) fn table(&self, all: u32) -> anyhow::Result<String> {
        let Progress { done, cancelled, .. } = self.progress()?;
        let connection = self.connection()?;
        let mut rows = connection.prepare(
            "SELECT carrier, departures, late, minutes FROM carriers ORDER BY minutes * 1.0 / departures DESC, carrier",
        )?;
        let mut table = format!(
            "{:<28}{:>12}{:>14}{:>16}\n",
            "carrier", "departures", "mean delay", "over 15 min"
        );
        let mut rows = rows.query([])?;
        while let Some(row) = rows.next()? {
            let (carrier, departures, late, minutes): (String, u32, u32, i64) =
                (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
            writeln!(
                table,
                "{:<28}{departures:>12}{:>10.1} min{:>14.1} %",
                name_of(&carrier),
                minutes as f64 / f64::from(departures),
                f64::from(late) / f64::from(departures) * 100.0
            )?;
        }
        write!(
            table,
            "\n{done} done, {cancelled} dead-lettered, of {all} departures"
        )?;
        Ok(table)
    }
}

fn name_of(carrier: &str) -> &str {
    static NAMES: OnceLock<HashMap<&str, &str>> = OnceLock::new();
    let names = NAMES.get_or_init(|| AIRLINES.lines().filter_map(|line| line.split_once(',')).collect());
    names.get(carrier).copied().unwrap_or(carrier)
}
