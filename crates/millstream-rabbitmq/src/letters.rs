//! Dead letters in a queue, read back.
//!
//! RabbitMQ has no way to look at a queue: what is looked at is got, kept unsettled while it is looked through, and put
//! back at the end. It comes back marked as redelivered, to where it was as far as the queue can put it there. To a quorum
//! queue that is one delivery more, of which it counts only so many.

use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use millstream_core::{BoxFuture, Letter, LetterBox, LetterError, Letters, OpenError, OriginId, Visit};

use crate::dial::{Dial, Line};
use crate::properties;
use crate::topology::{Topology, short};
use crate::trouble::{self, Trouble, code};

/// After so many deliveries a quorum queue of RabbitMQ 4 drops a message, unless it is told otherwise.
const DELIVERY_LIMIT: i64 = 20;

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

    async fn begin(&self, visit: Visit) -> Result<Open, OpenError> {
        let line = self.dial.connect().await?;
        let begun = async {
            let channel = line.channel().await?;
            let name = short("queue", &self.topology.queue)?;
            let queue = look_for(&channel, &name)
                .await
                .map_err(|error| self.topology.declaring(&error))?;
            Ok::<_, Trouble>((channel, name, queue))
        };
        match begun.await {
            Ok((channel, queue, messages)) => Ok(Open {
                line,
                channel,
                queue,
                left: messages,
                most: (visit == Visit::Look)
                    .then(|| most(self.topology.delivery_limit()))
                    .flatten(),
            }),
            Err(trouble) => {
                line.close().await;
                Err(trouble.open_error(false))
            }
        }
    }
}

/// How many deliveries leave some room to the limit.
fn most(limit: Option<i64>) -> Option<u32> {
    let limit = limit.unwrap_or(DELIVERY_LIMIT);
    (limit >= 0).then(|| u32::try_from(limit - limit / 4).unwrap_or(u32::MAX))
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
    fn open(&self, visit: Visit) -> BoxFuture<'_, Result<Box<dyn Letters>, OpenError>> {
        Box::pin(async move { Ok(Box::new(self.begin(visit).await?) as Box<dyn Letters>) })
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

/// A visit. Dropped, it closes its connection, and the broker puts back what was got.
struct Open {
    line: Line,
    channel: Channel,
    queue: ShortString,
    /// How many of those that were there when it began are not got yet, at most.
    left: u32,
    /// After so many deliveries of a letter to a quorum queue no more is looked at.
    most: Option<u32>,
}

impl Open {
    async fn get(&mut self) -> Result<Option<Letter>, LetterError> {
        let got = self
            .channel
            .basic_get(self.queue.clone(), BasicGetOptions::default())
            .await
            .map_err(|error| self.failed(&error))?;
        let Some(got) = got else {
            return Ok(None);
        };
        let message = properties::read(got.delivery, OriginId::default());
        let mut letter = Letter {
            handle: message.position,
            id: String::new(),
            payload: message.payload,
            key: message.key,
            headers: message.headers,
            timestamp: message.timestamp,
        };
        let counted = letter.headers.remove(properties::DELIVERY_COUNT).is_some();
        letter.id = letter.fingerprint();
        if counted && self.most.is_some_and(|most| message.deliveries > most) {
            return Err(LetterError(format!(
                "letter {} was delivered {} times, and looking at it is another time: a quorum queue drops it after its \
                 delivery limit, which is 20 where nobody says otherwise. Replay or purge the letters; or give the queue an \
                 `x-delivery-limit` of -1, and say so in `declare` of its table",
                letter.id, message.deliveries
            )));
        }
        Ok(Some(letter))
    }

    fn failed(&self, error: &lapin::Error) -> LetterError {
        match trouble::reply(error) {
            Some((code::NOT_IMPLEMENTED, _)) => LetterError(format!(
                "`{}` is a stream, of which letters cannot be taken: let a pipeline read it",
                self.queue
            )),
            _ => LetterError(trouble::describe(error)),
        }
    }
}

impl Letters for Open {
    fn next(&mut self, most: usize) -> BoxFuture<'_, Result<Vec<Letter>, LetterError>> {
        Box::pin(async move {
            let mut letters = Vec::new();
            while letters.len() < most.max(1) && self.left > 0 {
                match self.get().await? {
                    Some(letter) => letters.push(letter),
                    None => {
                        self.left = 0;
                        break;
                    }
                }
                self.left -= 1;
            }
            Ok(letters)
        })
    }

    fn remove<'a>(&'a mut self, handles: &'a [u64]) -> BoxFuture<'a, Result<(), LetterError>> {
        Box::pin(async move {
            for handle in handles {
                let acked = self.channel.basic_ack(*handle, BasicAckOptions::default()).await;
                acked.map_err(|error| self.failed(&error))?;
            }
            // Acknowledgements have no answer; what is asked after them has.
            let asked = look_for(&self.channel, &self.queue).await;
            asked.map(drop).map_err(|error| self.failed(&error))
        })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, Result<u64, LetterError>> {
        Box::pin(async move {
            let all = BasicNackOptions {
                multiple: true,
                requeue: true,
            };
            // No tag is all that is unsettled, also where that is nothing.
            let put_back = self.channel.basic_nack(0, all).await;
            self.line.close().await;
            put_back
                .map(|()| 0)
                .map_err(|error| LetterError(trouble::describe(&error)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_leaves_some_deliveries_to_the_limit() {
        for (limit, allowed) in [
            (None, Some(15)),
            (Some(-1), None),
            (Some(8), Some(6)),
            (Some(0), Some(0)),
        ] {
            assert_eq!(most(limit), allowed, "{limit:?}");
        }
    }
}
