//! Millstream's embedded durable queue: tables in an SQLite database, read and written by several processes
//! of one machine at once.
//!
//! [`SqliteConnector`] reads a queue and [`SqliteSink`] writes one for the engine; [`Queue`] does without it.
//! The tables, made by [`SCHEMA`], may live in the user's own database: then a plain `INSERT` in the user's
//! own transaction publishes, and what it tells of and the message are there together or not at all.
//!
//! # What is kept when
//!
//! A publish is confirmed when it is on the disk. Leases and settlements are on the disk soon after; a loss
//! of power, and nothing less, can undo the last of them, and then repeats messages but loses none (P1).
//!
//! # Leases
//!
//! An opened connector has a session: a row with a token and a time of expiry, which it renews, and a lock
//! file beside the database. What it reads is marked with its token. The messages of a process that ends,
//! however it ends, are free at once, since its lock is; those of one that hangs, when its lease expires.
//! Every settlement is fenced by the token (P2): one that comes too late touches nothing, and is
//! [`Stale`](millstream_core::Outcome::Stale).
//!
//! # Order
//!
//! Messages go out by priority, then by age. With [`ordered`](SqliteConnector::ordered) none goes out while an
//! earlier one of its key is out to another process or waits for its time (P3).
//!
//! # Ids
//!
//! [`SqliteStore`] remembers for the engine which messages were done: it is no part of a queue, and may be in a file of
//! its own. So does [`SqliteRates`] with how fast messages came, for a rate limit that processes share.
//!
//! # Limits
//!
//! The file must be on a local file system. SQLite has one writer at a time: processes take turns.

mod check;
mod claim;
mod connector;
mod consumer;
mod database;
mod dead;
mod done;
mod error;
mod group;
mod headers;
mod inbox;
#[cfg(test)]
mod lease_model;
mod letters;
mod publish;
mod publisher;
mod queue;
mod rates;
mod row;
mod schema;
mod session;
mod settle;
mod sink;
mod stored;
mod sweep;

pub use rusqlite;

pub use connector::{Leasing, Settling, SqliteConnector};
pub use dead::{DeadLetter, DeadLetters};
pub use done::SqliteStore;
pub use error::Error;
pub use queue::{Counts, Queue};
pub use rates::SqliteRates;
pub use schema::SCHEMA;
pub use sink::{Publishing, SqliteSink};
pub use stored::Stored;
