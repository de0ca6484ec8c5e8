//! `handler = "http"`: POSTs each payload to a URL.
//!
//! Beside the payload goes `x-millstream-pipeline`, `x-millstream-attempt`, `x-millstream-origin`, where there is a
//! key `x-millstream-key`, and `x-millstream-header-NAME` for each header of the message; how what HTTP cannot
//! carry is written is told in [`names`].
//!
//! What the answer means is told in [`answer`]. Its body is read and forgotten, because it may repeat the payload.

mod answer;
mod names;
mod post;
mod settings;

pub use settings::{HttpHandler, HttpSettings};
