//! The departures, from the file into the queue.

use std::io::Read;
use std::time::Duration;

use anyhow::Context as _;
use indicatif::ProgressBar;
use lzma_rust2::XzReader;
use millstream::prelude::*;
use millstream::sqlite::Queue;
use millstream::sqlite::rusqlite::{Connection, TransactionBehavior};
use serde::{Deserialize, Serialize};

use crate::progress;

static DATA: &[u8] = include_bytes!("../data/flights.csv.xz");

/// How many there are.
pub(crate) const DEPARTURES: u32 = 336_776;

/// Departures in one transaction.
const AT_A_TIME: usize = 5_000;

/// One row of the file. What is not known is empty or `NA`.
#[derive(Debug, Deserialize)]
struct Row {
    carrier: String,
    tailnum: String,
    sched_dep_time: u32,
    #[serde(deserialize_with = "csv::invalid_option")]
    dep_time: Option<u32>,
    origin: String,
    dest: String,
}

impl Row {
    fn tail(&self) -> Option<&str> {
        Some(&*self.tailnum).filter(|tail| !tail.is_empty() && *tail != "NA")
    }
}

/// One departure, as it travels: times are hours and minutes, as in `2359`.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Departure {
    pub(crate) id: u32,
    pub(crate) carrier: String,
    pub(crate) sched_dep_time: u32,
    pub(crate) dep_time: Option<u32>,
    pub(crate) origin: String,
    pub(crate) dest: String,
}

/// Publishes what has not been published yet.
///
/// Messages and the note of how many there are go into one transaction: killed at any moment, it goes on exactly
/// where it was. That is what the tables of the queue being in one's own database is for.
pub(crate) fn publish(path: &str, queue: &str) -> anyhow::Result<()> {
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(10))?;
    connection.execute_batch("CREATE TABLE IF NOT EXISTS flights_published (number INTEGER NOT NULL)")?;
    let published: Option<u32> =
        connection.query_row("SELECT max(number) FROM flights_published", [], |row| row.get(0))?;
    let mut published = published.unwrap_or(0);
    if published == DEPARTURES {
        return Ok(());
    }

    let mut text = String::new();
    XzReader::new(DATA, false).read_to_string(&mut text)?;
    let mut rows = csv::Reader::from_reader(text.as_bytes());
    let mut rows = rows.deserialize::<Row>().skip(published as usize);
    let bar: ProgressBar = progress::bar("published", published);
    while published < DEPARTURES {
        let mut messages = Vec::with_capacity(AT_A_TIME);
        for row in rows.by_ref().take(AT_A_TIME) {
            let row = row?;
            let tail = row.tail().map(str::to_owned);
            let message = Outgoing::new(serde_json::to_vec(&Departure {
                id: published + u32::try_from(messages.len())?,
                carrier: row.carrier,
                sched_dep_time: row.sched_dep_time,
                dep_time: row.dep_time,
                origin: row.origin,
                dest: row.dest,
            })?);
            messages.push(match tail {
                Some(tail) => message.with_key(tail),
                None => message,
            });
        }
        anyhow::ensure!(!messages.is_empty(), "the file ends after {published} departures");
        published += u32::try_from(messages.len())?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        Queue::publish_in(&transaction, queue, &messages).context("publishing")?;
        transaction.execute("DELETE FROM flights_published", [])?;
        transaction.execute("INSERT INTO flights_published (number) VALUES (?)", [published])?;
        transaction.commit()?;
        bar.set_position(published.into());
    }
    bar.finish();
    Ok(())
}
