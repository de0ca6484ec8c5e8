//! What a running host tells the world over HTTP: metrics and health.
//!
//! [`Listener`] serves them at an address, as `[host] listen` asks; [`router`] is the same for a server that is there
//! already, and [`metrics`] the text alone.
//!
//! ```
//! use std::sync::Arc;
//!
//! use millstream_core::memory::MemoryQueue;
//! use millstream_core::{Context, Failure, Flow, Host, PipelineSpec, Processor, rt};
//! use millstream_ops::Listener;
//!
//! struct Done;
//!
//! impl Processor for Done {
//!     type Input = String;
//!     type Output = ();
//!     async fn process(&self, _: String, _: &mut Context<'_>) -> Result<(), Failure> {
//!         Ok(())
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! let listener = Listener::bind("127.0.0.1:0".parse()?).await?;
//! println!("http://{}/metrics", listener.address());
//!
//! let queue = MemoryQueue::new();
//! let host = Host::start([PipelineSpec::new("done", Arc::new(queue), Flow::process(Done))])?;
//! let serving = rt::spawn(listener.serve(host.clone()));
//! # serving.abort();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod health;
mod listener;
mod metrics;
mod patience;
mod routes;

pub use listener::{ListenError, Listener};
pub use metrics::{CONTENT_TYPE, metrics};
pub use routes::router;
