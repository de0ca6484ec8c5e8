//! The stock connectors as the registry knows them.

mod file;
mod memory;
#[cfg(feature = "sqlite")]
mod sqlite;
mod stdout;

pub use file::{FileKind, FileSettings, FileSinkSettings};
pub use memory::{MemoryKind, MemorySettings};
#[cfg(feature = "sqlite")]
pub use sqlite::{SqliteKind, SqliteSettings, SqliteSinkSettings};
pub use stdout::StdoutKind;
