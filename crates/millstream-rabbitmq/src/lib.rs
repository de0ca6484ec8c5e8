//! RabbitMQ as a source and as a sink.

mod acknowledger;
mod connector;
mod dial;
mod inbox;
mod properties;
mod reader;
mod settings;
mod source;
mod tags;
mod publisher;
mod retry;
mod settings;
mod sink;
mod topology;
mod trouble;
mod window;

pub use lapin;

pub use acknowledger::RabbitAcknowledger;
pub use connector::RabbitConnector;
pub use dial::{Dial, InvalidUrl};
pub use retry::{RetryPublishing, RetrySink};
pub use settings::{OnFailure, ReaderSettings};
pub use source::RabbitSource;
pub use sink::{RabbitPublishing, RabbitSink, RoutingKey};
pub use topology::{Binding, Declare, Topology};
