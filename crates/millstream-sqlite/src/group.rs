//! One group's view of one queue: [`Group`].
//!
//! Every group sees every message. A queue has its groups in a table, and each message has a row for each.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use crate::database::Database;
use crate::error::{Problem, Refusal};
use crate::publish::groups;

/// Messages that one transaction takes for the first group at most: others want to write too.
const PORTION: usize = 500;
/// How long others have between two such transactions, which take some tens of milliseconds.
const PAUSE: Duration = Duration::from_millis(5);

/// Messages of no group, as the two indexes have them.
const OF_NO_GROUP: [&str; 2] = [
    "UPDATE OR FAIL millstream_messages SET grp = ?2 WHERE id IN (
         SELECT id FROM millstream_messages INDEXED BY millstream_ready
         WHERE queue = ?1 AND grp = '' AND lease IS NULL AND not_before = 0 LIMIT ?3)",
    "UPDATE OR FAIL millstream_messages SET grp = ?2 WHERE id IN (
         SELECT id FROM millstream_messages INDEXED BY millstream_delayed
         WHERE queue = ?1 AND grp = '' AND not_before > 0 LIMIT ?3)",
];

/// The readers of a queue that share its messages out among themselves.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) queue: String,
    pub(crate) name: String,
}

impl Group {
    /// Enters it for its queue, with whatever the queue still holds: the first group takes what no group has,
    /// a later one gets copies.
    ///
    /// The first group is in the table from the beginning, so that what is published meanwhile is its own already, and
    /// nothing is handed out to it before it has all that is older. Whoever enters next goes on where a process ended
    /// that had begun with it. The last transaction does this as well.
    pub(crate) fn enter<T>(
        &self,
        database: &Database,
        connection: &Connection,
        last: impl Fn(&Connection) -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        if self.name.is_empty() {
            return Err(Refusal::NoGroup.into());
        }
        loop {
            let done = database.write(connection, |connection| match self.enter_further(connection)? {
                true => last(connection).map(Some),
                false => Ok(None),
            })?;
            match done {
                Some(done) => return Ok(done),
                None => std::thread::sleep(PAUSE),
            }
        }
    }

    /// One transaction of it. Says whether that was the last.
    fn enter_further(&self, connection: &Connection) -> Result<bool, Problem> {
        let groups = groups(connection, &self.queue)?;
        if groups.is_empty() {
            self.register(connection)?;
        }
        // While there are messages of no group, there is one group at most.
        if take_of_no_group(connection, &self.queue, groups.first().unwrap_or(&self.name))? == PORTION {
            return Ok(false);
        }
        if !groups.is_empty() && !groups.contains(&self.name) {
            self.register(connection)?;
            self.copy_others(connection)?;
        }
        Ok(true)
    }

    fn register(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection
            .prepare_cached("INSERT INTO millstream_groups (queue, name) VALUES (?1, ?2)")?
            .execute([&self.queue, &self.name])?;
        Ok(())
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

/// Gives messages of no group to this one, and says how many those were: a portion, or less where there are no more.
fn take_of_no_group(connection: &Connection, queue: &str, group: &str) -> rusqlite::Result<usize> {
    let mut taken = 0;
    for sql in OF_NO_GROUP {
        // `OR FAIL`, because otherwise SQLite keeps a copy of every page that it changes, in memory, in case the
        // statement has to be undone alone. Here the whole transaction would be.
        taken += connection.prepare_cached(sql)?.execute(params![
            queue,
            group,
            i64::try_from(PORTION - taken).unwrap_or(0)
        ])?;
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::Durability;

    const BACKLOG: usize = 3 * PORTION + 100;

    fn number(connection: &Connection, sql: &str) -> usize {
        let number: i64 = connection.query_row(sql, [], |row| row.get(0)).unwrap();
        usize::try_from(number).unwrap()
    }

    fn publish(connection: &Connection, messages: usize) {
        for _ in 0..messages {
            let sql = "INSERT INTO millstream_messages (queue, payload) VALUES ('orders', 'a')";
            connection.execute(sql, []).unwrap();
        }
    }

    fn group(name: &str) -> Group {
        Group {
            queue: "orders".to_owned(),
            name: name.to_owned(),
        }
    }

    /// A publisher would wait for the whole of a transaction.
    #[test]
    fn no_transaction_takes_more_of_a_backlog_than_a_portion() {
        let directory = tempfile::tempdir().unwrap();
        let database = Database::at(&directory.path().join("queue.db")).unwrap();
        let connection = database.connect(Durability::Order).unwrap();
        publish(&connection, BACKLOG - 200);
        let delayed = "UPDATE millstream_messages SET not_before = 9999999999999 WHERE id > 1000";
        connection.execute(delayed, []).unwrap();
        publish(&connection, 200);
        let other = database.connect(Durability::Order).unwrap();
        let mut left = BACKLOG;
        let mut ended = false;
        for transaction in 1.. {
            ended = database
                .write(&connection, |connection| group("mail").enter_further(connection))
                .unwrap();
            let now = number(
                &connection,
                "SELECT count(*) FROM millstream_messages WHERE grp = ''",
            );
            assert!(
                left - now <= PORTION,
                "{} in transaction {transaction}",
                left - now
            );
            left = now;
            if ended {
                break;
            }
            publish(&other, 1);
        }
        assert!(ended && left == 0);
        let of_mail = "SELECT count(*) FROM millstream_messages WHERE grp = 'mail'";
        assert_eq!(number(&connection, of_mail), BACKLOG + 3);
    }

    #[test]
    fn another_group_ends_what_the_first_one_has_begun() {
        let directory = tempfile::tempdir().unwrap();
        let database = Database::at(&directory.path().join("queue.db")).unwrap();
        let connection = database.connect(Durability::Order).unwrap();
        publish(&connection, BACKLOG);
        assert!(!group("stock").enter_further(&connection).unwrap());
        publish(&connection, 1);
        for name in ["mail", "stock"] {
            group(name).enter(&database, &connection, |_| Ok(())).unwrap();
        }
        let originals = "SELECT count(*) FROM millstream_messages WHERE grp = 'stock' AND copy_of IS NULL";
        assert_eq!(number(&connection, originals), BACKLOG + 1);
        let copies = "SELECT count(DISTINCT copy_of) FROM millstream_messages WHERE grp = 'mail'";
        assert_eq!(number(&connection, copies), BACKLOG + 1);
        assert_eq!(
            number(&connection, "SELECT count(*) FROM millstream_messages"),
            2 * (BACKLOG + 1)
        );
    }
}
