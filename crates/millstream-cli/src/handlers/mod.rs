//! The stock handlers as the registry knows them.

mod forward;
#[cfg(feature = "http")]
mod http;

pub use forward::ForwardHandler;
#[cfg(feature = "http")]
pub use http::{HttpHandler, HttpSettings};
