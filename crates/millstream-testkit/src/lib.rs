//! What authors of connectors test with: the [`conformance`] suite.
//!
//! # A connector of your own
//!
//! Say how a fresh place of your broker is made and what your connector can do, and run the suite. What you do not
//! declare is reported as *not declared*; what you declare has to pass. This is all it takes for the connector in
//! memory:
//!
//! ```
//! use std::sync::Arc;
//!
//! use millstream_core::memory::MemoryQueue;
//! use millstream_core::{Connector as _, SharedConnector, SharedSinkConnector};
//! use millstream_testkit::conformance::{self, Features, Place, Rejected, Scale, Subject};
//!
//! struct Memory;
//!
//! impl Subject for Memory {
//!     type Place = Queue;
//!
//!     fn name(&self) -> &str {
//!         "memory"
//!     }
//!
//!     fn declares(&self) -> Features {
//!         Features {
//!             capabilities: MemoryQueue::new().capabilities(),
//!             keys: true,
//!             headers: true,
//!             ordered: true,
//!             backlog: true,
//!             settles_singly: true,
//!             takes_back: true,
//!             cuts: true,
//!             ..Features::default()
//!         }
//!     }
//!
//!     async fn place(&self, _name: &str) -> Queue {
//!         Queue(MemoryQueue::new()) // a broker would declare a queue of this name
//!     }
//! }
//!
//! struct Queue(MemoryQueue);
//!
//! impl Place for Queue {
//!     fn connector(&self) -> SharedConnector {
//!         Arc::new(self.0.clone())
//!     }
//!
//!     fn sink(&self) -> SharedSinkConnector {
//!         Arc::new(self.0.clone())
//!     }
//!
//!     async fn cut(&self) {
//!         self.0.break_connection();
//!     }
//!
//!     async fn rejected(&self) -> Vec<Rejected> {
//!         let dead = self.0.dead().into_iter();
//!         dead.map(|(message, why)| Rejected { payload: message.payload, key: message.key, error: why.error.clone() })
//!             .collect()
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! // In a test: `#[tokio::test(flavor = "multi_thread")]`.
//! let report = conformance::run(Memory, Scale::Small).await;
//! println!("{report}"); // a row per case
//! assert!(report.is_conformant(), "{report}");
//! # });
//! ```
//!
//! One case alone, while you work on what it has found: [`conformance::run_one`].

pub mod conformance;
pub mod simulation;
