//! Dead letters in a queue, read back.
//!
//! SQS has no way to look at a queue: what is looked at is received, hidden from everyone for a while, and shown again at
//! the end. That counts as a receive. Of a group of a FIFO queue nothing follows while a letter of it is hidden. What a
//! long visit holds is hidden for longer in time; what comes again nevertheless is known, and says nothing of the end.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use millstream_core::rt::{self, Instant};
use millstream_core::{BoxFuture, Letter, LetterBox, LetterError, Letters, OpenError, Visit};
use tokio::sync::OnceCell;

use crate::address::Address;
use crate::check::Redrive;
use crate::service::{BATCH, Receive, Service, Trouble};
use crate::wire::Arrived;

/// How long a receive waits: it asks all of SQS' servers, and so finds what there is.
const WAIT: Duration = Duration::from_secs(1);
/// For how long letters are hidden at first. A process that is killed leaves them so.
const HIDDEN: Duration = Duration::from_secs(120);
/// For how long letters are hidden at most.
const LONGEST: Duration = Duration::from_secs(2 * 60 * 60);
/// What a receive that brings nothing, and one that brings only what is younger than the visit, say of its end; with so
/// much of it there are no more letters.
const NOTHING: u32 = 5;
const YOUNGER: u32 = 1;
const ENOUGH: u32 = 10;
/// How far the clock of SQS may be ahead.
const SKEW: Duration = Duration::from_secs(5);

/// Dead letters in a queue.
#[derive(Clone, Debug)]
pub(crate) struct QueueLetters {
    pub(crate) address: Address,
    pub(crate) client: Arc<OnceCell<Client>>,
    /// They are in the queue that the redrive policy of this one names.
    pub(crate) redriven: bool,
}

impl QueueLetters {
    async fn queue(&self) -> Result<Service, OpenError> {
        let said = |trouble: Trouble| OpenError::from(trouble.of(&self.address.to_string()));
        let queue = Service::at(&self.client, &self.address).await.map_err(said)?;
        if !self.redriven {
            return Ok(queue);
        }
        let attributes = queue
            .attributes(&[Attribute::RedrivePolicy])
            .await
            .map_err(said)?;
        let Some(Redrive { target, .. }) = Redrive::of(&attributes) else {
            return Err(OpenError::Refused(format!(
                "{} has no redrive policy, so nothing is kept of what is given up",
                self.address
            )));
        };
        let dead = queue.sibling(&target).await;
        dead.map_err(|trouble| trouble.of(&format!("the dead-letter queue {target}")).into())
    }
}

impl LetterBox for QueueLetters {
    fn open(&self, _: Visit) -> BoxFuture<'_, Result<Box<dyn Letters>, OpenError>> {
        Box::pin(async move {
            Ok(Box::new(Open {
                queue: self.queue().await?,
                begun: SystemTime::now() + SKEW,
                seen: HashMap::new(),
                hidden: HashMap::new(),
                hiding: Hiding::new(),
                end: End::default(),
            }) as Box<dyn Letters>)
        })
    }
}

/// A visit. Dropped, it leaves what it has received hidden until its time is up.
struct Open {
    queue: Service,
    /// What is younger came after the visit began.
    begun: SystemTime,
    /// The handles of all letters that were received, by their ids.
    seen: HashMap<String, u64>,
    /// The last receipts of those that were not removed, by their handles.
    hidden: HashMap<u64, Arc<str>>,
    hiding: Hiding,
    end: End,
}

/// For how long letters are hidden: twice as long each time that half of it is over, so that a long visit does not spend
/// its time on this.
#[derive(Debug)]
struct Hiding {
    time: Duration,
    renew: Instant,
}

impl Hiding {
    fn new() -> Self {
        Self {
            time: HIDDEN,
            renew: rt::after(HIDDEN / 2),
        }
    }

    /// For how long all that is held is to be hidden now, if it has to be.
    fn due(&mut self) -> Option<Duration> {
        if rt::now() < self.renew {
            return None;
        }
        self.time = (self.time * 2).min(LONGEST);
        self.renew = rt::after(self.time / 2);
        Some(self.time)
    }
}

/// How much speaks for it that there are no more letters.
#[derive(Debug, Default)]
struct End(u32);

impl End {
    /// What a receive has brought: letters, of which so many are new, and so many were there before and are known.
    fn received(&mut self, all: usize, new: usize, known: usize) {
        self.0 = match (all, new, known) {
            (0, ..) => self.0 + NOTHING,
            (_, 0, 0) => self.0 + YOUNGER,
            // Its time was up before the others had their turn.
            (_, 0, _) => self.0,
            _ => 0,
        };
    }

    fn is_there(&self) -> bool {
        self.0 >= ENOUGH
    }
}

impl Open {
    /// Hides what is held for longer. What cannot be comes again, and is known.
    async fn keep_hidden(&mut self) {
        let Some(time) = self.hiding.due() else {
            return;
        };
        let all: Vec<_> = self
            .hidden
            .values()
            .map(|receipt| (Arc::clone(receipt), time))
            .collect();
        for some in all.chunks(BATCH) {
            self.queue.hide(some).await;
        }
    }

    /// The letters of a receive that are new here.
    async fn receive(&mut self, most: usize) -> Result<Vec<Letter>, LetterError> {
        let how = Receive {
            most,
            wait: WAIT,
            visibility: self.hiding.time,
            attempt: None,
        };
        let received = self.queue.receive(how).await.map_err(said)?;
        let all = received.len();
        let mut before = 0;
        let mut letters = Vec::new();
        for arrived in received.into_iter().filter_map(Arrived::of) {
            let next = self.seen.len() as u64;
            let known = self.seen.contains_key(&arrived.id);
            let handle = *self.seen.entry(arrived.id.clone()).or_insert(next);
            // One whose time was up comes again, and its old receipt may be worth nothing.
            self.hidden.insert(handle, arrived.receipt.into());
            let message = arrived.message;
            if message.timestamp.is_some_and(|sent| sent > self.begun) {
                continue;
            }
            if known {
                before += 1;
                continue;
            }
            letters.push(Letter {
                handle,
                id: arrived.id,
                payload: message.payload,
                key: message.key,
                headers: message.headers,
                timestamp: message.timestamp,
                ..Letter::default()
            });
        }
        self.end.received(all, letters.len(), before);
        Ok(letters)
    }
}

fn said(trouble: Trouble) -> LetterError {
    LetterError(trouble.text)
}

impl Letters for Open {
    fn next(&mut self, most: usize) -> BoxFuture<'_, Result<Vec<Letter>, LetterError>> {
        Box::pin(async move {
            // What one receive brings is handed on: it is a moment's, and ten letters are what is deleted at a time.
            while !self.end.is_there() {
                self.keep_hidden().await;
                let letters = self.receive(most.clamp(1, BATCH)).await?;
                if !letters.is_empty() {
                    return Ok(letters);
                }
            }
            // In a FIFO queue more of a group comes once what was given is removed.
            Ok(Vec::new())
        })
    }

    fn remove<'a>(&'a mut self, handles: &'a [u64]) -> BoxFuture<'a, Result<u64, LetterError>> {
        Box::pin(async move {
            let mut removed = 0;
            for some in handles.chunks(BATCH) {
                let given = some
                    .iter()
                    .filter_map(|handle| Some((*handle, Arc::clone(self.hidden.get(handle)?))));
                let (handles, receipts): (Vec<_>, Vec<_>) = given.unzip();
                if receipts.is_empty() {
                    continue;
                }
                // What is not deleted is shown again at the end.
                let mut failed = None;
                for (handle, deleted) in handles.iter().zip(self.queue.delete(&receipts).await) {
                    match deleted {
                        Ok(_) => {
                            self.hidden.remove(handle);
                            removed += 1;
                        }
                        Err(trouble) => failed = failed.or(Some(said(trouble))),
                    }
                }
                if let Some(failed) = failed {
                    return Err(failed);
                }
            }
            Ok(removed)
        })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, Result<u64, LetterError>> {
        Box::pin(async move {
            let hidden: Vec<_> = self
                .hidden
                .into_values()
                .map(|receipt| (receipt, Duration::ZERO))
                .collect();
            for some in hidden.chunks(BATCH) {
                for shown in self.queue.hide(some).await {
                    match shown {
                        // Its time was up before.
                        Err(trouble) if trouble.kind.is_of_the_delivery() => {}
                        shown => shown.map_err(said)?,
                    }
                }
            }
            Ok(0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A visit that takes longer than letters are hidden goes on to its end.
    #[test]
    fn what_is_known_says_nothing_of_the_end() {
        let mut end = End::default();
        for _ in 0..1_000 {
            end.received(10, 0, 10);
        }
        assert!(!end.is_there());
        end.received(0, 0, 0);
        assert!(!end.is_there());
        end.received(10, 1, 9);
        end.received(0, 0, 0);
        assert!(!end.is_there(), "something new has come in between");
        end.received(0, 0, 0);
        assert!(end.is_there());
    }

    /// Nor does a queue into which others write for ever keep it.
    #[test]
    fn what_is_younger_than_the_visit_ends_it_in_time() {
        let mut end = End::default();
        let mut receives = 0;
        while !end.is_there() {
            end.received(10, 0, 0);
            receives += 1;
        }
        assert_eq!(receives, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn letters_are_hidden_for_longer_before_their_time_is_up() {
        let mut hiding = Hiding::new();
        let (begun, mut until, mut times) = (rt::now(), rt::after(HIDDEN), 0);
        while rt::now() - begun < Duration::from_secs(24 * 60 * 60) {
            rt::sleep(Duration::from_secs(20)).await;
            assert!(rt::now() < until, "after {:?}", rt::now() - begun);
            if let Some(time) = hiding.due() {
                until = rt::after(time);
                times += 1;
            }
        }
        assert!(times < 40, "{times}");
    }
}
