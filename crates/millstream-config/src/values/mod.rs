//! Values that are written with a unit or within bounds, for the tables here and for connectors' own.
//!
//! Each refuses what it cannot be while it is deserialised, so that the error points at the value, and each
//! brings its part of the JSON Schema.

mod address;
mod concurrency;
mod count;
mod duration;
mod quantity;
mod ratio;
mod size;

pub use address::ListenAddress;
pub(crate) use concurrency::Concurrency;
pub use count::Count;
pub use duration::{HumanDuration, PositiveDuration};
pub use ratio::Ratio;
pub use size::ByteSize;
