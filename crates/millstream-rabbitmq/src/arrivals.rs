//! What a consumer brings: [`Arrived`], taken by [`next`], and whether it still brings what it should: [`Heard`].

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use futures_core::Stream;
use lapin::Consumer;
use lapin::message::Delivery;
use lapin::types::AMQPValue;
use millstream_core::rt::{self, Instant};
use millstream_core::{Message, Ticket};

use crate::progress::Progress;
use crate::properties;
use crate::settings::OFFSET;
use crate::tags::Tags;

/// The most that is handed on at a time, so that the source starts on it while more comes.
const BATCH: usize = 256;
/// How long a stream has to send a message that was there before.
const SILENCE: Duration = Duration::from_secs(10);

/// How the stream of a consumer goes on.
pub(crate) enum Flow {
    More,
    /// Cancelled, by this side or by the broker.
    Cancelled,
    Failed(lapin::Error),
}

/// Whether a stream has what it had before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// It sends, or need not.
    Something,
    /// Nothing yet of what must come, by then at the latest.
    NothingYet(Instant),
    /// Nothing in time, which was reported.
    NothingReported,
}

impl Heard {
    /// A consumer begins.
    pub(crate) fn begin(&mut self, expected: bool) {
        if *self != Self::NothingReported {
            *self = if expected {
                Self::NothingYet(rt::after(SILENCE))
            } else {
                Self::Something
            };
        }
    }

    pub(crate) fn due(self) -> Option<Instant> {
        match self {
            Self::NothingYet(due) => Some(due),
            Self::Something | Self::NothingReported => None,
        }
    }

    pub(crate) fn is_overdue(self) -> bool {
        self.due().is_some_and(|due| due <= rt::now())
    }
}

/// What a consumer has delivered.
#[derive(Default)]
pub(crate) struct Arrived {
    /// To be handed on.
    pub(crate) messages: Vec<(Ticket, Message)>,
    /// From a stream, and done or in hand already.
    pub(crate) known: Vec<Ticket>,
    /// Has a stream's offset where none is expected. A message that was moved from a stream to a queue may too.
    pub(crate) is_odd: bool,
}

impl Arrived {
    pub(crate) fn len(&self) -> usize {
        self.messages.len() + self.known.len()
    }

    fn add(&mut self, delivery: Delivery, tags: &Tags, progress: Option<&Progress>) {
        let offset = offset(&delivery);
        let ticket = tags.ticket(delivery.delivery_tag, delivery.redelivered);
        match (progress, offset) {
            (None, offset) => {
                self.is_odd |= offset.is_some();
                self.messages
                    .push((ticket, properties::read(delivery, ticket.origin)));
            }
            (Some(progress), Some(offset)) if progress.arrive(offset, ticket) => {
                let mut message = properties::read(delivery, ticket.origin);
                message.position = offset;
                // The broker does not count.
                message.deliveries = 0;
                self.messages.push((ticket, message));
            }
            (Some(_), _) => self.known.push(ticket),
        }
    }
}

/// Where in its stream this is.
fn offset(delivery: &Delivery) -> Option<u64> {
    match delivery.properties.headers().as_ref()?.inner().get(OFFSET)? {
        AMQPValue::LongLongInt(offset) => u64::try_from(*offset).ok(),
        _ => None,
    }
}

/// Waits for deliveries and takes all that are here, up to a batch; without a consumer it waits for ever.
///
/// # Cancel safety
/// Cancel safe: it does not wait with any in hand.
pub(crate) async fn next(
    consumer: &mut Option<(Consumer, u16)>,
    tags: &Tags,
    progress: Option<&Progress>,
    arrived: &mut Arrived,
) -> Flow {
    let Some((consumer, _)) = consumer else {
        return std::future::pending().await;
    };
    poll_fn(|cx| {
        while arrived.len() < BATCH {
            match Pin::new(&mut *consumer).poll_next(cx) {
                Poll::Ready(Some(Ok(delivery))) => arrived.add(delivery, tags, progress),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Flow::Failed(error)),
                Poll::Ready(None) => return Poll::Ready(Flow::Cancelled),
                Poll::Pending if arrived.len() == 0 => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(Flow::More)
    })
    .await
}
