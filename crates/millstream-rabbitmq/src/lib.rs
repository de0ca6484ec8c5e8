//! RabbitMQ as a source and as a sink.

mod dial;
mod properties;
mod settings;
mod topology;
mod trouble;

pub use lapin;

pub use dial::{Dial, InvalidUrl};
pub use settings::{OnFailure, ReaderSettings};
pub use topology::{Binding, Declare, Topology};
