//! Messages as they lie in a queue: [`Stored`].

use std::time::SystemTime;

use bytes::Bytes;
use millstream_core::Headers;
use rusqlite::{Connection, params};

use crate::row;

/// A message in a queue, as [`Queue::list`](crate::Queue::list) shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its number in the queue.
    pub position: u64,
    /// The group that has yet to read it; none before the queue's first group has come.
    pub group: Option<String>,
    /// The body.
    pub payload: Bytes,
    /// What it is ordered by.
    pub key: Option<Bytes>,
    /// Its headers.
    pub headers: Headers,
    /// Higher goes first.
    pub priority: i64,
    /// When it was published.
    pub published_at: SystemTime,
    /// When it may be handed out, if it has to wait.
    pub not_before: Option<SystemTime>,
    /// How often it has been handed out since it last had an outcome.
    pub deliveries: u32,
    /// Handler runs that have failed.
    pub failures: u32,
    /// Whether a consumer has it.
    pub leased: bool,
}

pub(crate) fn stored(
    connection: &Connection,
    queue: &str,
    after: u64,
    limit: usize,
) -> rusqlite::Result<Vec<Stored>> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    connection
        .prepare_cached(
            "SELECT id, grp, payload, key, headers, priority, published_at, not_before, deliveries, failures,
                 lease IS NOT NULL
             FROM millstream_messages WHERE id > ?2 AND queue = ?1 ORDER BY id LIMIT ?3",
        )?
        .query_map(params![queue, row::id(after), limit], |row| {
            Ok(Stored {
                position: row::position(row.get(0)?),
                group: Some(row::text(row, 1)?).filter(|group| !group.is_empty()),
                payload: row::bytes(row, 2)?.unwrap_or_default(),
                key: row::bytes(row, 3)?,
                headers: row::headers(row, 4)?,
                priority: row::integer(row, 5)?,
                published_at: row::time(row, 6)?,
                not_before: (row::integer(row, 7)? > 0)
                    .then(|| row::time(row, 7))
                    .transpose()?,
                deliveries: row::count(row, 8)?,
                failures: row::count(row, 9)?,
                leased: row.get(10)?,
            })
        })?
        .collect()
}
