//! What travels: [`Message`] on the way in, [`Outgoing`] on the way out, [`Headers`] on both.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::settlement::millis;
use crate::ticket::Ticket;

/// Names a place that messages come from: a queue, or one partition of a topic.
///
/// Connectors get one from [`EngineHandle::origin`](crate::EngineHandle::origin); the engine turns it back
/// into the name where a person reads it. It is also what `ordering = "partition"` orders by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OriginId(pub(crate) u32);

/// One message as a source read it.
///
/// The engine keeps it until it is settled; user code sees it through
/// [`Context`](crate::Context) and its decoded [`Input`](crate::Processor::Input).
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// The body, untouched.
    pub payload: Bytes,
    /// What `ordering = "key"` orders by, and what a partitioned sink partitions by.
    pub key: Option<Bytes>,
    /// The message's own headers.
    pub headers: Headers,
    /// The place it came from.
    pub origin: OriginId,
    /// Its number within that place, for people: a row id, an offset, a delivery tag.
    pub position: u64,
    /// When it was published, where the broker knows.
    pub timestamp: Option<SystemTime>,
    /// How often the broker has handed it out, this time included; 0 where the broker does not count.
    ///
    /// A crash raises this for everything the process held, run or not.
    pub deliveries: u32,
    /// Handler runs of this message that have failed so far, carried through the broker where it went back.
    pub failures: u32,
    /// Higher went first; 0 where the source knows of none, or keeps it as a header. A dead letter has it too.
    pub priority: i32,
    /// When a run of it first failed, where that is known: it is carried as `failures` is.
    pub first_failed: Option<SystemTime>,
}

impl Message {
    /// The header that carries [`failures`](Self::failures) where a message goes back through its broker.
    pub const FAILURES: &'static str = "millstream-failures";

    /// The header with the time at which a message first failed, in milliseconds since 1970: of a dead letter, of one
    /// that was replayed, and of one that goes back through its broker.
    pub const FIRST_FAILED_AT: &'static str = "millstream-first-failed-at";

    /// The header that counts how often a message was replayed.
    pub const REPLAYS: &'static str = "millstream-replays";

    /// The header that carries when a message was first received, in milliseconds since 1970, where it goes back through
    /// a broker that knows no time of it, and the pipeline asks for its age.
    pub const FIRST_RECEIVED: &'static str = "millstream-first-received";

    /// A message with this payload and nothing else.
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self {
            payload: payload.into(),
            ..Self::default()
        }
    }

    /// When it was first received, where the header [`FIRST_RECEIVED`](Self::FIRST_RECEIVED) says it.
    pub(crate) fn first_received(&self) -> Option<SystemTime> {
        let millis = self.headers.get(Self::FIRST_RECEIVED)?.parse().ok()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis))
    }

    /// The same with a key.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// The same with one more header.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push(name, value);
        self
    }

    /// Takes the header [`FAILURES`](Self::FAILURES) for what it says, out of the headers, and with it the time of the
    /// first one.
    pub fn take_failures(&mut self) {
        if let Some(failures) = self.headers.remove(Self::FAILURES) {
            self.failures = failures.parse().unwrap_or_default();
            self.take_first_failed();
        }
    }

    /// Takes the header [`FIRST_FAILED_AT`](Self::FIRST_FAILED_AT) for what it says, out of the headers.
    pub fn take_first_failed(&mut self) {
        if let Some(at) = self.headers.remove(Self::FIRST_FAILED_AT) {
            self.first_failed = time_of(&at);
        }
    }

    /// The same message on its way back to where it came from, to come again after this long.
    pub(crate) fn put_off(&self, place: Arc<str>, delay: Duration) -> Outgoing {
        let mut headers = self.headers.clone();
        headers.set(Self::FAILURES, &self.failures.to_string());
        if let Some(at) = self.first_failed {
            headers.set(Self::FIRST_FAILED_AT, &millis(at).to_string());
        }
        Outgoing {
            payload: self.payload.clone(),
            key: self.key.clone(),
            headers,
            delay,
            was: Some(Box::new(Was {
                place,
                position: self.position,
                timestamp: self.timestamp,
            })),
            priority: self.priority,
            ..Outgoing::default()
        }
    }

    /// What it counts for in `limits.bytes`: payload, key and headers.
    pub fn size(&self) -> usize {
        self.payload.len() + self.key.as_ref().map_or(0, Bytes::len) + self.headers.size()
    }
}

/// A time that a header gives in milliseconds since 1970.
pub(crate) fn time_of(millis: &str) -> Option<SystemTime> {
    let millis = millis.parse().ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis))
}

/// One message for a sink.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outgoing {
    /// The body.
    pub payload: Bytes,
    /// The key, where the target orders or partitions by one.
    pub key: Option<Bytes>,
    /// Headers, written as the target writes them.
    pub headers: Headers,
    /// Not to be handed out before this long has passed; zero for at once.
    ///
    /// Only a sink that says so in its capabilities honours it.
    pub delay: Duration,
    /// Higher goes first, where the target has priorities.
    pub priority: i32,
    /// Of a message on its way back to where it came from: what it was there, which a retry sink may keep.
    pub was: Option<Box<Was>>,
    /// The delivery that it comes of, while that is unsettled; the engine's to say. A sink that settles what it writes
    /// at the source, in one transaction, goes by it.
    pub ticket: Option<Ticket>,
}

/// What a message was where it was first read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Was {
    /// The name of the place.
    pub place: Arc<str>,
    /// [`Message::position`].
    pub position: u64,
    /// [`Message::timestamp`].
    pub timestamp: Option<SystemTime>,
}

impl Outgoing {
    /// A message with this payload and nothing else.
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self {
            payload: payload.into(),
            ..Self::default()
        }
    }

    /// The same with a key.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// The same with one more header.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push(name, value);
        self
    }

    /// What it counts for in a batch's `bytes`: payload, key and headers.
    pub fn size(&self) -> usize {
        self.payload.len() + self.key.as_ref().map_or(0, Bytes::len) + self.headers.size()
    }
}

impl Outgoing {
    /// Takes along when it was first received.
    pub(crate) fn set_first_received(&mut self, at: SystemTime) {
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.headers
            .set(Message::FIRST_RECEIVED, &since.as_millis().to_string());
    }
}

impl From<Bytes> for Outgoing {
    fn from(payload: Bytes) -> Self {
        Self::new(payload)
    }
}

impl From<Vec<u8>> for Outgoing {
    fn from(payload: Vec<u8>) -> Self {
        Self::new(payload)
    }
}

impl From<String> for Outgoing {
    fn from(payload: String) -> Self {
        Self::new(payload)
    }
}

/// An ordered list of names and values; a name may occur more than once.
///
/// A clone is one reference count; no headers cost eight bytes and no allocation.
///
/// ```
/// # use millstream_core::Headers;
/// let mut headers = Headers::new();
/// headers.push("tenant", "acme");
/// assert_eq!(headers.get("tenant"), Some("acme"));
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(Option<Arc<Vec<Header>>>);

type Header = (Box<str>, Box<str>);

impl Headers {
    /// No headers.
    pub const fn new() -> Self {
        Self(None)
    }

    /// The first value under this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter()
            .find(|(found, _)| *found == name)
            .map(|(_, value)| value)
    }

    /// Adds a value at the end, beside any that the name already has.
    pub fn push(&mut self, name: &str, value: &str) {
        Arc::make_mut(self.0.get_or_insert_default()).push((name.into(), value.into()));
    }

    /// Replaces every value under this name by one.
    pub fn set(&mut self, name: &str, value: &str) {
        let list = Arc::make_mut(self.0.get_or_insert_default());
        list.retain(|(found, _)| **found != *name);
        list.push((name.into(), value.into()));
    }

    /// Removes every value under this name, and gives the first.
    pub fn remove(&mut self, name: &str) -> Option<String> {
        let first = self.get(name)?.to_owned();
        let list = Arc::make_mut(self.0.get_or_insert_default());
        list.retain(|(found, _)| **found != *name);
        if list.is_empty() {
            self.0 = None;
        }
        Some(first)
    }

    /// All names and values in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .flat_map(|list| list.iter())
            .map(|(name, value)| (&**name, &**value))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |list| list.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of all names and values together.
    pub fn size(&self) -> usize {
        self.iter().map(|(name, value)| name.len() + value.len()).sum()
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<N: AsRef<str>, V: AsRef<str>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let list: Vec<_> = pairs
            .into_iter()
            .map(|(name, value)| (name.as_ref().into(), value.as_ref().into()))
            .collect();
        if list.is_empty() {
            Self(None)
        } else {
            Self(Some(Arc::new(list)))
        }
    }
}
