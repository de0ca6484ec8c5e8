//! Which messages were done of late: the contract of a store of ids ([`DedupStore`]), and the one in memory
//! ([`MemoryStore`]).
//!
//! The engine asks for a chunk's ids before it admits the chunk, and enters those of a batch of settlements before
//! the source hears of them: what a crash leaves entered and not acknowledged is a duplicate when it comes again.

use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use thiserror::Error;

use crate::future::BoxFuture;
use crate::ordering::OrderBy;
use crate::rt::{self, Duration, Instant};

/// How a pipeline knows what it has done already.
#[derive(Clone)]
pub struct DeduplicateSpec {
    /// Which messages are the same.
    pub by: IdBy,
    /// For how long after its success a message is known.
    pub window: Duration,
    /// What remembers.
    pub store: SharedDedupStore,
    /// What happens while it cannot be asked.
    pub on_store_failure: OnStoreFailure,
}

impl DeduplicateSpec {
    /// By the id that the source knows, for ten minutes, in memory, running on whatever the store does.
    pub fn new() -> Self {
        Self {
            by: IdBy::Source,
            window: Self::WINDOW,
            store: Arc::new(MemoryStore::new(Self::MAX_ENTRIES)),
            on_store_failure: OnStoreFailure::Run,
        }
    }

    /// The window where none is named.
    pub const WINDOW: Duration = Duration::from_secs(600);
    /// Entries that a store keeps where no bound is named.
    pub const MAX_ENTRIES: NonZeroUsize = const { NonZeroUsize::new(100_000).unwrap() };
}

impl Default for DeduplicateSpec {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for DeduplicateSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeduplicateSpec")
            .field("by", &self.by)
            .field("window", &self.window)
            .field("on_store_failure", &self.on_store_failure)
            .finish_non_exhaustive()
    }
}

/// What makes two messages the same.
#[derive(Clone)]
pub enum IdBy {
    /// The id that the source knows: see [`Ids`].
    Source,
    /// What this gives; a message for which it gives nothing is like no other.
    By(OrderBy),
}

impl fmt::Debug for IdBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "Source",
            Self::By(_) => "By(..)",
        })
    }
}

/// Which id a source's messages have, the same whenever a message is handed out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ids {
    /// None.
    #[default]
    None,
    /// This header; a message without it has none.
    Header(&'static str),
    /// Its place and position there.
    Position,
}

/// What happens while a store cannot be asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnStoreFailure {
    /// Messages run: duplicates among them, or as fast as each process alone may.
    #[default]
    Run,
    /// Messages wait, and so do acknowledgements that have something to enter.
    Wait,
}

/// Remembers ids for a while.
///
/// The engine asks before it runs messages and enters them after. Two processes that share a store and get the same
/// message at the same time may both run it: neither has entered it when the other asks.
pub trait DedupStore: Send + Sync + 'static {
    /// For each id, whether it was entered and its time is not over.
    ///
    /// # Errors
    /// When the store cannot be asked. The engine tries again later.
    ///
    /// # Cancel safety
    /// Must be cancel safe: it is dropped when it takes too long.
    fn seen<'a>(&'a self, ids: &'a [Bytes]) -> BoxFuture<'a, Result<Vec<bool>, DedupError>>;

    /// Remembers these for so long from now, as durably as the store can, before it returns. Gives how many ids it
    /// has forgotten before their time to have room.
    ///
    /// # Errors
    /// When the store cannot be told; any part of them may have been entered.
    ///
    /// # Cancel safety
    /// Must be cancel safe, as [`seen`](Self::seen); any part may have been entered.
    fn enter<'a>(&'a self, ids: &'a [Bytes], window: Duration) -> BoxFuture<'a, Result<usize, DedupError>>;
}

/// A store as pipelines hold it.
pub type SharedDedupStore = Arc<dyn DedupStore>;

impl fmt::Debug for dyn DedupStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DedupStore")
    }
}

/// Why a store could not be asked, or told.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct DedupError(pub String);

/// A store in the process: it forgets with it.
#[derive(Debug)]
pub struct MemoryStore {
    most: usize,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    until: FxHashMap<Bytes, Instant>,
    /// In the order in which they were entered. An id that was entered again stands here twice.
    queue: VecDeque<(Instant, Bytes)>,
}

impl MemoryStore {
    /// An empty one that remembers so many ids at most: the oldest is forgotten for a new one.
    pub fn new(max_entries: NonZeroUsize) -> Self {
        Self {
            most: max_entries.get(),
            entries: Mutex::default(),
        }
    }
}

impl DedupStore for MemoryStore {
    fn seen<'a>(&'a self, ids: &'a [Bytes]) -> BoxFuture<'a, Result<Vec<bool>, DedupError>> {
        let now = rt::now();
        let entries = self.entries.lock();
        let seen = ids
            .iter()
            .map(|id| entries.until.get(id).is_some_and(|until| now < *until))
            .collect();
        Box::pin(std::future::ready(Ok(seen)))
    }

    fn enter<'a>(&'a self, ids: &'a [Bytes], window: Duration) -> BoxFuture<'a, Result<usize, DedupError>> {
        let (now, until) = (rt::now(), rt::after(window));
        let mut entries = self.entries.lock();
        for id in ids {
            entries.until.insert(id.clone(), until);
            entries.queue.push_back((until, id.clone()));
        }
        let mut forgotten = 0;
        while let Some((until, _)) = entries.queue.front()
            && (*until <= now || entries.queue.len() > self.most)
        {
            let early = *until > now;
            if let Some((until, id)) = entries.queue.pop_front()
                && entries.until.get(&id) == Some(&until)
            {
                entries.until.remove(&id);
                forgotten += usize::from(early);
            }
        }
        Box::pin(std::future::ready(Ok(forgotten)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(names: &[&'static str]) -> Vec<Bytes> {
        names
            .iter()
            .map(|name| Bytes::from_static(name.as_bytes()))
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn an_id_is_known_for_its_window_from_when_it_was_last_entered() {
        let store = MemoryStore::new(DeduplicateSpec::MAX_ENTRIES);
        let minute = Duration::from_secs(60);
        store.enter(&ids(&["a", "b"]), minute).await.unwrap();
        rt::sleep(minute / 2).await;
        store.enter(&ids(&["b"]), minute).await.unwrap();
        assert_eq!(
            store.seen(&ids(&["a", "b", "c"])).await.unwrap(),
            [true, true, false]
        );
        rt::sleep(minute / 2).await;
        assert_eq!(store.seen(&ids(&["a", "b"])).await.unwrap(), [false, true]);
        store.enter(&[], minute).await.unwrap();
        assert_eq!(store.entries.lock().until.len(), 1);
        rt::sleep(minute / 2).await;
        assert_eq!(store.seen(&ids(&["b"])).await.unwrap(), [false]);
    }

    /// P4: what is remembered is bounded, and what is forgotten for it is told.
    #[tokio::test(start_paused = true)]
    async fn the_oldest_id_makes_room_and_is_told_of() {
        let store = MemoryStore::new(NonZeroUsize::new(2).unwrap());
        let minute = Duration::from_secs(60);
        assert_eq!(store.enter(&ids(&["a", "b"]), minute).await.unwrap(), 0);
        assert_eq!(store.enter(&ids(&["c"]), minute).await.unwrap(), 1);
        assert_eq!(
            store.seen(&ids(&["a", "b", "c"])).await.unwrap(),
            [false, true, true]
        );
        rt::sleep(minute).await;
        assert_eq!(store.enter(&ids(&["d", "e"]), minute).await.unwrap(), 0);
    }
}
