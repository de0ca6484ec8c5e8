//! Dead letters in a queue, read back.
//!
//! SQS has no way to look at a queue: what is looked at is received, hidden from everyone for a while, and shown again at
//! the end. That counts as a receive. Of a group of a FIFO queue nothing follows while a letter of it is hidden.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use millstream_core::{BoxFuture, Letter, LetterBox, LetterError, Letters, OpenError, Visit};
use tokio::sync::OnceCell;

use crate::address::Address;
use crate::check::Redrive;
use crate::service::{BATCH, Receive, Service, Trouble};
use crate::wire::Arrived;

/// How long a receive waits: it asks all of SQS' servers, and so finds what there is.
const WAIT: Duration = Duration::from_secs(1);
/// For how long letters are hidden while they are gone through. A process that is killed leaves them so.
const HIDDEN: Duration = Duration::from_secs(120);
/// After so many receives without a new letter there are no more.
const EMPTY: usize = 2;
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
                empty: 0,
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
    /// Receives without a new letter, one after the other.
    empty: usize,
}

impl Open {
    /// The letters of a receive that are new here.
    async fn receive(&mut self, most: usize) -> Result<Vec<Letter>, LetterError> {
        let how = Receive {
            most,
            wait: WAIT,
            visibility: HIDDEN,
            attempt: None,
        };
        let received = self.queue.receive(how).await.map_err(said)?;
        let mut letters = Vec::new();
        for arrived in received.into_iter().filter_map(Arrived::of) {
            let next = self.seen.len() as u64;
            let known = self.seen.contains_key(&arrived.id);
            let handle = *self.seen.entry(arrived.id.clone()).or_insert(next);
            // One whose time was up comes again, and its old receipt may be worth nothing.
            self.hidden.insert(handle, arrived.receipt.into());
            let message = arrived.message;
            if known || message.timestamp.is_some_and(|sent| sent > self.begun) {
                continue;
            }
            letters.push(Letter {
                handle,
                id: arrived.id,
                payload: message.payload,
                key: message.key,
                headers: message.headers,
                timestamp: message.timestamp,
            });
        }
        Ok(letters)
    }
}

fn said(trouble: Trouble) -> LetterError {
    LetterError(trouble.text)
}

impl Letters for Open {
    fn next(&mut self, most: usize) -> BoxFuture<'_, Result<Vec<Letter>, LetterError>> {
        Box::pin(async move {
            let mut letters = Vec::new();
            while letters.len() < most.max(1) && self.empty < EMPTY {
                let mut new = self.receive((most - letters.len()).clamp(1, BATCH)).await?;
                if !new.is_empty() {
                    self.empty = 0;
                    letters.append(&mut new);
                    continue;
                }
                self.empty += 1;
                // In a FIFO queue more of a group comes once these are removed.
                if !letters.is_empty() {
                    break;
                }
            }
            if !letters.is_empty() {
                self.empty = 0;
            }
            Ok(letters)
        })
    }

    fn remove<'a>(&'a mut self, handles: &'a [u64]) -> BoxFuture<'a, Result<(), LetterError>> {
        Box::pin(async move {
            for some in handles.chunks(BATCH) {
                let receipts: Vec<_> = some
                    .iter()
                    .filter_map(|handle| self.hidden.remove(handle))
                    .collect();
                if receipts.is_empty() {
                    continue;
                }
                for deleted in self.queue.delete(&receipts).await {
                    deleted.map_err(said)?;
                }
            }
            Ok(())
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
