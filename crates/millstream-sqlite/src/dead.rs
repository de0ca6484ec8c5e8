//! Messages that were given up: [`DeadLetter`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use millstream_core::{Headers, Message};
use rusqlite::{Connection, params};

use crate::error::Error;
use crate::queue::Queue;
use crate::row;

/// Letters that are read at a time.
const PAGE: i64 = 100;

/// A rejected message, untouched, and why it was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its number among the dead letters of the database.
    pub position: u64,
    /// The group that gave it up.
    pub group: String,
    /// The body.
    pub payload: Bytes,
    /// What it was ordered by.
    pub key: Option<Bytes>,
    /// Its headers.
    pub headers: Headers,
    /// Higher goes first.
    pub priority: i64,
    /// When it was published.
    pub published_at: SystemTime,
    /// The pipeline that gave it up.
    pub pipeline: String,
    /// `processor`, or the batcher's name.
    pub stage: String,
    /// Why, as one of the words of [`Reason`](millstream_core::Reason).
    pub reason: String,
    /// The error and its causes.
    pub error: String,
    /// Handler runs that failed.
    pub attempts: u32,
    /// How often it had been handed out since it last had an outcome.
    pub deliveries: u32,
    /// Where it came from, as `queue@number`.
    pub origin: String,
    /// When it first failed, as far as was known.
    pub first_failed_at: SystemTime,
    /// When it was given up.
    pub failed_at: SystemTime,
}

/// The dead letters of a queue, oldest first, read some at a time.
///
/// Letters that are replayed or purged meanwhile do not disturb it.
#[derive(Debug)]
pub struct DeadLetters<'a> {
    queue: &'a Queue,
    name: Arc<str>,
    page: VecDeque<DeadLetter>,
    after: i64,
    done: bool,
}

impl<'a> DeadLetters<'a> {
    pub(crate) fn new(queue: &'a Queue, name: &Arc<str>) -> Self {
        Self {
            queue,
            name: Arc::clone(name),
            page: VecDeque::new(),
            after: i64::MIN,
            done: false,
        }
    }

    /// Begins behind the letter with this number.
    #[must_use]
    pub fn after(mut self, position: u64) -> Self {
        self.after = row::id(position);
        self
    }
}

impl Iterator for DeadLetters<'_> {
    type Item = Result<DeadLetter, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.page.is_empty() && !self.done {
            match self
                .queue
                .read(|connection| page(connection, &self.name, self.after))
            {
                Ok(letters) => self.page = letters,
                Err(error) => {
                    self.done = true;
                    return Some(Err(error));
                }
            }
        }
        let letter = self.page.pop_front();
        match &letter {
            Some(letter) => self.after = row::id(letter.position),
            None => self.done = true,
        }
        letter.map(Ok)
    }
}

fn page(connection: &Connection, queue: &str, after: i64) -> rusqlite::Result<VecDeque<DeadLetter>> {
    connection
        .prepare_cached(
            "SELECT id, grp, payload, key, headers, published_at, pipeline, stage, reason, error, attempts,
                 deliveries, origin, failed_at, priority
             FROM millstream_dead INDEXED BY millstream_dead_queue
             WHERE queue = ?1 AND id > ?2 ORDER BY id LIMIT ?3",
        )?
        .query_map(params![queue, after, PAGE], |row| {
            // The time of the first failure is kept among the headers.
            let mut message = Message {
                headers: row::headers(row, 4)?,
                ..Message::default()
            };
            message.take_first_failed();
            let failed_at = row::time(row, 13)?;
            Ok(DeadLetter {
                position: row::position(row.get(0)?),
                group: row::text(row, 1)?,
                payload: row::bytes(row, 2)?.unwrap_or_default(),
                key: row::bytes(row, 3)?,
                headers: message.headers,
                priority: row::integer(row, 14)?,
                published_at: row::time(row, 5)?,
                pipeline: row::text(row, 6)?,
                stage: row::text(row, 7)?,
                reason: row::text(row, 8)?,
                error: row::text(row, 9)?,
                attempts: row::count(row, 10)?,
                deliveries: row::count(row, 11)?,
                origin: row::text(row, 12)?,
                first_failed_at: message.first_failed.unwrap_or(failed_at),
                failed_at,
            })
        })?
        .collect()
}
