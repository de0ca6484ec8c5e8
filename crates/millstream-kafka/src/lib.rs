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
//! - A message that waits for its next attempt in a retry topic ([`KafkaConnector::retry_topics`]) comes not before its time,
//!   as what it was, and holds up nobody.
//! - Kafka counts no deliveries, so unclean ends are counted beside the committed offset. A message that ends its process
//!   again and again comes alone in the end, and is given up by the engine; none is whose neighbour it was.
//! - With `dead_letter = "halt"` nothing of a partition is handed out after a message that was given up.
//!
//! # Exactly once
//!
//! Sinks that a [`transactional`](KafkaConnector::transactional) connector makes write within transactions that commit its
//! offsets too: who reads with `read_committed` finds the output of each input once. [`TransactionalSink`] is such a sink.
//!
//! - All that is written between two commits, and the offsets of just what it came from, are one transaction; inputs without
//!   an output go along, and so does what is put off to a retry topic. A sink is answered when its transaction is committed.
//! - What is settled beyond an offset always fits beside it, and beside the note of unclean ends: a partition hands out no more than can be told of.
//! - An aborted transaction is written again from memory. A call that is dropped takes back what it wrote or has settled it.
//! - Commits carry the generation of the group, so ids belong to processes and not to partitions; of two processes with one
//!   id, the elder's source ends with an error.
//! - A revocation commits or aborts first; a lost assignment aborts.
//!
//! # What it leaves to others
//!
//! Kafka keeps no rejected message apart. So it needs a `dead_letter`, `"discard"` or `"halt"`. A released message is handed
//! out again from memory.
//!
//! # Memory
//!
//! librdkafka fetches up to 1 MiB of payloads of each partition ahead of demand, or 20000 messages (`queued.max.messages.kbytes`,
//! `queued.min.messages`), and some more with the last fetch, each of up to 4 MiB (`fetch.max.bytes`); the member's thread takes
//! 8000 messages or 4 MiB of those. Neither counts in `limits`, and a drain drops both. Small messages that came one after the
//! other share their memory: one that stays in flight keeps up to 4 KiB of it.

mod callbacks;
mod check;
mod commits;
mod committer;
mod connector;
mod copies;
mod ends;
mod fetched;
mod gate;
mod letters;
mod member;
mod metadata;
mod offsets;
mod properties;
mod retry;
mod shared;
mod signal;
mod sink;
mod statistics;
mod tiers;
mod transactions;

pub use connector::{KafkaAcknowledger, KafkaConnector, KafkaSource, OffsetReset};
pub use properties::{InvalidProperty, connects};
pub use sink::{KafkaSink, KafkaWriter};
pub use transactions::sink::{TransactionalSink, TransactionalWriter};
