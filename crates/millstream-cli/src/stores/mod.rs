//! The stock stores, for `deduplicate` and `rate_limit`, as the registry knows them.

mod memory;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "sqlite")]
mod sqlite;

pub use memory::MemoryStoreKind;
#[cfg(feature = "redis")]
pub use redis::{RedisStoreKind, RedisStoreSettings};
#[cfg(feature = "sqlite")]
pub use sqlite::{SqliteStoreKind, SqliteStoreSettings};
