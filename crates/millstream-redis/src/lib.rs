//! Millstream's store of ids in Redis: which messages were done of late, for processes of many machines.
//!
//! [`RedisStore`] is what `deduplicate` asks. Each id is a key `millstream:LENGTH:PIPELINE:ID`, with the length of the name, that goes by itself when its
//! window is over. What Redis has confirmed is as durable as Redis was told to be: with its usual snapshots a crash of
//! Redis forgets the last minutes, and with `appendfsync always` nothing.
//!
//! A chunk of messages is one round trip, and so is a batch of settlements.

mod store;

pub use store::{InvalidUrl, RedisStore};
