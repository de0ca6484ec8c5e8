//! What was fetched, by partition, taken from librdkafka many messages at a time: [`Fetched`].
//!
//! To poll for one message costs more than the message: librdkafka reads clocks, takes locks and allocates an event for
//! each. It gives many with one call too, but not from a consumer's own queue, where rebalances come between them. So what
//! is fetched of each partition waits in a queue of its own, and the consumer's is polled for all else.
//!
//! A partition that nothing is to be read of is not taken from: librdkafka fetches no more of it than
//! `queued.max.messages.kbytes` and goes on once some of that is taken, with nothing thrown away. All are paused only when
//! nothing of any is read for a while.
//!
//! # Where fetching goes on
//!
//! librdkafka itself pauses all partitions during a rebalance, drops what of them was not taken, and fetches on from what it
//! takes for the position of the application (`rd_kafka_assignment_pause`, `rd_kafka_toppar_pause_resume`). That is not
//! exact: batches move it past errors and never back (`rd_kafka_q_serve_rkmessages`), so it would leave out what a fetch
//! failed at. So after each pause, its own or ours, and before anything more is taken, it is told where to [`go_on`]; what
//! it has fetched from anywhere else by then is outdated, and that it does not hand out.
//!
//! Of a partition of which nothing was taken since it began, or since it was last told, it has no such position, and goes on
//! from where it means to, which is exact, and may be what only it knows: where the group has committed, where a log begins
//! that was made anew, or to where one was cut.
//!
//! The queues have no other behind them, since one that leads elsewhere ceases to when its partition is taken away
//! (`rd_kafka_toppar_fetch_stop`), by another thread and some time later.
//!
//! The bindings have no safe call for batches: this is the one module of the crate that calls librdkafka by itself. It relies
//! on what `rdkafka.h` says: any thread may call it; a message belongs to who took it, until he destroys it; a queue's handle
//! is its holder's to give back before its client goes.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::ptr::NonNull;
use std::sync::{Arc, Weak};
use std::time::Duration;

use millstream_core::OriginId;
use rdkafka::bindings as sys;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::{Offset, TopicPartitionList};

use crate::copies::Assigned;
use crate::shared::Place;

mod given;

pub(crate) use given::Given;
use given::Taken;

/// The most messages that are taken of one partition before it is the next one's turn.
pub(crate) const BATCH: usize = 500;

/// What is fetched of the partitions that a consumer is assigned.
pub(crate) struct Fetched<C: ConsumerContext + 'static> {
    consumer: Weak<BaseConsumer<C>>,
    queues: Vec<Queue<C>>,
    /// Whose turn it is.
    next: usize,
    /// Room for what is taken; empty between two calls.
    taken: Vec<Taken>,
}

/// What is fetched of one partition.
struct Queue<C: ConsumerContext + 'static> {
    from: Assigned,
    handle: Handle,
    // Says that something has come, for as long as it is here, and keeps the client that the handle is of.
    _wakes: PartitionQueue<C>,
}

/// A handle of a queue, which goes before its client.
struct Handle(NonNull<sys::rd_kafka_queue_t>);

// SAFETY: librdkafka's queues have locks of their own.
unsafe impl Send for Handle {}

impl Handle {
    fn of<C: ConsumerContext>(consumer: &BaseConsumer<C>, place: &Place) -> Option<Self> {
        let topic = CString::new(&*place.topic).ok()?;
        // SAFETY: the client is alive, and the name ends with a zero.
        let queue = unsafe {
            sys::rd_kafka_queue_get_partition(consumer.client().native_ptr(), topic.as_ptr(), place.partition)
        };
        NonNull::new(queue).map(Self)
    }

    /// Takes at most as many as there is room for, without waiting.
    fn take(&self, most: usize, taken: &mut Vec<Taken>) {
        taken.clear();
        let room = taken.capacity().min(most);
        // SAFETY: the handle is alive, and there is room for so many, each no more than a pointer.
        let count =
            unsafe { sys::rd_kafka_consume_batch_queue(self.0.as_ptr(), 0, taken.as_mut_ptr().cast(), room) };
        let count = usize::try_from(count).unwrap_or_default();
        // SAFETY: so many are there, each a message that is ours.
        unsafe { taken.set_len(count) };
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: it was given, nobody else gives it back, and its client is alive.
        unsafe { sys::rd_kafka_queue_destroy(self.0.as_ptr()) };
    }
}

impl<C: ConsumerContext> Fetched<C> {
    /// Of this consumer, which it does not keep alive while nothing is assigned.
    pub(crate) fn new(consumer: &Arc<BaseConsumer<C>>) -> Self {
        Self {
            consumer: Arc::downgrade(consumer),
            queues: Vec::new(),
            next: 0,
            taken: Vec::with_capacity(BATCH),
        }
    }

    /// Has what is fetched of a partition come here, from an assignment on that is about to be made. `wake` is called when
    /// there is something after there was nothing, from any thread, with locks of librdkafka held.
    pub(crate) fn begin(&mut self, place: &Place, from: Assigned, wake: impl Fn() + Send + Sync + 'static) {
        // Before the new one, as both are of one queue.
        self.end(from.origin);
        let Some(consumer) = self.consumer.upgrade() else {
            // It closes.
            return;
        };
        let Some(handle) = Handle::of(&consumer, place) else {
            return;
        };
        let Some(mut wakes) = consumer.split_partition_queue(&place.topic, place.partition) else {
            return;
        };
        wakes.set_nonempty_callback(wake);
        self.queues.push(Queue {
            from,
            handle,
            _wakes: wakes,
        });
    }

    /// After a partition was given up: drops what is left of it, which is outdated and nobody takes any more.
    pub(crate) fn end(&mut self, origin: OriginId) {
        let gone = self.queues.iter().position(|queue| queue.from.origin == origin);
        if let Some(gone) = gone {
            let gone = self.queues.remove(gone);
            gone.handle.take(BATCH, &mut self.taken);
            self.taken.clear();
        }
    }

    /// After a pause: frees what was fetched before it, which librdkafka does not before somebody asks for more.
    pub(crate) fn drop_outdated(&mut self) {
        for queue in &self.queues {
            queue.handle.take(1, &mut self.taken);
        }
        self.taken.clear();
    }

    /// How many partitions there are.
    pub(crate) fn len(&self) -> usize {
        self.queues.len()
    }

    /// The partition whose turn it is next.
    pub(crate) fn turn(&mut self) -> Option<Assigned> {
        self.next += 1;
        if self.next >= self.queues.len() {
            self.next = 0;
        }
        self.queues.get(self.next).map(|queue| queue.from)
    }

    /// Takes so many messages, and no more than [`BATCH`], of the partition whose turn it is, without waiting. Errors are
    /// among them, each with what it says for an offset.
    pub(crate) fn take(&mut self, most: usize, mut each: impl FnMut(Result<Given<'_>, (KafkaError, i64)>)) {
        if let Some(queue) = self.queues.get(self.next) {
            queue.handle.take(most, &mut self.taken);
        }
        for taken in self.taken.drain(..) {
            let given = taken.given();
            each(given.error().map_or(Ok(given), Err));
        }
    }
}

/// Has librdkafka fetch on from there, where what it takes for the position is not to be trusted: what was fetched of those
/// partitions before does not come any more. Others it leaves alone. They go on exactly where librdkafka means to, which may
/// be elsewhere: it has not begun yet, or the log was cut since.
pub(crate) fn go_on<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    positions: &[(Place, Option<Offset>)],
) -> KafkaResult<()> {
    let taken = consumer.position()?;
    let mut list = TopicPartitionList::new();
    for (place, offset) in positions {
        let taken = taken.find_partition(&place.topic, place.partition);
        let is_moved = taken.is_some_and(|taken| taken.offset() != Offset::Invalid);
        if let Some(offset) = offset.filter(|_| is_moved) {
            list.add_partition_offset(&place.topic, place.partition, offset)?;
        }
    }
    if list.count() > 0 {
        // Without waiting: what was fetched before is outdated when the call returns.
        consumer.seek_partitions(list, Duration::ZERO)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
