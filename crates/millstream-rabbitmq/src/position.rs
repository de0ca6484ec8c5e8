//! Where a stream's reader stands, as the broker keeps it.
//!
//! AMQP 0-9-1 has no place for it, so it is a message in a durable classic queue beside the stream,
//! `STREAM.position.NAME`: the offset in decimal, of the first message that is not done. The queue holds the last two,
//! of which the later counts: the one before was confirmed, and so is on the disk, when the broker dies while it puts
//! the later one in the place of an older.
//!
//! One at a time reads under a name. Who does has the exclusive queue `STREAM.position.NAME.lock`, which goes with its
//! connection.

use lapin::Channel;
use lapin::options::{BasicGetOptions, BasicNackOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};

use crate::trouble::{self, Trouble, code};

/// How many positions the queue holds.
const KEPT: i64 = 2;

/// The queues of one reader of one stream.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    stream: String,
    reader: String,
    queue: ShortString,
    lock: ShortString,
}

impl Place {
    pub(crate) fn new(stream: &str, reader: &str) -> Result<Self, Trouble> {
        let queue = format!("{stream}.position.{reader}");
        let name = |name: &str| {
            ShortString::try_new(name).map_err(|_| {
                Trouble::lasting(format!(
                    "the queue for the position would be named `{name}`, which is {} bytes long; 255 is the most",
                    name.len()
                ))
            })
        };
        Ok(Self {
            stream: stream.to_owned(),
            reader: reader.to_owned(),
            lock: name(&format!("{queue}.lock"))?,
            queue: name(&queue)?,
        })
    }

    /// The queue with the position.
    pub(crate) fn queue(&self) -> &ShortString {
        &self.queue
    }

    /// Declares the queue for the position.
    pub(crate) async fn declare(&self, channel: &Channel) -> Result<(), Trouble> {
        let mut arguments = classic();
        arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(KEPT));
        arguments.insert("x-overflow".into(), AMQPValue::LongString("drop-head".into()));
        channel
            .queue_declare(self.queue.clone(), QueueDeclareOptions::durable(), arguments)
            .await
            .map(drop)
            .map_err(|error| self.failed(&self.queue, &error))
    }

    /// Becomes the one reader of this name for as long as the channel's connection lasts.
    pub(crate) async fn claim(&self, channel: &Channel) -> Result<(), Trouble> {
        channel
            .queue_declare(self.lock.clone(), QueueDeclareOptions::exclusive(), classic())
            .await
            .map(drop)
            .map_err(|error| match trouble::reply(&error) {
                Some((code::RESOURCE_LOCKED, _)) => Trouble::passing(format!(
                    "stream `{}` is read by somebody else under the name `{}`; this one takes over when that one is \
                     gone, or set another `consumer_tag` to read all of it too",
                    self.stream, self.reader
                )),
                _ => self.failed(&self.lock, &error),
            })
    }

    /// The position that was stored last.
    pub(crate) async fn recall(&self, channel: &Channel) -> Result<Option<u64>, Trouble> {
        let mut last = None;
        while let Some(message) = channel
            .basic_get(self.queue.clone(), BasicGetOptions::default())
            .await
            .map_err(|error| self.failed(&self.queue, &error))?
        {
            last = Some(message.delivery);
        }
        let Some(last) = last else {
            return Ok(None);
        };
        let requeue = BasicNackOptions {
            multiple: true,
            requeue: true,
        };
        channel.basic_nack(last.delivery_tag, requeue).await?;
        let text = String::from_utf8_lossy(&last.data);
        let position = text.trim().parse().map_err(|_| {
            let start: String = text.chars().take(40).collect();
            Trouble::lasting(format!(
                "the last message in queue `{}` is no position: `{start}`; purge it to begin anew",
                self.queue
            ))
        })?;
        Ok(Some(position))
    }

    fn failed(&self, queue: &ShortString, error: &lapin::Error) -> Trouble {
        match trouble::reply(error) {
            Some((code::ACCESS_REFUSED, text)) => Trouble::lasting(format!(
                "the user may not configure, write and read queue `{queue}`, which the position in stream `{}` \
                 takes; the broker says: {text}",
                self.stream
            )),
            Some((code::PRECONDITION_FAILED, text)) => Trouble::lasting(format!(
                "queue `{queue}`, where the position in stream `{}` is stored, is there with other properties: \
                 delete it; the broker says: {text}",
                self.stream
            )),
            Some((_, text)) => Trouble::passing(format!("queue `{queue}`: the broker says: {text}")),
            None => Trouble::passing(format!("queue `{queue}`: {}", trouble::describe(error))),
        }
    }
}

/// The virtual host's default may be another.
fn classic() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("classic".into()));
    arguments
}
