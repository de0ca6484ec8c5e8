//! What was fetched, taken from librdkafka many messages at a time: [`Fetched`].
//!
//! To poll for one message costs more than the message: librdkafka reads clocks, takes locks and allocates an event for
//! each. It gives many with one call too, but not from a consumer's own queue, since what comes there beside messages,
//! such as a rebalance, would be lost. So partitions lead to a queue that has messages alone, and the consumer's own is
//! polled for all else.
//!
//! The bindings have no safe call for that: this is the one module of the crate that calls librdkafka by itself. It
//! relies on what `rdkafka.h` says: queues may be used from any thread; what a partition's queue leads to it leads to
//! until it is told otherwise or is not fetched from any more; a message that was taken stays as it is, with all that it
//! points to, until it is destroyed by whoever took it.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_void};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use millstream_core::Headers;
use rdkafka::Offset;
use rdkafka::bindings as sys;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaRespErr;
use rustc_hash::FxHashMap;

use crate::shared::{Place, Shared};

/// The most messages that are taken at once.
pub(crate) const BATCH: usize = 500;

/// The queue that partitions lead to.
pub(crate) struct Queue {
    queue: NonNull<sys::rd_kafka_queue_t>,
    /// Whose signal is raised when something comes.
    shared: Arc<Shared>,
}

// SAFETY: librdkafka's queues have locks of their own, and `Shared` may be used from any thread.
unsafe impl Send for Queue {}
// SAFETY: as above.
unsafe impl Sync for Queue {}

impl Queue {
    /// Has what is fetched of this partition come here, from its next assignment on.
    pub(crate) fn lead<C: ConsumerContext>(&self, consumer: &BaseConsumer<C>, place: &Place) {
        let Ok(topic) = CString::new(&*place.topic) else {
            return;
        };
        let client = consumer.client().native_ptr();
        // SAFETY: the client is alive, the name ends with a zero. The queue that is given is a reference of its own, which
        // is given back; the one that it leads to keeps itself alive for as long as something leads there.
        unsafe {
            let partition = sys::rd_kafka_queue_get_partition(client, topic.as_ptr(), place.partition);
            if !partition.is_null() {
                sys::rd_kafka_queue_forward(partition, self.queue.as_ptr());
                sys::rd_kafka_queue_destroy(partition);
            }
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: it is called once, with a queue of a client that is alive: `Fetched` has its consumer for longer, and
        // who else has it got it within a call of that consumer. Nothing calls back once that is off, so `shared` may go.
        unsafe {
            sys::rd_kafka_queue_cb_event_enable(self.queue.as_ptr(), None, ptr::null_mut());
            sys::rd_kafka_queue_destroy(self.queue.as_ptr());
        }
    }
}

/// Raises the signal: something has come to a queue that was empty.
unsafe extern "C" fn wake(_: *mut sys::rd_kafka_t, shared: *mut c_void) {
    // SAFETY: it is what `Fetched::new` gave, which stands until the queue is told to call back no more.
    let shared = unsafe { &*shared.cast_const().cast::<Shared>() };
    shared.signal.raise();
}

/// Takes what was fetched of the partitions that lead to its queue.
///
/// When a partition is paused, librdkafka will fetch on behind the highest offset that it ever gave, whatever has come
/// since: an error counts as a message there, and a log that was cut makes it no lower (`rd_kafka_q_serve_rkmessages`).
/// What lies between would be left out. So after an error, and where a partition went back, it is told where that stands.
pub(crate) struct Fetched<C: ConsumerContext + 'static> {
    // Before its consumer.
    queue: Arc<Queue>,
    consumer: Arc<BaseConsumer<C>>,
    /// The offset after the last that came, by where librdkafka keeps the topic, and partition. What is left here of an
    /// earlier assignment has a partition told once more what it knows.
    next: FxHashMap<(usize, i32), i64>,
}

/// What came that is no message.
#[derive(Debug)]
pub(crate) struct Trouble {
    pub(crate) error: KafkaError,
    /// Nobody knows where its partition would be read on.
    pub(crate) is_lost: bool,
}

impl<C: ConsumerContext> Fetched<C> {
    /// A queue for this consumer, that raises the signal when something comes. None if there is no memory.
    pub(crate) fn new(consumer: Arc<BaseConsumer<C>>, shared: Arc<Shared>) -> Option<Self> {
        // SAFETY: the client is alive.
        let queue = NonNull::new(unsafe { sys::rd_kafka_queue_new(consumer.client().native_ptr()) })?;
        let queue = Arc::new(Queue { queue, shared });
        let shared = Arc::as_ptr(&queue.shared).cast_mut().cast();
        // SAFETY: both the queue and what `wake` is called with stand until the queue is dropped, which turns it off.
        unsafe { sys::rd_kafka_queue_cb_event_enable(queue.queue.as_ptr(), Some(wake), shared) };
        Some(Self {
            queue,
            consumer,
            next: FxHashMap::default(),
        })
    }

    /// The queue, for whoever leads partitions there while it is served.
    pub(crate) fn queue(&self) -> Weak<Queue> {
        Arc::downgrade(&self.queue)
    }

    /// Takes so many messages of those that have come, [`BATCH`] at most, without waiting.
    pub(crate) fn take(&mut self, most: usize, mut each: impl FnMut(Result<Given<'_>, Trouble>)) {
        let mut batch = [ptr::null_mut(); BATCH];
        // SAFETY: there is room for so many.
        let taken = unsafe {
            let most = most.min(BATCH);
            sys::rd_kafka_consume_batch_queue(self.queue.queue.as_ptr(), 0, batch.as_mut_ptr(), most)
        };
        let taken = usize::try_from(taken).unwrap_or_default();
        let mut astray = Vec::new();
        let mut run: Option<((usize, i32), i64)> = None;
        for message in batch.into_iter().take(taken).filter_map(NonNull::new) {
            let taken = Taken(message);
            // SAFETY: it was taken, and is not destroyed before `taken` is.
            let given = unsafe { Given::new(message.as_ptr()) };
            let from = (given.topic_at(), given.partition());
            let next = match run {
                Some((last, next)) if last == from => Some(next),
                _ => {
                    self.next.extend(run);
                    self.next.get(&from).copied()
                }
            };
            let offset = given.message().offset;
            let went_back = next.is_some_and(|next| offset < next);
            match given.error() {
                None => {
                    run = Some((from, offset + 1));
                    each(Ok(given));
                }
                Some(error) => {
                    // It says what is fetched next; all that was fetched before has come.
                    let is_lost = offset < 0;
                    run = (!is_lost).then_some((from, offset)).or(run);
                    each(Err(Trouble { error, is_lost }));
                }
            }
            let is_error = given.error().is_some();
            if (went_back || is_error) && from.0 != 0 && offset >= 0 {
                astray.push((from, given.place()));
            }
            drop(taken);
        }
        self.next.extend(run);
        for (from, place) in astray {
            let Some(next) = self.next.get(&from) else {
                continue;
            };
            let (next, at_once) = (Offset::Offset(*next), Duration::ZERO);
            if let Err(error) = self.consumer.seek(&place.topic, place.partition, next, at_once) {
                each(Err(Trouble { error, is_lost: true }));
            }
        }
    }
}

/// A message that is to be destroyed.
struct Taken(NonNull<sys::rd_kafka_message_t>);

impl Drop for Taken {
    fn drop(&mut self) {
        // SAFETY: it was taken, and nobody else destroys it; what borrows from it has ended.
        unsafe { sys::rd_kafka_message_destroy(self.0.as_ptr()) };
    }
}

/// A message in librdkafka's memory.
#[derive(Clone, Copy)]
pub(crate) struct Given<'a> {
    message: *const sys::rd_kafka_message_t,
    stands: PhantomData<&'a sys::rd_kafka_message_t>,
}

impl<'a> From<&'a BorrowedMessage<'_>> for Given<'a> {
    fn from(message: &'a BorrowedMessage<'_>) -> Self {
        // SAFETY: it is a message for as long as it is borrowed.
        unsafe { Self::new(message.ptr()) }
    }
}

impl<'a> Given<'a> {
    /// # Safety
    /// It is a message of a consumer, which is not destroyed while `'a` lasts, nor used from another thread.
    unsafe fn new(message: *const sys::rd_kafka_message_t) -> Self {
        Self {
            message,
            stands: PhantomData,
        }
    }

    fn message(&self) -> &'a sys::rd_kafka_message_t {
        // SAFETY: as `new` was promised. Its fields do not change once it was taken.
        unsafe { &*self.message }
    }

    fn error(&self) -> Option<KafkaError> {
        match self.message().err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => None,
            error => Some(KafkaError::MessageConsumption(error.into())),
        }
    }

    /// Where librdkafka keeps its topic, which it does for as long as the partition is assigned.
    pub(crate) fn topic_at(&self) -> usize {
        self.message().rkt.addr()
    }

    /// Its topic and partition.
    pub(crate) fn place(&self) -> Place {
        // SAFETY: a message of a consumer has a topic, whose name ends with a zero and stands while the topic does.
        let name = unsafe { CStr::from_ptr(sys::rd_kafka_topic_name(self.message().rkt)) };
        Place {
            topic: name.to_string_lossy().into(),
            partition: self.partition(),
        }
    }

    pub(crate) fn partition(&self) -> i32 {
        self.message().partition
    }

    pub(crate) fn offset(&self) -> u64 {
        u64::try_from(self.message().offset).unwrap_or_default()
    }

    pub(crate) fn payload(&self) -> &'a [u8] {
        let message = self.message();
        // SAFETY: it is what the message says, and stands as long.
        unsafe { bytes(message.payload, message.len) }.unwrap_or_default()
    }

    pub(crate) fn key(&self) -> Option<&'a [u8]> {
        let message = self.message();
        // SAFETY: as above.
        unsafe { bytes(message.key, message.key_len) }
    }

    /// When it was published.
    pub(crate) fn timestamp(&self) -> Option<SystemTime> {
        let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: it is a message.
        let millis = unsafe { sys::rd_kafka_message_timestamp(self.message, &mut kind) };
        let known = kind != sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        let since = Duration::from_millis(u64::try_from(millis).ok()?);
        SystemTime::UNIX_EPOCH.checked_add(since).filter(|_| known)
    }

    /// What it has of headers; what of them is no text is made to be.
    pub(crate) fn headers(&self) -> Headers {
        let mut list = ptr::null_mut();
        // SAFETY: it is a message, which keeps the list that it gives. It reads them from what was fetched now, so no other
        // thread may look at the same message.
        let read = unsafe { sys::rd_kafka_message_headers(self.message, &mut list) };
        // Most messages have none, and to collect none would cost as much as a few.
        if RDKafkaErrorCode::from(read) != RDKafkaErrorCode::NoError {
            return Headers::new();
        }
        (0..)
            .map_while(|index| {
                let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
                // SAFETY: the list stands as long as the message. Beyond its end nothing is written.
                let found =
                    unsafe { sys::rd_kafka_header_get_all(list, index, &mut name, &mut value, &mut size) };
                if RDKafkaErrorCode::from(found) != RDKafkaErrorCode::NoError {
                    return None;
                }
                // SAFETY: a header that was found has a name that ends with a zero, and a value of that size, if any.
                let (name, value) = unsafe { (CStr::from_ptr(name), bytes(value, size)) };
                let value = String::from_utf8_lossy(value.unwrap_or_default());
                Some((name.to_string_lossy(), value))
            })
            .collect()
    }
}

/// # Safety
/// Where it is not null, so many bytes are there, and stand for `'a`.
unsafe fn bytes<'a>(at: *const c_void, size: usize) -> Option<&'a [u8]> {
    // SAFETY: as promised.
    (!at.is_null()).then(|| unsafe { slice::from_raw_parts(at.cast(), size) })
}

#[cfg(test)]
mod tests;
