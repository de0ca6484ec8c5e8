//! RabbitMQ as a source and as a sink.

mod dial;
mod properties;
mod publisher;
mod retry;
mod settings;
mod sink;
mod topology;
mod trouble;

pub use lapin;

pub use dial::{Dial, InvalidUrl};
pub use retry::{RetryPublishing, RetrySink};
pub use settings::{OnFailure, ReaderSettings};
pub use sink::{RabbitPublishing, RabbitSink, RoutingKey};
pub use topology::{Binding, Declare, Topology};
