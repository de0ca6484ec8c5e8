//! A message in librdkafka's memory: [`Taken`] is who it belongs to, [`Given`] a look at it.

use std::ffi::{CStr, c_void};
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::time::{Duration, SystemTime};
use std::{ptr, slice};

use millstream_core::Headers;
use rdkafka::bindings as sys;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaRespErr;

/// A message that was taken, which goes with it.
#[repr(transparent)]
pub(super) struct Taken(NonNull<sys::rd_kafka_message_t>);

// SAFETY: a message may be destroyed by another thread than the one that took it.
unsafe impl Send for Taken {}

impl Taken {
    pub(super) fn given(&self) -> Given<'_> {
        // SAFETY: it is a message until it is dropped, and this thread has it.
        unsafe { Given::new(self.0.as_ptr()) }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        // SAFETY: it is ours alone.
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
    pub(super) unsafe fn new(message: *const sys::rd_kafka_message_t) -> Self {
        Self {
            message,
            stands: PhantomData,
        }
    }

    fn message(&self) -> &'a sys::rd_kafka_message_t {
        // SAFETY: as `new` was promised. Its fields do not change once it was taken.
        unsafe { &*self.message }
    }

    /// What it says instead, if it is no message, and where: at an offset, or at what stands for one if negative.
    pub(super) fn error(&self) -> Option<(KafkaError, i64)> {
        match self.message().err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => None,
            error => Some((
                KafkaError::MessageConsumption(error.into()),
                self.message().offset,
            )),
        }
    }

    pub(crate) fn offset(&self) -> u64 {
        u64::try_from(self.message().offset).unwrap_or_default()
    }

    /// Bytes of payload and key.
    pub(crate) fn size(&self) -> usize {
        self.message().len + self.message().key_len
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
