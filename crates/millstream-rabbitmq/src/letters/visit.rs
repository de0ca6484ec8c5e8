//! One way through the letters of a queue: [`Open`].

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions};
use lapin::types::ShortString;
use millstream_core::{BoxFuture, Letter, LetterError, Letters, rt};

use super::again::Again;
use super::look_for;
use crate::dial::Line;
use crate::publisher::{Fate, Publisher, Route};
use crate::trouble::{self, code};

/// For how long letters are got, once there is one, before they are handed on.
const TURN: Duration = Duration::from_millis(250);

/// A visit. Dropped, it closes its connection, and the broker puts back what was got: a quorum queue counts a delivery.
pub(super) struct Open {
    line: Line,
    channel: Channel,
    queue: ShortString,
    /// What copies are published with. None where the queue puts letters back by itself and counts nothing.
    publisher: Option<Publisher>,
    /// How many of those that were there when it began are not got yet, at most.
    left: u32,
    /// What was given last and not removed, with its id, by its delivery tag.
    held: BTreeMap<u64, (String, Again)>,
    /// The ids of what was put back, which may be got again, and how many of each.
    own: HashMap<String, usize>,
    /// What was put back and got again; it stays until the end.
    met: BTreeMap<u64, (String, Again)>,
}

impl Open {
    pub(super) fn new(
        line: Line,
        channel: Channel,
        queue: ShortString,
        publisher: Option<Publisher>,
        messages: u32,
    ) -> Self {
        Self {
            line,
            channel,
            queue,
            publisher,
            left: messages,
            held: BTreeMap::new(),
            own: HashMap::new(),
            met: BTreeMap::new(),
        }
    }

    /// The next message there is, as a letter and as what it is put back as.
    async fn get(&self) -> Result<Option<(Letter, Again)>, LetterError> {
        let got = self
            .channel
            .basic_get(self.queue.clone(), BasicGetOptions::default())
            .await
            .map_err(|error| self.failed(&error))?;
        Ok(got.map(|got| {
            let (again, message) = Again::of(got.delivery);
            let mut letter = Letter {
                handle: message.position,
                id: String::new(),
                payload: message.payload,
                key: message.key,
                headers: message.headers,
                timestamp: message.timestamp,
                ..Letter::default()
            };
            letter.id = letter.fingerprint();
            (letter, again)
        }))
    }

    /// Whether this is one that was put back.
    ///
    /// Copies of a letter share an id: it does not matter which of them is taken for the one that was put back.
    fn is_own(&mut self, id: &str) -> bool {
        match self.own.get_mut(id) {
            Some(times) if *times > 0 => {
                *times -= 1;
                true
            }
            _ => false,
        }
    }

    /// Publishes copies of letters to their queue, and acknowledges those whose copies are confirmed. Ended in between,
    /// it leaves letters there twice, and loses none.
    async fn put_back(&mut self, letters: BTreeMap<u64, (String, Again)>) -> Result<(), LetterError> {
        let Some(publisher) = self.publisher.as_mut().filter(|_| !letters.is_empty()) else {
            return Ok(());
        };
        let mut named = Vec::with_capacity(letters.len());
        let mut copies = Vec::with_capacity(letters.len());
        for (tag, (id, again)) in letters {
            named.push((tag, id));
            copies.push(again);
        }
        let fates = publisher
            .publish(&copies, |_| {
                Ok(Route {
                    exchange: ShortString::default(),
                    routing_key: self.queue.clone(),
                })
            })
            .await;
        let failed = |queue: &ShortString, why: &str| {
            LetterError(format!(
                "letters cannot be put back into `{queue}`: {why}; they come back by themselves, and a quorum queue counts \
                 that as a delivery"
            ))
        };
        let fates = fates.map_err(|error| failed(&self.queue, &error.0))?;
        let mut worst = Ok(());
        for ((tag, id), fate) in named.into_iter().zip(fates) {
            let why = match fate {
                Fate::Confirmed => {
                    *self.own.entry(id).or_insert(0) += 1;
                    let acked = self.channel.basic_ack(tag, BasicAckOptions::default()).await;
                    acked.map_err(|error| self.failed(&error))?;
                    continue;
                }
                Fate::Unroutable => "there is no such queue any more".to_owned(),
                Fate::Refused(why) | Fate::Failed(why) => why,
            };
            worst = Err(failed(&self.queue, &why));
        }
        worst
    }

    /// Waits until the broker has all that was said: acknowledgements have no answer, and what is asked after them has.
    async fn settled(&self) -> Result<(), LetterError> {
        let asked = look_for(&self.channel, &self.queue).await;
        asked.map(drop).map_err(|error| self.failed(&error))
    }

    /// Puts back all that is left.
    async fn end(&mut self) -> Result<(), LetterError> {
        let (held, met) = (std::mem::take(&mut self.held), std::mem::take(&mut self.met));
        self.put_back(held).await?;
        self.put_back(met).await?;
        // What was got and never given: a call was broken off. No tag is all that is unsettled, also where that is nothing.
        let all = BasicNackOptions {
            multiple: true,
            requeue: true,
        };
        let put_back = self.channel.basic_nack(0, all).await;
        put_back.map_err(|error| self.failed(&error))?;
        self.settled().await
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
            if self.publisher.is_some() {
                let held = std::mem::take(&mut self.held);
                self.put_back(held).await?;
            }
            let mut letters = Vec::new();
            let until = rt::after(TURN);
            while letters.len() < most.max(1) && self.left > 0 && (letters.is_empty() || rt::now() < until) {
                let Some((letter, again)) = self.get().await? else {
                    self.left = 0;
                    break;
                };
                let kept = (letter.id.clone(), again);
                if self.is_own(&letter.id) {
                    self.met.insert(letter.handle, kept);
                    continue;
                }
                self.left -= 1;
                if self.publisher.is_some() {
                    self.held.insert(letter.handle, kept);
                }
                letters.push(letter);
            }
            Ok(letters)
        })
    }

    fn remove<'a>(&'a mut self, handles: &'a [u64]) -> BoxFuture<'a, Result<u64, LetterError>> {
        Box::pin(async move {
            for handle in handles {
                let acked = self.channel.basic_ack(*handle, BasicAckOptions::default()).await;
                acked.map_err(|error| self.failed(&error))?;
                self.held.remove(handle);
            }
            self.settled().await?;
            Ok(handles.len() as u64)
        })
    }

    fn close(mut self: Box<Self>) -> BoxFuture<'static, Result<u64, LetterError>> {
        Box::pin(async move {
            let ended = self.end().await;
            let Self { line, publisher, .. } = *self;
            line.close().await;
            if let Some(publisher) = publisher {
                publisher.close().await;
            }
            ended.map(|()| 0)
        })
    }
}
