//! Message consumers: a [`Processor`] for the work, a TOML file for the broker and the policies, and the engine
//! between them for backpressure, batching, acknowledgement, order, retries, rate limits, breakers, supervision.
//!
//! ```no_run
//! use millstream::prelude::*;
//!
//! #[derive(Deserialize)]
//! struct Order {
//!     id: u64,
//!     sku: String,
//!     quantity: u32,
//! }
//!
//! struct Price {
//!     catalog: Catalog,
//! }
//!
//! impl Processor for Price {
//!     type Input = Json<Order>;
//!     type Output = PricedOrder;
//!
//!     async fn process(&self, Json(order): Json<Order>, cx: &mut Context<'_>) -> Result<PricedOrder, Failure> {
//!         let price = self.catalog.price_of(&order.sku).await?; // any error: retried as the policy says
//!         if order.quantity == 0 {
//!             return Err(Failure::reject("empty order")); // never again: straight to the dead letter
//!         }
//!         cx.batch_to("db").batch_key(&order.sku);
//!         Ok(PricedOrder::new(order, price))
//!     }
//! }
//!
//! struct Insert {
//!     pool: Pool,
//! }
//!
//! impl BatchHandler for Insert {
//!     type Input = PricedOrder;
//!
//!     async fn handle(&self, batch: &mut Batch<PricedOrder>) -> Result<(), Failure> {
//!         for (index, error) in self.pool.insert_all(batch.items()).await?.conflicts() {
//!             batch.fail(index, Failure::reject(error)); // the others succeed
//!         }
//!         Ok(())
//!     }
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     millstream::App::new()
//!         .pipeline("orders", Flow::process(Price::new()).batch("db", Insert::new()))
//!         .main() // run, check, publish, … on a TOML file
//! }
//! #
//! # struct PricedOrder(#[allow(dead_code)] u64, #[allow(dead_code)] u64);
//! # impl PricedOrder {
//! #     fn new(order: Order, price: u64) -> Self { Self(order.id, price) }
//! # }
//! # struct Catalog;
//! # impl Catalog {
//! #     async fn price_of(&self, _: &str) -> Result<u64, std::io::Error> { Ok(1) }
//! # }
//! # impl Price { fn new() -> Self { Self { catalog: Catalog } } }
//! # struct Pool;
//! # struct Inserted;
//! # impl Inserted { fn conflicts(&self) -> Vec<(usize, String)> { Vec::new() } }
//! # impl Pool {
//! #     async fn insert_all(&self, _: &[PricedOrder]) -> Result<Inserted, std::io::Error> { Ok(Inserted) }
//! # }
//! # impl Insert { fn new() -> Self { Self { pool: Pool } } }
//! ```
//!
//! # The file
//!
//! The binary above runs with `cargo run -- run orders.toml`, against any broker: only the file changes.
//!
//! ```toml
//! [pipelines.orders.source]
//! type = "sqlite"
//! path = "orders.db"
//! queue = "orders"
//!
//! [pipelines.orders.batchers.db]
//! size = 100
//! max_age = "1s"
//! ```
//!
//! `check orders.toml` says all that is wrong with it, and `schema` prints its JSON Schema for editors.
//!
//! # Without the command line, without a file
//!
//! [`App::start`] runs a file's pipelines in a runtime that is there already, and [`Host::start`] pipelines
//! that were made without one:
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use millstream::memory::MemoryQueue;
//! use millstream::prelude::*;
//! use millstream::{Host, Message, PipelineSpec};
//!
//! struct Greet;
//!
//! impl Processor for Greet {
//!     type Input = String;
//!     type Output = ();
//!
//!     async fn process(&self, name: String, _: &mut Context<'_>) -> Result<(), Failure> {
//!         println!("hello, {name}");
//!         Ok(())
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
//! let queue = MemoryQueue::new();
//! queue.publish(Message::new("you"));
//!
//! let host = Host::start([PipelineSpec::new("greet", Arc::new(queue.clone()), Flow::process(Greet))])?;
//! host.idle(Duration::from_millis(10)).await;
//! host.drain(Duration::from_secs(5)).await;
//! assert!(queue.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Features
//!
//! | feature | default | brings |
//! |---|---|---|
//! | `rabbitmq` | yes | the `rabbitmq` connector: queues, streams and exchanges |
//! | `sqlite` | yes | the `sqlite` connector: an embedded durable queue |
//! | `kafka` | yes | the `kafka` connector; builds librdkafka from its C source |
//! | `kafka-ssl` | no | TLS and SASL for it, with the system's OpenSSL |
//! | `sqs` | yes | the `sqs` connector: standard and FIFO queues of Amazon SQS |
//! | `redis` | yes | the `redis` store of ids, for `deduplicate` |
//! | `http` | yes | the `http` handler: POSTs messages to a URL |
//!
//! The connectors `memory`, `file` and `stdout` and the handler `forward` are always there.

mod app;
mod json;
pub mod prelude;

/// What the README shows compiles.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;

pub use app::App;
pub use json::Json;

pub use millstream_core::*;

pub use millstream_cli as cli;
pub use millstream_config as config;
#[cfg(feature = "kafka")]
pub use millstream_kafka as kafka;
pub use millstream_ops as ops;
#[cfg(feature = "rabbitmq")]
pub use millstream_rabbitmq as rabbitmq;
#[cfg(feature = "redis")]
pub use millstream_redis as redis;
#[cfg(feature = "sqlite")]
pub use millstream_sqlite as sqlite;
#[cfg(feature = "sqs")]
pub use millstream_sqs as sqs;
