//! Millstream's connector to Kafka, on librdkafka: [`KafkaConnector`] reads, [`KafkaSink`] writes.
//!
//! # What it promises
//!
//! - The committed offset never passes an unsettled message (P7): not when messages end out of order, not across
//!   rebalances, and whatever offsets compaction and transactions leave out. What is settled beyond it is written beside it
//!   and not handed out again after a crash, as far as 4096 bytes can tell.
//! - A partition that is taken away in good order is given up after what runs has ended, batches that touch it are
//!   flushed, and what is settled is committed; what runs on at half of `max.poll.interval.ms` is cancelled. Nothing of
//!   that waits for another poll. One that is lost is dropped, and settlements for it are stale.
//! - A message that stays unsettled holds back its partition once `window` offsets have come since, and nothing grows
//!   beyond that.
//! - Whatever the engine does, the member polls: the group sees it alive.
//!
//! # What it leaves to others
//!
//! Kafka holds no single message back and counts no deliveries. So it needs a `dead_letter` or `"discard"`, retries are
//! made in place, and a message that ends its process comes again as often as the process is started. A released message is
//! handed out again from memory.
//!
//! # Memory
//!
//! librdkafka fetches up to 16 MiB ahead of demand (`queued.max.messages.kbytes`), and the member's thread a thousand
//! messages or 1 MiB of those. Neither counts in `limits`, and a drain drops both.

mod check;
mod commits;
mod connector;
mod member;
mod metadata;
mod offsets;
mod properties;
mod shared;
mod sink;

pub use connector::{KafkaAcknowledger, KafkaConnector, KafkaSource, OffsetReset};
pub use properties::InvalidProperty;
pub use sink::{KafkaSink, KafkaWriter};
