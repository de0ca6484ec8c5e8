//! Leasing messages: [`Claims`].
//!
//! Messages go out by priority, then by age; one that is delayed first has to become ready. A lease is one
//! column, so that every session sees at a glance what is free, and the count of deliveries goes up with it:
//! whatever becomes of this process, the next one will know.

use millstream_core::rt::Instant;
use millstream_core::{Credit, Message};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::database::now;
use crate::group::Group;
use crate::row;
use crate::sweep::Sweeper;

/// Messages that one claim leases at most: more make its transaction longer and save nothing.
const LARGEST: usize = 512;
/// Delayed messages that one claim makes ready at most.
const PROMOTED: i64 = 4096;

/// What a claim came to.
#[derive(Debug, Default)]
pub(crate) struct Claimed {
    /// Row ids and messages, in order.
    pub(crate) messages: Vec<Message>,
    /// There may be more at once.
    pub(crate) more: bool,
    /// When the next delayed message is due, in milliseconds since 1970.
    pub(crate) due: Option<i64>,
    /// When to look again for keys that were blocked.
    pub(crate) again: Option<Instant>,
}

/// Leases messages to the sessions of one group, one after another.
#[derive(Debug)]
pub(crate) struct Claims {
    ordered: bool,
    sweeper: Sweeper,
}

impl Claims {
    pub(crate) fn new(ordered: bool) -> Self {
        Self {
            ordered,
            sweeper: Sweeper::default(),
        }
    }

    /// Leases what the credit allows to the session with this token, in the write transaction that is open.
    pub(crate) fn claim(
        &mut self,
        connection: &Connection,
        group: &Group,
        token: i64,
        credit: Credit,
    ) -> rusqlite::Result<Claimed> {
        let mut claimed = Claimed {
            due: promote(connection, group)?,
            ..Claimed::default()
        };
        let most = credit.messages.clamp(1, LARGEST);
        let swept = if self.ordered {
            self.sweeper
                .ordered(connection, group, token, most, claimed.due.is_some())?
        } else {
            Sweeper::front(connection, group, most)?
        };
        claimed.more = swept.more;
        let mut load = connection.prepare_cached(
            "SELECT key, published_at, deliveries, failures, headers, payload, priority
             FROM millstream_messages WHERE id = ?1",
        )?;
        let mut lease = connection.prepare_cached(
            "UPDATE millstream_messages SET lease = ?1, deliveries = deliveries + 1 WHERE id = ?2",
        )?;
        let (mut bytes, mut last) = (0, None);
        for &place in &swept.found {
            if bytes > 0 && bytes >= credit.bytes {
                claimed.more = true;
                claimed.again = self.sweeper.finish(swept, last);
                return Ok(claimed);
            }
            let message = load.query_row([place.id], |row| message(place.id, row))?;
            lease.execute([token, place.id])?;
            bytes += message.size();
            claimed.messages.push(message);
            last = Some(place);
        }
        claimed.again = self.sweeper.finish(swept, None);
        Ok(claimed)
    }
}

fn message(id: i64, row: &Row<'_>) -> rusqlite::Result<Message> {
    Ok(Message {
        payload: row::bytes(row, 5)?.unwrap_or_default(),
        key: row::bytes(row, 0)?,
        headers: row::headers(row, 4)?,
        position: row::position(id),
        timestamp: Some(row::time(row, 1)?),
        deliveries: row::count(row, 2)?.saturating_add(1),
        failures: row::count(row, 3)?,
        priority: row::priority(row::integer(row, 6)?),
        ..Message::default()
    })
}

/// Makes delayed messages ready whose time has come; returns when the next one's does.
fn promote(connection: &Connection, group: &Group) -> rusqlite::Result<Option<i64>> {
    let mut next = connection.prepare_cached(
        "SELECT not_before FROM millstream_messages INDEXED BY millstream_delayed
         WHERE queue = ?1 AND grp = ?2 AND not_before > 0 ORDER BY not_before LIMIT 1",
    )?;
    let mut due = || {
        next.query_row([&group.queue, &group.name], |row| row.get(0))
            .optional()
    };
    let now = now();
    let first: Option<i64> = due()?;
    if first.is_none_or(|first| first > now) {
        return Ok(first);
    }
    // `OR FAIL`: as with a new group's messages, there is no need for SQLite to be able to undo this alone.
    connection
        .prepare_cached(
            "UPDATE OR FAIL millstream_messages SET not_before = 0 WHERE id IN (
                 SELECT id FROM millstream_messages INDEXED BY millstream_delayed
                 WHERE queue = ?1 AND grp = ?2 AND not_before > 0 AND not_before <= ?3
                 ORDER BY not_before LIMIT ?4)",
        )?
        .execute(params![group.queue, group.name, now, PROMOTED])?;
    group.note_return(connection)?;
    due()
}
