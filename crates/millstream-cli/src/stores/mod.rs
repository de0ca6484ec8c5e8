//! The stock stores of ids, for `deduplicate`, as the registry knows them.

mod memory;
#[cfg(feature = "sqlite")]
mod sqlite;

pub use memory::MemoryStoreKind;
#[cfg(feature = "sqlite")]
pub use sqlite::{SqliteStoreKind, SqliteStoreSettings};
