//! `type = "rabbitmq"`: queues, streams and exchanges.

mod settings;
mod sink;
mod source;
mod values;

pub use settings::{BindingSettings, DeclareSettings, OnFailureSetting, RabbitSettings, RabbitSinkSettings};
pub use values::{Arguments, Urls};

/// Queues, streams and exchanges of RabbitMQ.
#[derive(Clone, Copy, Debug, Default)]
pub struct RabbitKind;
