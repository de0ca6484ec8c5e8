//! Dead letters as whoever looks after them reads them: [`LetterBox`], [`Letters`], [`Letter`].
//!
//! A connector that can read again what its sink wrote, or what its source kept of what was rejected, has a
//! [`LetterBox`]. It is object safe as it stands: it is called for tens of letters at a time, by a person's command.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use rustc_hash::FxHasher;

use crate::errors::OpenError;
use crate::future::BoxFuture;
use crate::message::{Headers, Message, Outgoing, time_of};
use crate::settlement::Rejection;

/// Where dead letters lie.
///
/// [`SinkConnector::letters`](crate::SinkConnector::letters) and [`Connector::letters`](crate::Connector::letters) give
/// it.
pub trait LetterBox: Send + Sync + 'static {
    /// Goes through the letters that are there now, once, oldest first as far as the store has an order.
    ///
    /// # Errors
    /// As for [`Connector::open`](crate::Connector::open); also where the store cannot do what is asked.
    fn open(&self, visit: Visit) -> BoxFuture<'_, Result<Box<dyn Letters>, OpenError>>;
}

/// What letters are gone through for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visit {
    /// To see them. Nothing is removed, and all is there afterwards as it was, as far as the store lets.
    Look,
    /// To remove those that have been sent elsewhere.
    Replay,
    /// To remove them for good.
    Purge,
}

/// The letters of one visit.
///
/// What was given and not removed is the store's again when this is closed, or at the latest when its process has
/// ended.
pub trait Letters: Send {
    /// The next letters, at least one and at most `most`; none when there are no more. Those that came after the visit
    /// began are not among them.
    ///
    /// # Cancel safety
    /// Not cancel safe: letters may be left out. [`close`](Self::close) still ends the visit.
    ///
    /// # Errors
    /// If the store fails; the visit is over then.
    fn next(&mut self, most: usize) -> BoxFuture<'_, Result<Vec<Letter>, LetterError>>;

    /// Removes letters that [`next`](Self::next) gave last, by their handles, and says how many it has removed: others may
    /// have taken some meanwhile. When it returns no visit is given them again, but for a purge of a store that only removes
    /// what comes first: that does it when it is closed.
    ///
    /// # Cancel safety
    /// Not cancel safe: any part of them may be removed.
    ///
    /// # Errors
    /// If the store fails; any part of them may be removed, and the visit is over.
    fn remove<'a>(&'a mut self, handles: &'a [u64]) -> BoxFuture<'a, Result<u64, LetterError>>;

    /// Ends the visit, and says how many of the removed letters are still in the store, because it can only remove what
    /// comes before all others.
    ///
    /// # Errors
    /// If the store fails: what was not removed then comes back by itself, but later.
    fn close(self: Box<Self>) -> BoxFuture<'static, Result<u64, LetterError>>;
}

impl fmt::Debug for dyn Letters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Letters")
    }
}

impl fmt::Debug for dyn LetterBox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LetterBox")
    }
}

/// A letter box as commands hold it.
pub type SharedLetterBox = Arc<dyn LetterBox>;

/// Why a store failed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct LetterError(pub String);

/// A dead letter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Letter {
    /// Names it to the visit that gave it, and to no other.
    pub handle: u64,
    /// Names it to people, the same at every visit.
    pub id: String,
    /// The body, untouched.
    pub payload: Bytes,
    /// The message's key.
    pub key: Option<Bytes>,
    /// The message's own headers, and those of [`Rejection::HEADERS`].
    pub headers: Headers,
    /// Higher goes first; 0 where the store knows of none, or keeps it as a header.
    pub priority: i32,
    /// When it came into its store, where that is known.
    pub timestamp: Option<SystemTime>,
}

impl Letter {
    /// An id for a letter in a store that gives it none: it is made of the letter itself. Copies of a letter share it.
    pub fn fingerprint(&self) -> String {
        let mut hasher = FxHasher::default();
        self.payload.hash(&mut hasher);
        self.key.hash(&mut hasher);
        for header in self.headers.iter() {
            header.hash(&mut hasher);
        }
        format!("{:016x}", hasher.finish())
    }

    /// The value under one of the names of [`Rejection::HEADERS`] without `millstream-`.
    pub fn says(&self, what: &str) -> Option<&str> {
        self.headers.get(&format!("millstream-{what}"))
    }

    /// When it was given up; when it came into its store where it does not say.
    pub fn failed_at(&self) -> Option<SystemTime> {
        self.says("failed-at").and_then(time_of).or(self.timestamp)
    }

    /// How often it was replayed.
    pub fn replays(&self) -> u32 {
        self.headers
            .get(Message::REPLAYS)
            .and_then(|replays| replays.parse().ok())
            .unwrap_or_default()
    }

    /// The message that it was, to be tried again: payload, key, priority and the message's own headers, one replay more, and
    /// nothing of its failure but when the first one was.
    pub fn replay(&self) -> Outgoing {
        let mut headers = self.headers.clone();
        for name in Rejection::HEADERS
            .iter()
            .filter(|name| **name != Message::FIRST_FAILED_AT)
        {
            headers.remove(name);
        }
        headers.remove(Message::FAILURES);
        headers.set(Message::REPLAYS, &self.replays().saturating_add(1).to_string());
        Outgoing {
            payload: self.payload.clone(),
            key: self.key.clone(),
            headers,
            priority: self.priority,
            ..Outgoing::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::settlement::Reason;

    fn letter(replays: Option<&str>) -> Letter {
        let mut message = Message::new("payload")
            .with_key("k")
            .with_header("tenant", "acme");
        if let Some(replays) = replays {
            message.headers.push(Message::REPLAYS, replays);
        }
        let rejection = Rejection {
            pipeline: "orders".into(),
            stage: "processor".into(),
            reason: Reason::Attempts,
            error: "no such sku".to_owned(),
            attempts: 5,
            deliveries: 1,
            origin: "orders@7".to_owned(),
            first_at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_000),
            at: SystemTime::UNIX_EPOCH + Duration::from_millis(2_000),
        };
        let dead = rejection.dead_letter(&message);
        Letter {
            payload: dead.payload,
            key: dead.key,
            headers: dead.headers,
            ..Letter::default()
        }
    }

    #[test]
    fn a_replay_is_the_message_that_it_was_and_counts() {
        let again = letter(None).replay();
        assert_eq!((again.payload, again.key), ("payload".into(), Some("k".into())));
        assert_eq!(
            again.headers.iter().collect::<Vec<_>>(),
            [
                ("tenant", "acme"),
                (Message::FIRST_FAILED_AT, "1000"),
                (Message::REPLAYS, "1")
            ]
        );
        assert_eq!(
            letter(Some("2")).replay().headers.get(Message::REPLAYS),
            Some("3")
        );
    }

    #[test]
    fn a_letter_says_what_became_of_it() {
        let letter = letter(Some("2"));
        assert_eq!(letter.says("reason"), Some("attempts"));
        assert_eq!(letter.replays(), 2);
        assert_eq!(
            letter.failed_at(),
            Some(SystemTime::UNIX_EPOCH + Duration::from_secs(2))
        );
    }

    #[test]
    fn letters_that_differ_have_other_fingerprints() {
        let (one, other) = (letter(None), letter(Some("1")));
        assert_eq!(one.fingerprint(), letter(None).fingerprint());
        assert_ne!(one.fingerprint(), other.fingerprint());
    }
}
