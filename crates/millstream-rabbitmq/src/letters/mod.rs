//! Dead letters in a queue, read back.
//!
//! RabbitMQ has no way to look at a queue: what is looked at is got, and has to be put back. A quorum queue counts each
//! message that it takes back as delivered, also when its channel closes, and drops it beyond its delivery limit. So what
//! is not removed is put back as a copy, which is published to the end of the queue and confirmed before the letter is
//! acknowledged. The count of the copy begins anew. Nothing tells a consumer what kind a queue is, so that is the way for
//! all queues but those that are declared as classic ones: there letters are held to the end of a visit and returned to
//! where they were.

mod again;
mod copies;
mod visit;

use std::time::Duration;

use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::{FieldTable, ShortString};
use millstream_core::{BoxFuture, LetterBox, Letters, OpenError, Outgoing, Visit, rt};

use self::visit::Open;
use crate::dial::Dial;
use crate::publisher::{Publisher, Route};
use crate::topology::{Topology, short};
use crate::trouble::Trouble;

/// How long the broker may be silent while confirmations are awaited.
const PATIENCE: Duration = Duration::from_secs(30);

/// Dead letters in a queue.
#[derive(Clone, Debug)]
pub(crate) struct QueueLetters {
    dial: Dial,
    topology: Topology,
}

/// Dead letters that went to an exchange, which holds none.
#[derive(Clone, Debug)]
pub(crate) struct ExchangeLetters(pub(crate) String);

impl QueueLetters {
    pub(crate) fn new(dial: Dial, topology: Topology) -> Self {
        Self { dial, topology }
    }

    async fn begin(&self) -> Result<Open, OpenError> {
        let line = self.dial.connect().await?;
        let begun = async {
            let channel = line.channel().await?;
            let name = short("queue", &self.topology.queue)?;
            let queue = look_for(&channel, &name)
                .await
                .map_err(|error| self.topology.declaring(&error))?;
            let publisher = match self.topology.declares_classic() {
                true => None,
                false => Some(self.publisher().await?),
            };
            Ok::<_, Trouble>((channel, name, publisher, queue))
        };
        match begun.await {
            Ok((channel, queue, publisher, messages)) => {
                Ok(Open::new(line, channel, queue, publisher, messages))
            }
            Err(trouble) => {
                line.close().await;
                Err(trouble.open_error(false))
            }
        }
    }

    /// What letters are put back with. That it may publish is made sure of before the first letter is got.
    async fn publisher(&self) -> Result<Publisher, Trouble> {
        let mut publisher = Publisher::open(&self.dial, PATIENCE).await?;
        let nowhere = format!("millstream.nowhere.{:016x}", rt::chance().to_bits());
        let tried = publisher
            .publish(&[Outgoing::default()], |_| {
                Ok(Route {
                    exchange: ShortString::default(),
                    routing_key: short("queue", &nowhere).map_err(|trouble| trouble.text)?,
                })
            })
            .await;
        match tried {
            // No queue has taken it, and that it was allowed is all there was to know.
            Ok(_) => Ok(publisher),
            Err(error) => {
                publisher.close().await;
                Err(Trouble::lasting(format!(
                    "letters of queue `{}` that stay are put back by publishing them to it, which the broker does not take: \
                     {}. Give the user the right to write to the default exchange, `amq\\.default` in the pattern of its \
                     write permission; or, if it is a classic queue, say so in `declare` of its table",
                    self.topology.queue, error.0
                )))
            }
        }
    }
}

/// How many messages the queue has ready.
async fn look_for(channel: &Channel, queue: &ShortString) -> lapin::Result<u32> {
    let passive = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let queue = channel
        .queue_declare(queue.clone(), passive, FieldTable::default())
        .await?;
    Ok(queue.message_count())
}

impl LetterBox for QueueLetters {
    fn open(&self, _: Visit) -> BoxFuture<'_, Result<Box<dyn Letters>, OpenError>> {
        Box::pin(async move { Ok(Box::new(self.begin().await?) as Box<dyn Letters>) })
    }
}

impl LetterBox for ExchangeLetters {
    fn open(&self, _: Visit) -> BoxFuture<'_, Result<Box<dyn Letters>, OpenError>> {
        let refused = format!(
            "the dead letters go to exchange `{}`, which holds none: name a queue that it leads to as the `dead_letter` of a \
             file for this command",
            self.0
        );
        Box::pin(async move { Err(OpenError::Refused(refused)) })
    }
}
