//! RabbitMQ as a source and as a sink.

mod acknowledger;
mod connector;
mod dial;
mod inbox;
mod properties;
mod publisher;
mod reader;
mod retry;
mod settings;
mod sink;
mod source;
mod tags;
mod topology;
mod trouble;
mod window;

pub use lapin;

pub use acknowledger::RabbitAcknowledger;
pub use connector::RabbitConnector;
pub use dial::{Dial, InvalidUrl};
pub use retry::{RetryPublishing, RetrySink};
pub use settings::{OnFailure, ReaderSettings};
pub use sink::{RabbitPublishing, RabbitSink, RoutingKey};
pub use source::RabbitSource;
pub use topology::{Binding, Declare, Topology};
