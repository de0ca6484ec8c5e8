//! The stock connectors as the registry knows them.

mod file;
#[cfg(feature = "kafka")]
mod kafka;
mod memory;
#[cfg(feature = "rabbitmq")]
mod rabbitmq;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(feature = "sqs")]
mod sqs;
mod stdout;

pub use file::{FileKind, FileSettings, FileSinkSettings};
#[cfg(feature = "kafka")]
pub use kafka::{KafkaKind, KafkaOffsetReset, KafkaSettings, KafkaSinkSettings};
pub use memory::{MemoryKind, MemorySettings};
#[cfg(feature = "rabbitmq")]
pub use rabbitmq::{
    Arguments, BindingSettings, DeclareSettings, OnFailureSetting, RabbitKind, RabbitSettings,
    RabbitSinkSettings, Urls,
};
#[cfg(feature = "sqlite")]
pub use sqlite::{SqliteKind, SqliteSettings, SqliteSinkSettings};
#[cfg(feature = "sqs")]
pub use sqs::{SqsKind, SqsSettings, SqsSinkSettings};
pub use stdout::StdoutKind;
