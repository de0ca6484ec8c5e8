//! Publishing with confirms: [`Publisher`], which sinks are made of.
//!
//! Everything of a call is published before the first confirmation is awaited. A message that no queue takes comes
//! back from the broker ahead of its confirmation, but lapin hands it over with whichever confirmation is next. So
//! what comes back is compared with what was sent: two messages that are equal in every respect share their fate,
//! and it does not matter which of them it was.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, PublisherConfirm};
use millstream_core::{Delivered, OpenError, Outgoing, SinkError, rt};

use crate::dial::{Dial, Line};
use crate::properties;
use crate::trouble::{self, Trouble, code};

/// What may wait to be written to the socket: lapin keeps a copy of it.
const MOST_UNWRITTEN: usize = 1000;
const MOST_UNWRITTEN_BYTES: usize = 4 << 20;

/// Where a message goes.
pub(crate) struct Route {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
}

/// What can be published.
pub(crate) trait Parcel: Sync {
    fn payload(&self) -> &[u8];

    /// The error says why AMQP cannot carry it. `room` is what the header frame may hold.
    fn properties(&self, room: usize) -> Result<BasicProperties, String>;
}

impl Parcel for Outgoing {
    fn payload(&self) -> &[u8] {
        &self.payload
    }

    fn properties(&self, room: usize) -> Result<BasicProperties, String> {
        properties::write(self, room)
    }
}

/// What became of a message, before anybody puts it in words for the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Confirmed,
    /// No queue takes it.
    Unroutable,
    /// It can never be published.
    Refused(String),
    Failed(String),
}

impl From<Fate> for Delivered {
    fn from(fate: Fate) -> Self {
        match fate {
            Fate::Confirmed => Self::Confirmed,
            Fate::Unroutable => Self::Refused("no queue takes it".to_owned()),
            Fate::Refused(why) => Self::Refused(why),
            Fate::Failed(why) => Self::Failed(why),
        }
    }
}

/// A connection with a channel that confirms.
#[derive(Debug)]
pub(crate) struct Publisher {
    line: Line,
    channel: Channel,
    patience: Duration,
}

type Publishing<'a> = Pin<Box<dyn Future<Output = lapin::Result<PublisherConfirm>> + Send + 'a>>;

impl Publisher {
    /// Connects. A confirmation is waited for that long after the one before it.
    pub(crate) async fn open(dial: &Dial, patience: Duration) -> Result<Self, OpenError> {
        let line = dial.connect().await?;
        let channel = Self::confirming(&line)
            .await
            .map_err(|trouble| trouble.open_error(true))?;
        Ok(Self {
            line,
            channel,
            patience,
        })
    }

    async fn confirming(line: &Line) -> Result<Channel, Trouble> {
        let channel = line.channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    }

    /// The channel, for declarations.
    pub(crate) fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Says goodbye to the broker, and waits until it has heard.
    pub(crate) async fn close(self) {
        self.line.close().await;
    }

    /// Whether it is worth trying to publish.
    pub(crate) fn is_open(&self) -> bool {
        self.channel.status().connected()
    }

    /// Publishes these and waits for the broker's word on each, in order.
    ///
    /// After a failure of the whole the publisher is of no more use, nor after its future was dropped.
    pub(crate) async fn publish<P: Parcel>(
        &mut self,
        messages: &[P],
        route: impl Fn(&P) -> Result<Route, String>,
    ) -> Result<Vec<Fate>, SinkError> {
        let room = self.line.frame_max().saturating_sub(64);
        let parcel = |message: &P| Ok::<_, String>((route(message)?, message.properties(room)?));
        let mut fates = vec![Fate::Failed(String::new()); messages.len()];
        let mut sent = Sent::new(self.patience);
        for (index, (message, fate)) in messages.iter().zip(&mut fates).enumerate() {
            match parcel(message) {
                Ok((route, properties)) => {
                    let publishing = self.start(route, message.payload(), properties);
                    sent.add(index, publishing, message.payload().len()).await;
                }
                Err(why) => *fate = Fate::Refused(why),
            }
        }
        sent.finish(&mut fates).await;
        let Sent {
            returned, trouble, ..
        } = sent;
        if !returned.is_empty() {
            blame(&returned, messages, &mut fates, |message| parcel(message).ok());
        }
        let Some(trouble) = trouble else {
            return Ok(fates);
        };
        let why = match trouble {
            Broken::Silent if self.line.is_blocked() => format!(
                "no confirmation within {:?}: {} is short of memory or disk space and takes nothing",
                self.patience,
                self.line.place()
            ),
            Broken::Silent => format!(
                "no confirmation from {} within {:?}",
                self.line.place(),
                self.patience
            ),
            Broken::Error(error) => {
                refuse_oversized(&error, messages, &mut fates);
                format!("{}: {}", self.line.place(), trouble::describe(&error))
            }
        };
        if fates.iter().all(|fate| matches!(fate, Fate::Failed(_))) {
            return Err(SinkError(why));
        }
        for fate in &mut fates {
            if let Fate::Failed(text) = fate
                && text.is_empty()
            {
                text.clone_from(&why);
            }
        }
        Ok(fates)
    }

    /// A publish that begins when it is first polled.
    fn start<'a>(&'a self, route: Route, payload: &'a [u8], properties: BasicProperties) -> Publishing<'a> {
        let options = BasicPublishOptions {
            mandatory: true,
            immediate: false,
        };
        Box::pin(
            self.channel
                .basic_publish(route.exchange, route.routing_key, options, payload, properties),
        )
    }
}

/// Why the rest of a call has no answer.
enum Broken {
    /// Time is up.
    Silent,
    Error(lapin::Error),
}

/// What is under way.
struct Sent<'a> {
    /// Not yet written to the socket, with the payload's size.
    unwritten: VecDeque<(usize, usize, Publishing<'a>)>,
    unwritten_bytes: usize,
    unconfirmed: Vec<(usize, PublisherConfirm)>,
    returned: Vec<BasicReturnMessage>,
    trouble: Option<Broken>,
    timer: Pin<Box<rt::Sleep>>,
    patience: Duration,
}

impl<'a> Sent<'a> {
    fn new(patience: Duration) -> Self {
        Self {
            unwritten: VecDeque::new(),
            unwritten_bytes: 0,
            unconfirmed: Vec::new(),
            returned: Vec::new(),
            trouble: None,
            timer: Box::pin(rt::sleep(patience)),
            patience,
        }
    }

    /// Begins to publish, and waits only while too much waits for the socket.
    async fn add(&mut self, index: usize, mut publishing: Publishing<'a>, size: usize) {
        // lapin queues the frames in the first poll: that is what keeps messages in order.
        match poll_fn(|cx| Poll::Ready(publishing.as_mut().poll(cx))).await {
            Poll::Ready(written) => self.written(index, written),
            Poll::Pending => {
                self.unwritten.push_back((index, size, publishing));
                self.unwritten_bytes += size;
            }
        }
        while self.unwritten.len() > MOST_UNWRITTEN || self.unwritten_bytes > MOST_UNWRITTEN_BYTES {
            if !self.write_one().await {
                break;
            }
        }
    }

    /// Waits until the oldest is written. Says whether there was one and time was not up.
    async fn write_one(&mut self) -> bool {
        let Some((index, size, publishing)) = self.unwritten.pop_front() else {
            return false;
        };
        self.unwritten_bytes -= size;
        let written = self.wait(publishing).await;
        if let Some(written) = written {
            self.written(index, written);
        }
        !matches!(self.trouble, Some(Broken::Silent))
    }

    fn written(&mut self, index: usize, written: lapin::Result<PublisherConfirm>) {
        match written {
            Ok(confirm) => self.unconfirmed.push((index, confirm)),
            Err(error) => self.broke(error),
        }
    }

    /// Waits for every confirmation that there will be.
    async fn finish(&mut self, fates: &mut [Fate]) {
        while self.write_one().await {}
        for (index, confirm) in std::mem::take(&mut self.unconfirmed) {
            let confirmation = match self.wait(confirm).await {
                Some(Ok(confirmation)) => confirmation,
                Some(Err(error)) => {
                    self.broke(error);
                    continue;
                }
                None => break,
            };
            let fate = match &confirmation {
                Confirmation::Ack(_) => Fate::Confirmed,
                Confirmation::Nack(_) => {
                    Fate::Failed("the broker could not take it: its queue is full or failed".to_owned())
                }
                Confirmation::NotRequested => Fate::Failed("the channel does not confirm".to_owned()),
            };
            if let Some(slot) = fates.get_mut(index) {
                *slot = fate;
            }
            if let Some(message) = confirmation.take_message() {
                self.returned.push(message);
            }
        }
    }

    fn broke(&mut self, error: lapin::Error) {
        // The broker's own words come with the first error or with none; those after it tell of a closed channel.
        match &self.trouble {
            None => self.trouble = Some(Broken::Error(error)),
            Some(Broken::Error(first))
                if trouble::reply(first).is_none() && trouble::reply(&error).is_some() =>
            {
                self.trouble = Some(Broken::Error(error));
            }
            Some(_) => {}
        }
    }

    /// Waits for this, but not for longer than patience lasts after the last sign of life.
    async fn wait<F: Future + Unpin>(&mut self, mut future: F) -> Option<F::Output> {
        let mut waited = false;
        let output = poll_fn(|cx| {
            if let Poll::Ready(output) = Pin::new(&mut future).poll(cx) {
                return Poll::Ready(Some(output));
            }
            waited = true;
            self.timer.as_mut().poll(cx).map(|()| None)
        })
        .await;
        if output.is_none() {
            self.trouble.get_or_insert(Broken::Silent);
        } else if waited {
            self.timer.as_mut().reset(rt::after(self.patience));
        }
        output
    }
}

/// Finds the messages that came back. They come in the order in which they were sent.
fn blame<P: Parcel>(
    returned: &[BasicReturnMessage],
    messages: &[P],
    fates: &mut [Fate],
    parcel: impl Fn(&P) -> Option<(Route, BasicProperties)>,
) {
    let mut from = 0;
    for back in returned {
        let goes_there = |message: &P| {
            let parcel = parcel(message).filter(|(route, _)| {
                route.exchange == back.exchange && route.routing_key == back.routing_key
            });
            parcel.filter(|_| *message.payload() == *back.data)
        };
        let candidates = || {
            (from..messages.len())
                .chain(0..from)
                .filter(|index| fates.get(*index) != Some(&Fate::Unroutable))
        };
        let with = |same: &dyn Fn(&BasicProperties) -> bool| {
            candidates().find(|index| {
                let message = messages.get(*index).and_then(goes_there);
                message.is_some_and(|(_, properties)| same(&properties))
            })
        };
        // A broker's interceptor may have changed the properties on the way.
        let found = with(&|properties| *properties == back.properties).or_else(|| with(&|_| true));
        let Some(found) = found else {
            // Whichever it is, it must not count as confirmed.
            for fate in fates.iter_mut().filter(|fate| **fate == Fate::Confirmed) {
                *fate = Fate::Failed("the broker returned a message that is none of these".to_owned());
            }
            continue;
        };
        if let Some(fate) = fates.get_mut(found) {
            *fate = Fate::Unroutable;
        }
        from = found + 1;
    }
}

/// The broker closes the channel over a message that is larger than it takes. Without this, that message would
/// fail those around it again and again.
fn refuse_oversized(error: &lapin::Error, messages: &[impl Parcel], fates: &mut [Fate]) {
    let Some((code::PRECONDITION_FAILED, text)) = trouble::reply(error) else {
        return;
    };
    let Some(size) = text
        .split_once("message size ")
        .and_then(|(_, rest)| rest.split(' ').next())
        .and_then(|size| size.parse::<usize>().ok())
    else {
        return;
    };
    for (message, fate) in messages.iter().zip(fates) {
        if message.payload().len() == size && matches!(fate, Fate::Failed(_)) {
            *fate = Fate::Refused(format!("the broker says: {text}"));
        }
    }
}
