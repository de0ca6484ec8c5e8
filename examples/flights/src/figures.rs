//! The figures of the carriers, in a database of their own.
//!
//! A message may be handled more than once, so a departure counts only if its number was not there before: adding
//! the same batch twice changes nothing.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use millstream::sqlite::rusqlite::{Connection, params};

use crate::departures::DEPARTURES;

#[allow(clippy::disallowed_types, reason = "an example shows what every reader knows")]
type Mutex<T> = std::sync::Mutex<T>;

static AIRLINES: &str = include_str!("../data/airlines.csv");

/// A departure and its delay.
#[derive(Debug)]
pub(crate) struct Delayed {
    pub(crate) id: u32,
    pub(crate) carrier: String,
    pub(crate) minutes: i64,
}

/// A handle to the database; every clone is the same one.
#[derive(Clone, Debug)]
pub(crate) struct Figures(Arc<Mutex<Connection>>);

impl Figures {
    pub(crate) fn open(path: &str) -> anyhow::Result<Self> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(10))?;
        connection.execute_batch(
            "PRAGMA journal_mode = WAL;
             PRAGMA synchronous = NORMAL;
             CREATE TABLE IF NOT EXISTS departures (id INTEGER PRIMARY KEY);
             CREATE TABLE IF NOT EXISTS carriers (
                 carrier TEXT PRIMARY KEY,
                 departures INTEGER NOT NULL DEFAULT 0,
                 late INTEGER NOT NULL DEFAULT 0,
                 minutes INTEGER NOT NULL DEFAULT 0
             );",
        )?;
        Ok(Self(Arc::new(Mutex::new(connection))))
    }

    /// Adds departures, all or none.
    pub(crate) fn add(&self, departures: &[Delayed]) -> anyhow::Result<()> {
        let mut connection = self
            .0
            .lock()
            .map_err(|_| anyhow::anyhow!("a thread panicked with the figures"))?;
        let transaction = connection.transaction()?;
        {
            let mut count = transaction.prepare_cached("INSERT OR IGNORE INTO departures (id) VALUES (?)")?;
            let mut add = transaction.prepare_cached(
                "INSERT INTO carriers (carrier, departures, late, minutes) VALUES (?1, 1, ?2, ?3)
                 ON CONFLICT (carrier) DO UPDATE SET
                     departures = departures + 1, late = late + ?2, minutes = minutes + ?3",
            )?;
            for Delayed { id, carrier, minutes } in departures {
                if count.execute([id])? == 1 {
                    add.execute(params![carrier, *minutes > 15, minutes])?;
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }

    /// The table of carriers, the worst first, and what went where.
    pub(crate) fn table(&self, dead: u64) -> anyhow::Result<String> {
        let connection = self
            .0
            .lock()
            .map_err(|_| anyhow::anyhow!("a thread panicked with the figures"))?;
        let mut rows = connection.prepare(
            "SELECT carrier, departures, late, minutes FROM carriers ORDER BY minutes * 1.0 / departures DESC",
        )?;
        let mut table = format!(
            "{:<28}{:>12}{:>14}{:>16}\n",
            "carrier", "departures", "mean delay", "over 15 min"
        );
        let mut done = 0;
        let mut rows = rows.query([])?;
        while let Some(row) = rows.next()? {
            let (carrier, departures, late, minutes): (String, u32, u32, i64) =
                (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
            done += departures;
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
            "\n{done} done, {dead} dead-lettered, of {DEPARTURES} departures"
        )?;
        Ok(table)
    }
}

fn name_of(carrier: &str) -> &str {
    static NAMES: OnceLock<HashMap<&str, &str>> = OnceLock::new();
    let names = NAMES.get_or_init(|| AIRLINES.lines().filter_map(|line| line.split_once(',')).collect());
    names.get(carrier).copied().unwrap_or(carrier)
}
