//! Contracts.

mod connector;
mod flow;
mod handle;
mod message;
pub mod rt;
mod settlement;
mod spec;
mod ticket;

pub use connector::*;
pub use flow::*;
pub use handle::{Detached, Drained, EngineHandle};
pub use message::{Headers, Message, OriginId, Outgoing};
pub use settlement::{Outcome, Reason, Rejection, Settle, Settlement};
pub use spec::*;
pub use ticket::{Scope, Ticket};
