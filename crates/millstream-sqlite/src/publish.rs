//! Messages into rows: one for each group, or one for whichever group comes first.

use millstream_core::{Delivered, Outgoing};
use rusqlite::{Connection, ErrorCode, params};

use crate::database::now;
use crate::headers;

const INSERT: &str = "
    INSERT INTO millstream_messages (queue, grp, key, priority, published_at, not_before, copy_of, headers, payload)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";

/// Writes these in the transaction that is open, for one group or for all, and pushes one result for each.
///
/// # Errors
/// What fails one message for good refuses it alone; any other error is for the whole transaction.
pub(crate) fn insert(
    connection: &Connection,
    queue: &str,
    group: Option<&str>,
    messages: &[Outgoing],
    results: &mut Vec<Delivered>,
) -> rusqlite::Result<()> {
    let mut groups = match group {
        Some(group) => vec![group.to_owned()],
        None => groups(connection, queue)?,
    };
    if groups.is_empty() {
        groups.push(String::new());
    }
    let now = now();
    let mut statement = connection.prepare_cached(INSERT)?;
    for message in messages {
        let headers = headers::encode(&message.headers);
        let not_before = if message.delay.is_zero() {
            0
        } else {
            now.saturating_add(i64::try_from(message.delay.as_millis()).unwrap_or(i64::MAX))
                .max(1)
        };
        let mut first = None;
        let mut result = Delivered::Confirmed;
        for group in &groups {
            let row = params![
                queue,
                group,
                message.key.as_deref(),
                message.priority,
                now,
                not_before,
                first,
                headers,
                &message.payload[..],
            ];
            match statement.execute(row) {
                Ok(_) => first = first.or_else(|| Some(connection.last_insert_rowid())),
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::TooBig) => {
                    result = Delivered::Refused(format!("{} bytes are too many for SQLite", message.size()));
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        results.push(result);
    }
    Ok(())
}

/// The groups that read the queue, in the order of their names.
pub(crate) fn groups(connection: &Connection, queue: &str) -> rusqlite::Result<Vec<String>> {
    connection
        .prepare_cached("SELECT name FROM millstream_groups WHERE queue = ?1 ORDER BY name")?
        .query_map([queue], |row| row.get(0))?
        .collect()
}
