//! The tables, and whether a database's tables are these: [`SCHEMA`].
//!
//! They live in any database, also in one that holds other tables, and mark it with nothing but themselves:
//! `application_id` and `user_version` belong to whoever owns the database.

use rusqlite::{Connection, OptionalExtension};

use crate::error::{Problem, Refusal};

/// The version that this release reads and writes.
pub(crate) const VERSION: i64 = 1;

/// The SQL that creates the tables, for a program that does so in a migration of its own.
///
/// It may run more than once, inside a transaction or not. Times are milliseconds since 1970.
///
/// Whatever else writes to the tables needs SQLite 3.38 or newer.
///
/// A publish is a plain `INSERT`, in the same transaction as whatever it tells of, from any language:
///
/// ```sql
/// INSERT INTO millstream_messages (queue, key, payload) VALUES ('orders', 'customer-7', '{"id": 1}');
/// ```
///
/// `queue` and `payload` are needed; `key`, `headers` (a JSON object of strings), `priority` (higher goes
/// first) and `not_before` (a time) may be given; everything else belongs to Millstream.
pub const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS millstream_format (version INTEGER NOT NULL);
INSERT INTO millstream_format (version) SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM millstream_format);

CREATE TABLE IF NOT EXISTS millstream_groups (
    queue TEXT NOT NULL,
    name TEXT NOT NULL CHECK (name <> ''),
    returned INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (queue, name)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS millstream_sessions (
    token INTEGER PRIMARY KEY AUTOINCREMENT,
    queue TEXT NOT NULL,
    grp TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    holder TEXT NOT NULL
);

CREATE TABLE IF NOT EXISTS millstream_messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    queue TEXT NOT NULL CHECK (typeof(queue) = 'text'),
    grp TEXT NOT NULL DEFAULT '',
    key BLOB,
    priority INTEGER NOT NULL DEFAULT 0 CHECK (typeof(priority) = 'integer'),
    published_at INTEGER NOT NULL
        DEFAULT (CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)),
    not_before INTEGER NOT NULL DEFAULT 0 CHECK (typeof(not_before) = 'integer' AND not_before >= 0),
    deliveries INTEGER NOT NULL DEFAULT 0,
    failures INTEGER NOT NULL DEFAULT 0,
    lease INTEGER,
    copy_of INTEGER,
    headers TEXT CHECK (headers IS NULL OR (
        typeof(headers) = 'text' AND json_valid(headers) AND json_type(headers) = 'object')),
    payload BLOB NOT NULL
);

CREATE INDEX IF NOT EXISTS millstream_ready ON millstream_messages (queue, grp, priority DESC, id)
    WHERE lease IS NULL AND not_before = 0;
CREATE INDEX IF NOT EXISTS millstream_leased ON millstream_messages (lease, key)
    WHERE lease IS NOT NULL;
CREATE INDEX IF NOT EXISTS millstream_delayed ON millstream_messages (queue, grp, not_before)
    WHERE not_before > 0;
CREATE INDEX IF NOT EXISTS millstream_delayed_keys ON millstream_messages (queue, grp, key, priority DESC, id)
    WHERE not_before > 0 AND key IS NOT NULL;

CREATE TRIGGER IF NOT EXISTS millstream_arrival AFTER INSERT ON millstream_messages
WHEN NEW.grp = '' OR typeof(NEW.key) NOT IN ('blob', 'null')
BEGIN
    INSERT INTO millstream_messages (queue, grp, key, priority, published_at, not_before, copy_of, headers, payload)
        SELECT NEW.queue, name, CAST(NEW.key AS BLOB), NEW.priority, NEW.published_at, NEW.not_before, NEW.id,
            NEW.headers, NEW.payload
        FROM millstream_groups
        WHERE NEW.grp = '' AND queue = NEW.queue
            AND name > (SELECT min(name) FROM millstream_groups WHERE queue = NEW.queue);
    UPDATE millstream_messages
        SET key = CAST(key AS BLOB),
            grp = CASE grp WHEN ''
                THEN coalesce((SELECT min(name) FROM millstream_groups WHERE queue = NEW.queue), '')
                ELSE grp END
        WHERE id = NEW.id;
END;

CREATE TABLE IF NOT EXISTS millstream_dead (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    queue TEXT NOT NULL,
    grp TEXT NOT NULL,
    key BLOB,
    priority INTEGER NOT NULL,
    published_at INTEGER NOT NULL,
    pipeline TEXT NOT NULL,
    stage TEXT NOT NULL,
    reason TEXT NOT NULL,
    error TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    deliveries INTEGER NOT NULL,
    origin TEXT NOT NULL,
    failed_at INTEGER NOT NULL,
    headers TEXT,
    payload BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS millstream_dead_queue ON millstream_dead (queue, id);
";

const TABLES: [(&str, &[&str]); 5] = [
    ("millstream_format", &["version"]),
    ("millstream_groups", &["queue", "name", "returned"]),
    (
        "millstream_sessions",
        &["token", "queue", "grp", "expires_at", "holder"],
    ),
    (
        "millstream_messages",
        &[
            "id",
            "queue",
            "grp",
            "key",
            "priority",
            "published_at",
            "not_before",
            "deliveries",
            "failures",
            "lease",
            "copy_of",
            "headers",
            "payload",
        ],
    ),
    (
        "millstream_dead",
        &[
            "id",
            "queue",
            "grp",
            "key",
            "priority",
            "published_at",
            "pipeline",
            "stage",
            "reason",
            "error",
            "attempts",
            "deliveries",
            "origin",
            "failed_at",
            "headers",
            "payload",
        ],
    ),
];

/// Indexes and triggers, which are made again where they are missing.
const HELPERS: [&str; 6] = [
    "millstream_ready",
    "millstream_leased",
    "millstream_delayed",
    "millstream_delayed_keys",
    "millstream_arrival",
    "millstream_dead_queue",
];

/// What a database has of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// All of them, and everything that belongs to them.
    Everything,
    /// None, or not all the indexes: [`SCHEMA`] makes what is missing.
    Incomplete,
}

/// Looks at a database without touching it; refuses tables that are not those of this version.
pub(crate) fn look(connection: &Connection) -> Result<Found, Problem> {
    let encoding: String = connection.query_row("PRAGMA encoding", [], |row| row.get(0))?;
    if encoding != "UTF-8" {
        return Err(Refusal::Encoding(encoding).into());
    }
    let mut present = Vec::new();
    for (table, columns) in TABLES {
        if has(connection, table)? {
            present.push((table, columns));
        }
    }
    let Some(&(first, _)) = present.first() else {
        return Ok(Found::Incomplete);
    };
    if first != "millstream_format" {
        return Err(Refusal::Unmarked(first).into());
    }
    let version = connection
        .query_row(
            "SELECT CAST(max(version) AS INTEGER) FROM millstream_format",
            [],
            |row| row.get(0),
        )
        .optional()
        .map_err(|error| match error {
            rusqlite::Error::SqliteFailure(failure, _) if failure.code != rusqlite::ErrorCode::Unknown => {
                error.into()
            }
            _ => Problem::from(Refusal::Columns(first)),
        })?
        .flatten();
    if version != Some(VERSION) {
        return Err(Refusal::Version(version).into());
    }
    for (table, columns) in TABLES {
        if !present.iter().any(|(name, _)| *name == table) {
            return Err(Refusal::Missing(table).into());
        }
        if names(connection, table)? != columns {
            return Err(Refusal::Columns(table).into());
        }
    }
    for helper in HELPERS {
        if !has(connection, helper)? {
            return Ok(Found::Incomplete);
        }
    }
    Ok(Found::Everything)
}

fn has(connection: &Connection, name: &str) -> rusqlite::Result<bool> {
    connection
        .prepare("SELECT 1 FROM sqlite_schema WHERE name = ?1 COLLATE NOCASE")?
        .exists([name])
}

fn names(connection: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let mut columns = connection.prepare("SELECT name FROM pragma_table_info(?1) ORDER BY cid")?;
    columns.query_map([table], |row| row.get(0))?.collect()
}
