//! RabbitMQ as a source and as a sink.
//!
//! [`RabbitConnector`] reads a queue or a stream; [`RabbitSink`] publishes to exchanges and queues; [`RetrySink`] brings
//! messages back to a queue after a delay. Each has connections of its own, made by a [`Dial`], because a broker that
//! is short of memory stops reading from connections that publish, acknowledgements included.

mod acknowledger;
mod arrivals;
mod check;
mod connector;
mod depth;
mod dial;
mod inbox;
mod letters;
#[cfg(feature = "management")]
mod management;
mod offsets;
mod position;
mod progress;
mod properties;
mod publisher;
mod reader;
mod retry;
mod settings;
mod sink;
mod source;
mod stream;
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
