//! One group's view of one queue: [`Group`].
//!
//! Every group sees every message. A queue has its groups in a table, and each message has a row for each.

use rusqlite::{Connection, OptionalExtension, params};

use crate::error::{Problem, Refusal};

/// The readers of a queue that share its messages out among themselves.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) queue: String,
    pub(crate) name: String,
}

impl Group {
    /// Enters it for its queue, with whatever the queue still holds: the first group takes what no group has,
    /// a later one gets copies.
    pub(crate) fn register(&self, connection: &Connection) -> Result<(), Problem> {
        if self.name.is_empty() {
            return Err(Refusal::NoGroup.into());
        }
        let entered = connection
            .prepare_cached("INSERT OR IGNORE INTO millstream_groups (queue, name) VALUES (?1, ?2)")?
            .execute([&self.queue, &self.name])?;
        if entered == 0 {
            return Ok(());
        }
        // `OR FAIL`, because otherwise SQLite keeps a copy of every page that it changes, in memory, in case the
        // statement has to be undone alone. Here the whole transaction would be.
        connection.execute(
            "UPDATE OR FAIL millstream_messages SET grp = ?2 WHERE queue = ?1 AND grp = ''",
            [&self.queue, &self.name],
        )?;
        self.copy_others(connection)
    }

    /// Copies what other groups still hold. Only numbers are sorted, and each message is copied alone: a backlog is
    /// never in memory.
    fn copy_others(&self, connection: &Connection) -> Result<(), Problem> {
        // A delay that was published is copied; one that a group's own retry made stays that group's.
        let mut originals = connection.prepare(
            "SELECT id, coalesce(copy_of, id),
                 min(CASE WHEN deliveries = 0 AND failures = 0 THEN not_before ELSE 0 END)
             FROM millstream_messages
             WHERE queue = ?1 AND grp <> ?2
             GROUP BY coalesce(copy_of, id)
             ORDER BY coalesce(copy_of, id)",
        )?;
        let originals: Vec<(i64, i64, i64)> = originals
            .query_map([&self.queue, &self.name], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })?
            .collect::<rusqlite::Result<_>>()?;
        let mut copy = connection.prepare(
            "INSERT INTO millstream_messages
                 (queue, grp, key, priority, published_at, not_before, copy_of, headers, payload)
             SELECT queue, ?2, key, priority, published_at, ?4, ?3, headers, payload
             FROM millstream_messages WHERE id = ?1",
        )?;
        for (id, original, not_before) in originals {
            copy.execute(params![id, self.name, original, not_before])?;
        }
        Ok(())
    }

    /// Takes it off its queue, with its messages and its leases.
    pub(crate) fn remove(&self, connection: &Connection) -> rusqlite::Result<()> {
        for sql in [
            "DELETE FROM millstream_messages WHERE queue = ?1 AND grp = ?2",
            "DELETE FROM millstream_sessions WHERE queue = ?1 AND grp = ?2",
            "DELETE FROM millstream_groups WHERE queue = ?1 AND name = ?2",
        ] {
            connection.execute(sql, [&self.queue, &self.name])?;
        }
        Ok(())
    }

    /// How often messages have come back to it, which may then be earlier ones than any it still has.
    pub(crate) fn returned(&self, connection: &Connection) -> rusqlite::Result<i64> {
        let returned = connection
            .prepare_cached("SELECT returned FROM millstream_groups WHERE queue = ?1 AND name = ?2")?
            .query_row([&self.queue, &self.name], |row| row.get(0))
            .optional()?;
        Ok(returned.unwrap_or(0))
    }

    /// Notes that messages have come back to it.
    pub(crate) fn note_return(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection
            .prepare_cached(
                "UPDATE millstream_groups SET returned = returned + 1 WHERE queue = ?1 AND name = ?2",
            )?
            .execute(params![self.queue, self.name])?;
        Ok(())
    }
}
