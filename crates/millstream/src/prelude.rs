//! What most programs need, for `use millstream::prelude::*`.

pub use millstream_core::{Batch, BatchHandler, Context, Failure, Flow, Message, Outgoing, Processor};
pub use serde::{Deserialize, Serialize};

pub use crate::{App, Json};
