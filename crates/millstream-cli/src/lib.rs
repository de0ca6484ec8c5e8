//! Millstream's command line, and the stock connectors and handlers.
//!
//! [`main`] is the whole of a binary: it reads the arguments and runs a command over what a
//! [`Registry`] knows. [`stock`] is the registry of the binary `millstream`; a binary of one's own adds its
//! flows to it, most easily through `millstream::App`.
//!
//! | command | does | exit |
//! |---|---|---|
//! | `run FILE` | runs until SIGTERM or SIGINT, then drains; a second signal releases at once; SIGHUP takes over what has changed in the file | 0 drained, 1 a pipeline gave up or messages were left at the deadline, 2 bad configuration |
//! | `check FILE` | says all that is wrong with a file; connects to nothing, unless `--connect` has it compared with its brokers | 0, 2 |
//! | `schema` | the JSON Schema of a file, for editors | 0 |
//! | `publish FILE --pipeline NAME` | standard input to where the pipeline's source reads | 0, 1, 2 bad configuration |
//! | `dead-letter list│show│replay│purge FILE --pipeline NAME` | looks after what the pipeline gave up | 0, 1, 2 bad configuration |
//!
//! What a command is asked for goes to standard output; logs, progress and errors go to standard error.

mod args;
mod connect;
mod connectors;
mod dead_letter;
mod envelope;
mod handlers;
mod load;
mod log;
mod named;
mod pace;
mod program;
mod progress;
mod publish;
mod reload;
mod run;
mod screen;
mod sender;
mod shape;
mod signals;
mod status;
mod stock;
mod stores;
mod summary;

#[cfg(feature = "rabbitmq")]
pub use connectors::{
    Arguments, BindingSettings, DeclareSettings, OnFailureSetting, RabbitKind, RabbitSettings,
    RabbitSinkSettings, Urls,
};
pub use connectors::{FileKind, FileSettings, FileSinkSettings, MemoryKind, MemorySettings, StdoutKind};
#[cfg(feature = "kafka")]
pub use connectors::{KafkaKind, KafkaOffsetReset, KafkaSettings, KafkaSinkSettings};
#[cfg(feature = "sqlite")]
pub use connectors::{SqliteKind, SqliteSettings, SqliteSinkSettings};
#[cfg(feature = "sqs")]
pub use connectors::{SqsKind, SqsSettings, SqsSinkSettings};
pub use envelope::{Envelope, EnvelopeError};
pub use handlers::ForwardHandler;
#[cfg(feature = "http")]
pub use handlers::{HttpHandler, HttpSettings};
pub use millstream_config::Registry;
pub use program::main;
pub use shape::shape_of;
pub use stock::stock;
pub use stores::MemoryStoreKind;
#[cfg(feature = "redis")]
pub use stores::{RedisStoreKind, RedisStoreSettings};
#[cfg(feature = "sqlite")]
pub use stores::{SqliteStoreKind, SqliteStoreSettings};
