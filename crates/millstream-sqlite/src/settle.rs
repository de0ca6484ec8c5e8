//! Settlements, each fenced by its lease: what another session leases by now is not touched.

use millstream_core::{Outcome, Rejection, Settle, Settlement};
use rusqlite::{Connection, params};

use crate::database::{millis, now};
use crate::group::Group;
use crate::row;

const ACK: &str = "DELETE FROM millstream_messages WHERE id = ?1 AND lease = ?2";
const RETRY: &str = "
    UPDATE millstream_messages SET lease = NULL, not_before = ?3, failures = ?4, deliveries = 0
    WHERE id = ?1 AND lease = ?2";
const RELEASE: &str = "
    UPDATE millstream_messages SET lease = NULL, deliveries = max(deliveries - 1, 0)
    WHERE id = ?1 AND lease = ?2";
const BURY: &str = "
    INSERT INTO millstream_dead (queue, grp, key, priority, published_at, pipeline, stage, reason, error,
        attempts, deliveries, origin, failed_at, headers, payload)
    SELECT queue, grp, key, priority, published_at, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10,
        iif(?11 < ?10, json_set(coalesce(headers, '{}'), '$.\"millstream-first-failed-at\"', CAST(?11 AS TEXT)), headers),
        payload
    FROM millstream_messages WHERE id = ?1 AND lease = ?2";

/// Settles these in the write transaction that is open, and says for each what came of it.
///
/// `generation` is the one that the session with this token has delivered as.
pub(crate) fn settle(
    connection: &Connection,
    group: &Group,
    token: i64,
    generation: u32,
    settlements: &[Settle],
) -> rusqlite::Result<Vec<Outcome>> {
    let mut outcomes = Vec::with_capacity(settlements.len());
    let mut returned = false;
    for Settle { ticket, settlement } in settlements {
        if ticket.generation != generation {
            outcomes.push(Outcome::Stale);
            continue;
        }
        let id = row::id(ticket.sequence);
        let rows = match settlement {
            Settlement::Ack => connection.prepare_cached(ACK)?.execute([id, token])?,
            Settlement::Reject(rejection) => bury(connection, id, token, rejection)?,
            Settlement::Retry { after, failures } => {
                returned = true;
                let not_before = if after.is_zero() {
                    0
                } else {
                    now()
                        .saturating_add(i64::try_from(after.as_millis()).unwrap_or(i64::MAX))
                        .max(1)
                };
                connection
                    .prepare_cached(RETRY)?
                    .execute(params![id, token, not_before, failures])?
            }
            Settlement::Release => {
                returned = true;
                connection.prepare_cached(RELEASE)?.execute([id, token])?
            }
        };
        outcomes.push(if rows == 0 { Outcome::Stale } else { Outcome::Sent });
    }
    if returned {
        group.note_return(connection)?;
    }
    Ok(outcomes)
}

/// Moves a message to the dead ones.
fn bury(connection: &Connection, id: i64, token: i64, rejection: &Rejection) -> rusqlite::Result<usize> {
    let buried = connection.prepare_cached(BURY)?.execute(params![
        id,
        token,
        &*rejection.pipeline,
        &*rejection.stage,
        rejection.reason.as_str(),
        rejection.error,
        rejection.attempts,
        rejection.deliveries,
        rejection.origin,
        millis(rejection.at),
        millis(rejection.first_at),
    ])?;
    if buried > 0 {
        connection.prepare_cached(ACK)?.execute([id, token])?;
    }
    Ok(buried)
}
