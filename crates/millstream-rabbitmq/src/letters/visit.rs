//! One way through the letters of a queue: [`Open`].
//!
//! The channel of a quorum queue passes on thirty-two acknowledgements that its queue has not applied, keeps back all further
//! ones, and forgets these when it is closed. A get is answered once the queue has applied what it was told before. So few
//! letters are got at a time, and all of them are acknowledged or given up before the next get: no more than twice as many
//! acknowledgements are ever underway, and each is the queue's.

use futures_util::future::join_all;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions};
use lapin::types::ShortString;
use millstream_core::{BoxFuture, Letter, LetterError, Letters};

use super::again::Again;
use super::copies::{BYTES, Copies, Held, MOST};
use super::look_for;
use crate::dial::Line;
use crate::publisher::{Fate, Publisher, Route};
use crate::trouble::{self, code};

/// How many are got, and acknowledged, at a time at most: twice as many may be underway.
const TOGETHER: usize = 16;

/// A visit. Dropped, it closes its connection, and the broker puts back what was got: a quorum queue counts a delivery.
pub(super) struct Open {
    line: Line,
    channel: Channel,
    queue: ShortString,
    /// What copies are published with. None where the queue puts letters back by itself and counts nothing.
    publisher: Option<Publisher>,
    /// How many of those that were there when it began are not got yet, at most.
    left: u32,
    /// The size of the largest letter so far.
    largest: Option<usize>,
    /// What was given last and not removed.
    held: Held,
    /// What was put back.
    copies: Copies,
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
            largest: None,
            held: Held::new(),
            copies: Copies::default(),
        }
    }

    /// The next messages there are, at most so many, as letters and as what they are put back as; fewer where there are no
    /// more. All are asked for before the first answer: one by one each would take a way there and back.
    async fn get(&mut self, most: usize) -> Result<Vec<(Letter, Again)>, LetterError> {
        let gets = (0..most).map(|_| {
            self.channel
                .basic_get(self.queue.clone(), BasicGetOptions::default())
        });
        let mut letters = Vec::with_capacity(most);
        for got in join_all(gets).await {
            let Some(got) = got.map_err(|error| self.failed(&error))? else {
                continue;
            };
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
            self.largest = self.largest.max(Some(size_of(&letter)));
            letters.push((letter, again));
        }
        Ok(letters)
    }

    /// How many letters are got at a time: those that have room by the size of the largest, and one where that is not known
    /// yet.
    fn at_once(&self) -> usize {
        let fit = self.largest.map_or(1, |largest| BYTES / largest.max(1));
        fit.clamp(1, TOGETHER)
    }

    /// Puts back what was got again, to have room for more of it. Whether there is anything else to get.
    async fn make_room(&mut self) -> Result<bool, LetterError> {
        if self.copies.are_all() {
            let ready = look_for(&self.channel, &self.queue)
                .await
                .map_err(|error| self.failed(&error))?;
            if ready as usize <= self.copies.there() {
                return Ok(false);
            }
            return Err(LetterError(format!(
                "the letters of higher priorities in `{}` are more than can be kept away from it, {MOST} of them or {} MiB, so \
                 those of lower ones are not reached: replay or purge the former first; or, if it is a classic queue, say so \
                 in `declare` of its table",
                self.queue,
                BYTES >> 20
            )));
        }
        let met = self.copies.take();
        self.put_back(met).await.map(|()| true)
    }

    /// Publishes copies of letters to their queue, and acknowledges those whose copies are confirmed, a few at a time: what
    /// confirms the next ones also says that the queue has followed the acknowledgements of those before. Ended in
    /// between, it leaves letters there twice, and loses none.
    async fn put_back(&mut self, letters: Held) -> Result<(), LetterError> {
        let mut letters = letters.into_iter().peekable();
        while letters.peek().is_some() {
            self.put_some_back(letters.by_ref().take(TOGETHER)).await?;
        }
        Ok(())
    }

    async fn put_some_back(
        &mut self,
        letters: impl Iterator<Item = (u64, (String, Again))>,
    ) -> Result<(), LetterError> {
        let Some(publisher) = self.publisher.as_mut() else {
            return Ok(());
        };
        let mut named = Vec::with_capacity(TOGETHER);
        let mut copies = Vec::with_capacity(TOGETHER);
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
        let mut confirmed = Vec::with_capacity(named.len());
        for ((tag, id), fate) in named.into_iter().zip(fates) {
            let why = match fate {
                Fate::Confirmed => {
                    self.copies.put(id);
                    confirmed.push(tag);
                    continue;
                }
                Fate::Unroutable => "there is no such queue any more".to_owned(),
                Fate::Refused(why) | Fate::Failed(why) => why,
            };
            worst = Err(failed(&self.queue, &why));
        }
        self.acknowledge(&confirmed).await?;
        worst
    }

    /// Acknowledges letters, each by itself: an acknowledgement that covers many would be of what a call got that was broken
    /// off, too.
    async fn acknowledge(&self, tags: &[u64]) -> Result<(), LetterError> {
        for tag in tags {
            let acked = self.channel.basic_ack(*tag, BasicAckOptions::default()).await;
            acked.map_err(|error| self.failed(&error))?;
        }
        self.settled().await
    }

    /// Waits until the queue has all that was said: acknowledgements have no answer, and what is asked after them has.
    async fn settled(&self) -> Result<(), LetterError> {
        let asked = look_for(&self.channel, &self.queue).await;
        asked.map(drop).map_err(|error| self.failed(&error))
    }

    /// Puts back all that is left.
    async fn end(&mut self) -> Result<(), LetterError> {
        let (held, met) = (std::mem::take(&mut self.held), self.copies.take());
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

fn size_of(letter: &Letter) -> usize {
    letter.payload.len() + letter.headers.size()
}

impl Letters for Open {
    fn next(&mut self, most: usize) -> BoxFuture<'_, Result<Vec<Letter>, LetterError>> {
        Box::pin(async move {
            if self.publisher.is_some() {
                let held = std::mem::take(&mut self.held);
                self.put_back(held).await?;
            }
            let mut letters = Vec::new();
            while letters.is_empty() && self.left > 0 {
                let left = usize::try_from(self.left).unwrap_or(usize::MAX);
                let asked = self.at_once().min(most.max(1)).min(left);
                let got = self.get(asked).await?;
                if got.len() < asked {
                    self.left = 0;
                }
                for (letter, again) in got {
                    let (handle, id) = (letter.handle, letter.id.clone());
                    let Some(kept) = self.copies.meet(handle, id, again, size_of(&letter)) else {
                        continue;
                    };
                    self.left = self.left.saturating_sub(1);
                    if self.publisher.is_some() {
                        self.held.insert(handle, kept);
                    }
                    letters.push(letter);
                }
                if self.left > 0 && self.copies.are_many() && !self.make_room().await? {
                    self.left = 0;
                }
            }
            Ok(letters)
        })
    }

    fn remove<'a>(&'a mut self, handles: &'a [u64]) -> BoxFuture<'a, Result<u64, LetterError>> {
        Box::pin(async move {
            self.acknowledge(handles).await?;
            for handle in handles {
                self.held.remove(handle);
            }
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
