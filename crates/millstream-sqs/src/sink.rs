//! The writing side: [`SqsSink`].

use std::fmt;
use std::sync::Arc;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::{QueueAttributeName as Attribute, SendMessageBatchRequestEntry};
use millstream_core::{
    Delivered, Finding, OpenError, Outgoing, SharedLetterBox, Sink, SinkConnector, SinkError,
};
use tokio::sync::OnceCell;
use tokio::task::JoinSet;

use crate::address::Address;
use crate::check;
use crate::letters::QueueLetters;
use crate::service::{BATCH, Kind, Service, Taken, Trouble};
use crate::wire::{LONGEST_DELAY, Parcel};

/// What one call can carry, and one message weigh: at least, and on Amazon's SQS where the queue says so.
const CALL: (usize, usize) = (256 << 10, 1 << 20);
/// Calls under way at a time, where messages have no order.
const CALLS: usize = 8;

/// Writes to a queue of Amazon SQS.
///
/// A message is confirmed once SQS has it. Its key is its message group, by which a FIFO queue orders; without one it
/// has a group of its own there. Its headers are message attributes. [`Outgoing::delay`] is honoured up to 15 minutes,
/// by queues that are not FIFO.
#[derive(Clone, Debug)]
pub struct SqsSink {
    address: Address,
    client: Arc<OnceCell<Client>>,
}

impl SqsSink {
    /// Writes to the queue of this name or URL; what else there is to know comes from where it comes from for
    /// [`SqsConnector::new`](crate::SqsConnector::new).
    pub fn new(queue: &str) -> Self {
        Self {
            address: Address::new(queue),
            client: Arc::default(),
        }
    }

    /// The region that the queue is in.
    #[must_use]
    pub fn region(mut self, region: &str) -> Self {
        self.address.set_region(region);
        self
    }

    /// Calls SQS with this client, made by the application's own rules: then what else is said here of where the queue
    /// is, and of who asks, says nothing.
    #[must_use]
    pub fn client(mut self, client: Client) -> Self {
        self.client = Arc::new(OnceCell::new_with(Some(client)));
        self
    }

    /// Where SQS is, for what is not Amazon's own.
    #[must_use]
    pub fn endpoint_url(mut self, url: &str) -> Self {
        self.address.set_endpoint(url);
        self
    }

    async fn begin(&self) -> Result<Sending, Trouble> {
        let service = Service::at(&self.client, &self.address).await?;
        let longest = match service.attributes(&[Attribute::MaximumMessageSize]).await {
            Ok(attributes) => attributes
                .get(&Attribute::MaximumMessageSize)
                .and_then(|bytes| bytes.parse().ok()),
            // Who may only send may do so: SQS itself says what is too long.
            Err(trouble) if trouble.kind == Kind::Denied => None,
            Err(trouble) => return Err(trouble),
        };
        Ok(Sending {
            service,
            fifo: self.address.is_fifo(),
            longest: longest.unwrap_or(CALL.1),
            carried: longest.unwrap_or(CALL.0).clamp(CALL.0, CALL.1),
        })
    }
}

impl SinkConnector for SqsSink {
    type Sink = Sending;

    fn letters(&self) -> Option<SharedLetterBox> {
        Some(Arc::new(QueueLetters {
            address: self.address.clone(),
            client: Arc::clone(&self.client),
            redriven: false,
        }))
    }

    async fn open(&self) -> Result<Sending, OpenError> {
        let opened = self.begin().await;
        Ok(opened.map_err(|trouble| trouble.of(&self.address.to_string()))?)
    }

    async fn check(&self) -> Vec<Finding> {
        // An open makes nothing.
        match self.begin().await {
            Ok(_) => Vec::new(),
            Err(trouble) => vec![check::missing(
                trouble,
                &self.address.to_string(),
                self.address.key(),
            )],
        }
    }
}

/// An open [`SqsSink`].
pub struct Sending {
    service: Service,
    fifo: bool,
    /// Bytes of a message.
    longest: usize,
    /// Bytes of a call.
    carried: usize,
}

/// One message on its way to its call.
#[derive(Debug)]
struct Item {
    place: usize,
    size: usize,
    entry: SendMessageBatchRequestEntry,
}

impl Sending {
    /// What will be sent for a message, or why it never will.
    fn item(&self, place: usize, message: &Outgoing) -> Result<Item, String> {
        if message.delay > LONGEST_DELAY {
            return Err(format!("SQS delays a message by {LONGEST_DELAY:?} at most"));
        }
        if self.fifo && !message.delay.is_zero() {
            return Err("a FIFO queue delays no single message".to_owned());
        }
        let parcel = Parcel::of(message, self.fifo);
        let size = parcel.size();
        if size > self.longest {
            return Err(format!(
                "it has {size} bytes, and the queue takes {} at most",
                self.longest
            ));
        }
        // A repeated call, of which the first may have arrived, brings no second one.
        let deduplication = self.fifo.then(|| format!("{:032x}", fastrand::u128(..)));
        let entry = parcel
            .entry(0, deduplication)
            .map_err(|error| error.to_string())?;
        Ok(Item { place, size, entry })
    }

    /// Splits by what a call takes.
    fn calls(&self, items: Vec<Item>) -> Vec<Vec<Item>> {
        let mut calls: Vec<Vec<Item>> = Vec::new();
        let mut bytes = 0;
        for item in items {
            match calls.last_mut() {
                Some(call) if call.len() < BATCH && bytes + item.size <= self.carried => {
                    bytes += item.size;
                    call.push(item);
                }
                _ => {
                    bytes = item.size;
                    calls.push(vec![item]);
                }
            }
        }
        calls
    }
}

impl Sink for Sending {
    async fn send(&mut self, messages: &[Outgoing], results: &mut Vec<Delivered>) -> Result<(), SinkError> {
        let mut delivered = vec![Delivered::Failed("it was not sent".to_owned()); messages.len()];
        let mut note = |place: usize, result| {
            if let Some(slot) = delivered.get_mut(place) {
                *slot = result;
            }
        };
        let mut items = Vec::new();
        for (place, message) in messages.iter().enumerate() {
            match self.item(place, message) {
                Ok(item) => items.push(item),
                Err(why) => note(place, Delivered::Refused(why)),
            }
        }
        // In order, a message that did not arrive keeps what follows it from being sent.
        let most = if self.fifo { 1 } else { CALLS };
        let mut waiting = self.calls(items).into_iter();
        let mut calls = JoinSet::new();
        let mut failed = false;
        loop {
            while calls.len() < most
                && !(self.fifo && failed)
                && let Some(call) = waiting.next()
            {
                calls.spawn(send(self.service.clone(), call));
            }
            match calls.join_next().await {
                Some(Ok(answers)) => {
                    for (place, taken) in answers {
                        failed |= taken.is_err();
                        note(place, verdict(taken));
                    }
                }
                Some(Err(error)) => return Err(SinkError(error.to_string())),
                None => break,
            }
        }
        results.extend(delivered);
        Ok(())
    }
}

impl fmt::Debug for Sending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sending")
            .field("url", &self.service.url)
            .finish_non_exhaustive()
    }
}

fn verdict(taken: Taken) -> Delivered {
    match taken {
        Ok(()) => Delivered::Confirmed,
        Err(trouble) if trouble.kind == Kind::Wrong => Delivered::Refused(trouble.text),
        Err(trouble) => Delivered::Failed(trouble.text),
    }
}

/// One call. Where SQS finds fault with the whole of it, each message is sent alone, so that the one at fault is
/// refused alone.
async fn send(service: Service, items: Vec<Item>) -> Vec<(usize, Taken)> {
    let entries = |items: &[Item]| -> Vec<_> {
        let numbered = items.iter().enumerate();
        numbered
            .map(|(id, item)| {
                let mut entry = item.entry.clone();
                entry.id = id.to_string();
                entry
            })
            .collect()
    };
    let taken = service.send(entries(&items)).await;
    let wrong = |taken: &Taken| matches!(taken, Err(trouble) if trouble.kind == Kind::Wrong);
    if items.len() == 1 || !taken.iter().all(wrong) {
        return items.iter().map(|item| item.place).zip(taken).collect();
    }
    let mut alone = Vec::new();
    for item in &items {
        let taken = service.send(entries(std::slice::from_ref(item))).await;
        alone.extend(taken.into_iter().map(|taken| (item.place, taken)));
    }
    alone
}
