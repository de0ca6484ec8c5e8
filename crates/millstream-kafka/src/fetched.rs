//! What was fetched, by partition, taken from librdkafka many messages at a time: [`Fetched`].
//!
//! To poll for one message costs more than the message: librdkafka reads clocks, takes locks and allocates an event for
//! each. It gives many with one call too, but not from a consumer's own queue, where rebalances come between them. So what
//! is fetched of each partition waits in a queue of its own, and the consumer's is polled for all else.
//!
//! A partition that nothing is to be read of is not taken from. Nothing is paused: librdkafka fetches no more of it than
//! `queued.max.messages.kbytes` and goes on once some of that is taken, with nothing thrown away.
//!
//! # Where fetching goes on
//!
//! librdkafka itself pauses all partitions during a rebalance, and fetches on from the position of the application
//! (`rd_kafka_assignment_pause`, `rd_kafka_toppar_pause_resume`). So that must be exact:
//!
//! - `rd_kafka_consume_batch_queue` moves it only forward, and past errors too (`rd_kafka_q_serve_rkmessages`): what a
//!   fetch failed at would be left out, and what comes again after a log was cut.
//! - `rd_kafka_consume_callback` sets it with each message to the one after it, back as well, and leaves it as it is
//!   with an error (`rd_kafka_fetch_op_app_prepare`), as a poll does. What a pause or a seek has outdated it drops
//!   (`rd_kafka_consume_cb`).
//!
//! The latter is what is called here. From a queue with no other behind it, since one that leads elsewhere ceases to when
//! its partition is taken away (`rd_kafka_toppar_fetch_stop`), by another thread and some time later.
//!
//! The bindings have no safe call for it: this is the one module of the crate that calls librdkafka by itself. It relies on
//! what `rdkafka.h` says: any thread may call it; a message stands, with all that it points to, while its callback runs;
//! a topic's handle is its holder's to give back before its client goes.
#![allow(unsafe_code)]

use std::any::Any;
use std::ffi::{CString, c_void};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::{self, NonNull};
use std::sync::{Arc, Weak};

use millstream_core::OriginId;
use rdkafka::bindings as sys;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;

use crate::copies::Assigned;
use crate::shared::Place;

mod given;

pub(crate) use given::Given;

/// The most messages that are taken of one partition before it is the next one's turn, which is what librdkafka is told too:
/// while some are taken, it takes the queue for shorter by so many.
pub(crate) const BATCH: usize = 500;

/// What is fetched of the partitions that a consumer is assigned.
pub(crate) struct Fetched<C: ConsumerContext + 'static> {
    consumer: Weak<BaseConsumer<C>>,
    queues: Vec<Queue<C>>,
    /// Whose turn it is.
    next: usize,
}

/// What is fetched of one partition.
struct Queue<C: ConsumerContext + 'static> {
    from: Assigned,
    // Says that something has come, for as long as it is here.
    _queue: PartitionQueue<C>,
    topic: Topic<C>,
    partition: i32,
}

/// A handle of a topic, and the client that it is to be given back before.
struct Topic<C: ConsumerContext + 'static> {
    handle: NonNull<sys::rd_kafka_topic_t>,
    consumer: Arc<BaseConsumer<C>>,
}

// SAFETY: librdkafka's topics have locks of their own.
unsafe impl<C: ConsumerContext> Send for Topic<C> {}

impl<C: ConsumerContext> Topic<C> {
    fn new(consumer: Arc<BaseConsumer<C>>, name: &str) -> Option<Self> {
        let name = CString::new(name).ok()?;
        // SAFETY: the client is alive, the name ends with a zero, and without settings it has those of the client.
        let handle = unsafe {
            sys::rd_kafka_topic_new(consumer.client().native_ptr(), name.as_ptr(), ptr::null_mut())
        };
        let handle = NonNull::new(handle)?;
        Some(Self { handle, consumer })
    }
}

impl<C: ConsumerContext> Drop for Topic<C> {
    fn drop(&mut self) {
        // SAFETY: it was given, and nobody else gives it back; its client is alive.
        unsafe { sys::rd_kafka_topic_destroy(self.handle.as_ptr()) };
    }
}

impl<C: ConsumerContext> Fetched<C> {
    /// Of this consumer, which it does not keep alive while nothing is assigned. Its `consume.callback.max.messages` is to
    /// be [`BATCH`].
    pub(crate) fn new(consumer: &Arc<BaseConsumer<C>>) -> Self {
        Self {
            consumer: Arc::downgrade(consumer),
            queues: Vec::new(),
            next: 0,
        }
    }

    /// Has what is fetched of a partition come here, from an assignment on that is about to be made. `wake` is called when
    /// there is something after there was nothing, from any thread, with locks of librdkafka held. Without memory for it,
    /// what is fetched comes to the consumer.
    pub(crate) fn begin(&mut self, place: &Place, from: Assigned, wake: impl Fn() + Send + Sync + 'static) {
        // Before the new one, as both are of one queue.
        self.end(from.origin);
        let Some(consumer) = self.consumer.upgrade() else {
            // It closes.
            return;
        };
        let queue = consumer.split_partition_queue(&place.topic, place.partition);
        let (Some(mut queue), Some(topic)) = (queue, Topic::new(consumer, &place.topic)) else {
            return;
        };
        queue.set_nonempty_callback(wake);
        self.queues.push(Queue {
            from,
            _queue: queue,
            topic,
            partition: place.partition,
        });
    }

    /// After a partition was given up: drops what is left of it, which nobody takes any more.
    pub(crate) fn end(&mut self, origin: OriginId) {
        let gone = self.queues.iter().position(|queue| queue.from.origin == origin);
        if let Some(gone) = gone {
            let gone = self.queues.remove(gone);
            // What is outdated is no message any more, and whatever else there may be stays.
            while gone.take(|_| ControlFlow::Break(())) >= BATCH {}
        }
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

    /// Takes [`BATCH`] messages at most of the partition whose turn it is, errors among them, without waiting and no further
    /// than `each` says.
    pub(crate) fn take(&self, each: impl FnMut(Result<Given<'_>, KafkaError>) -> ControlFlow<()>) {
        if let Some(queue) = self.queues.get(self.next) {
            queue.take(each);
        }
    }
}

/// What is done with each message of one call.
struct Call<F> {
    each: F,
    client: *mut sys::rd_kafka_t,
    /// It panicked, which must not go through librdkafka.
    panicked: Option<Box<dyn Any + Send>>,
}

impl<C: ConsumerContext> Queue<C> {
    /// How many there were, with those that librdkafka dropped.
    fn take<F: FnMut(Result<Given<'_>, KafkaError>) -> ControlFlow<()>>(&self, each: F) -> usize {
        let mut call = Call {
            each,
            client: self.topic.consumer.client().native_ptr(),
            panicked: None,
        };
        let with: *mut Call<F> = &mut call;
        // SAFETY: the handle is alive. `give` is called within this call alone, with what it was made for.
        let taken = unsafe {
            let topic = self.topic.handle.as_ptr();
            sys::rd_kafka_consume_callback(topic, self.partition, 0, Some(give::<F>), with.cast())
        };
        if let Some(panic) = call.panicked {
            resume_unwind(panic);
        }
        // Negative where it knows no such partition.
        usize::try_from(taken).unwrap_or_default()
    }
}

/// What librdkafka calls with each message; it destroys it afterwards.
unsafe extern "C" fn give<F: FnMut(Result<Given<'_>, KafkaError>) -> ControlFlow<()>>(
    message: *mut sys::rd_kafka_message_t,
    call: *mut c_void,
) {
    // SAFETY: it is what `Queue::take` gave, which nothing else uses while it waits for librdkafka.
    let call = unsafe { &mut *call.cast::<Call<F>>() };
    // SAFETY: it is a message of a consumer, and stands until this returns.
    let given = unsafe { Given::new(message) };
    let given = given.error().map_or(Ok(given), Err);
    let flow = catch_unwind(AssertUnwindSafe(|| (call.each)(given)));
    let goes_on = matches!(flow, Ok(ControlFlow::Continue(())));
    if let Err(panic) = flow {
        call.panicked = Some(panic);
    }
    if !goes_on {
        // SAFETY: the client is alive. What this call has left goes back to the front of the queue.
        unsafe { sys::rd_kafka_yield(call.client) };
    }
}

#[cfg(test)]
mod tests;
