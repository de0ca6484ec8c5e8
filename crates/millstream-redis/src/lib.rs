//! What Millstream keeps in Redis, for processes of many machines: ids of what was done of late, and rate limits.
//!
//! [`RedisStore`] is what `deduplicate` asks. Each id is a key `millstream:LENGTH:PIPELINE:ID`, with the length of the name, that goes by itself when its
//! window is over. What Redis has confirmed is as durable as Redis was told to be: with its usual snapshots a crash of
//! Redis forgets the last minutes, and with `appendfsync always` nothing.
//!
//! [`RedisRates`] is what `rate_limit` asks. Each key that is not idle is a key `millstream-rate:LENGTH:PIPELINE:KEY`.
//!
//! A chunk of messages is one round trip, and so is a batch of settlements.

mod rates;
mod server;
mod store;

pub use rates::RedisRates;
pub use server::InvalidUrl;
pub use store::RedisStore;
