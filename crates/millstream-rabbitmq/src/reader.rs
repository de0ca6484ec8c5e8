//! One connection that reads: [`Reader`], a task that consumes what the source wants and reconnects for ever.
//!
//! It hears of a lost channel also while the source wants nothing, and tells the engine at once. Each channel is a
//! generation of its own.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures_core::Stream;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};
use millstream_core::rt::{self, Instant};
use millstream_core::{EngineHandle, Message, Ticket};
use tokio::time::timeout;
use tracing::{debug, info};

use crate::dial::Line;
use crate::inbox::{Attendance, Inbox, Want};
use crate::properties;
use crate::settings::ReaderSettings;
use crate::tags::Tags;
use crate::topology::short;
use crate::trouble::{Trouble, describe};

/// The most that is handed on at a time, so that the source starts on it while more comes.
const BATCH: usize = 256;
/// How long a pause lasts before the consumer is cancelled: most are over sooner.
const CANCEL: Duration = Duration::from_millis(50);
/// How long a pause lasts before what was prefetched goes back for others to have.
const GIVE_BACK: Duration = Duration::from_secs(30);
/// How often to look whether the channel is still there while there is no consumer to hear it from.
const LOOK: Duration = Duration::from_secs(1);
/// How often to ask how many messages wait.
const DEPTH: Duration = Duration::from_secs(5);
/// How long to wait before connecting again: at first and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// A link that has held for this long was a success.
const SUCCESS: Duration = Duration::from_secs(10);
/// How long a connection has to show that it is still good for another channel.
const REUSE: Duration = Duration::from_secs(5);

/// A task that reads over one connection.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) settings: Arc<ReaderSettings>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) generations: Arc<AtomicU32>,
    /// Which of the readers it is.
    pub(crate) index: usize,
}

/// A connection with its open channel.
pub(crate) struct Link {
    line: Line,
    tags: Arc<Tags>,
    queue: ShortString,
    /// Tells the engine how much waits, from a channel of its own; never ends.
    depth: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// Why a link is not served any more.
#[derive(Debug)]
enum End {
    /// The source and the acknowledger are gone.
    Goodbye,
    /// The channel is.
    Lost(String),
}

impl From<lapin::Error> for End {
    fn from(error: lapin::Error) -> Self {
        Self::Lost(describe(&error))
    }
}

impl From<Trouble> for End {
    fn from(trouble: Trouble) -> Self {
        Self::Lost(trouble.text)
    }
}

/// How the stream of a consumer goes on.
enum Flow {
    More,
    /// Cancelled, by this side or by the broker.
    Cancelled,
    Failed(lapin::Error),
}

/// What to do about what is wanted.
struct Plan {
    /// The prefetch to consume with, zero for not at all; absent: as it is.
    prefetch: Option<u16>,
    /// What nobody has read goes back.
    give_back: bool,
    /// When to look at it again.
    again: Option<Instant>,
}

impl Reader {
    /// Reads until both sides are gone.
    pub(crate) async fn run(self, link: Option<Link>) {
        let _attendance = Attendance::new(&self.inbox, self.index);
        let mut failures = 0;
        let mut link = link;
        let mut line = None;
        loop {
            let mut current = match link.take() {
                Some(link) => link,
                None => match self.link_again(&mut line, &mut failures).await {
                    Some(link) => link,
                    None => return,
                },
            };
            self.inbox.opened(self.index, &current.tags);
            let since = rt::now();
            match self.serve(&mut current).await {
                Ok(never) => match never {},
                Err(End::Goodbye) => return,
                Err(End::Lost(cause)) => {
                    debug!(reader = self.index, cause, "channel lost");
                    self.inbox.lost(self.index, &current.tags, &cause).await;
                }
            }
            failures = if since.elapsed() < SUCCESS {
                failures + 1
            } else {
                0
            };
            line = Some(current.line);
        }
    }

    /// Connects until it has worked, or nobody wants it any more.
    async fn link_again(&self, line: &mut Option<Line>, failures: &mut u32) -> Option<Link> {
        let mut wants = self.inbox.wants();
        let connecting = async {
            loop {
                if *failures > 0 {
                    rt::sleep(backoff(*failures)).await;
                }
                match self.link(line).await {
                    Ok(link) => return link,
                    Err(trouble) => {
                        *failures = failures.saturating_add(1);
                        self.inbox.report(self.index, Some(&trouble.text));
                    }
                }
            }
        };
        tokio::select! {
            biased;
            _ = wants.wait_for(|want| *want == Want::Goodbye) => None,
            link = connecting => Some(link),
        }
    }

    /// Opens a channel on the line if there is one and it is good, on a new one otherwise, and declares what is to
    /// be declared.
    pub(crate) async fn link(&self, line: &mut Option<Line>) -> Result<Link, Trouble> {
        let reused = match line.take() {
            Some(open) => match timeout(REUSE, open.channel()).await {
                Ok(Ok(channel)) => Some((open, channel)),
                _ => None,
            },
            None => None,
        };
        let (open, channel) = match reused {
            Some(reused) => reused,
            None => {
                let open = self.settings.dial.connect().await?;
                let channel = open.channel().await?;
                (open, channel)
            }
        };
        let open = line.insert(open);
        let queue = self.settings.topology.apply(&channel).await?;
        let origin = self.inbox.engine().origin(&queue);
        let queue = short("queue", &queue)?;
        let depth: Pin<Box<dyn Future<Output = ()> + Send>> = if self.index == 0 {
            let watched = open.channel().await?;
            Box::pin(watch_depth(watched, queue.clone(), self.inbox.engine().clone()))
        } else {
            Box::pin(std::future::pending())
        };
        let generation = self.generations.fetch_add(1, Ordering::Relaxed);
        info!(
            broker = open.place(),
            queue = queue.as_str(),
            generation,
            "reading from RabbitMQ"
        );
        match line.take() {
            Some(line) => Ok(Link {
                line,
                tags: Arc::new(Tags::new(generation, origin, channel)),
                queue,
                depth,
            }),
            None => Err(Trouble::passing("the connection is closed")),
        }
    }

    /// Consumes as the source wants it until the channel is gone or nobody is left.
    async fn serve(&self, link: &mut Link) -> Result<std::convert::Infallible, End> {
        let mut wants = self.inbox.wants();
        let mut consumer: Option<(Consumer, u16)> = None;
        let mut arrived = Vec::new();
        loop {
            let want = *wants.borrow_and_update();
            let plan = self.plan(want)?;
            let prefetch = consumer.as_ref().map_or(0, |(_, prefetch)| *prefetch);
            if let Some(next) = plan.prefetch.filter(|next| *next != prefetch) {
                if let Some((consumer, _)) = consumer.take() {
                    self.cancel(&link.tags, consumer).await?;
                }
                if next > 0 && self.inbox.begin(self.index) {
                    consumer = Some((self.consume(&link.tags, &link.queue, next).await?, next));
                }
            }
            if plan.give_back {
                let unread = self.inbox.withdraw(&link.tags);
                link.tags.give_back(unread.into_iter()).await;
            }
            if consumer.is_none() {
                self.inbox.end(self.index);
                if !link.tags.channel().status().connected() {
                    return Err(End::Lost("the channel was closed".to_owned()));
                }
            }
            let look = consumer.is_none().then(|| rt::after(LOOK));
            let again = [plan.again, look].into_iter().flatten().min();
            let flow = tokio::select! {
                biased;
                _ = wants.changed() => continue,
                flow = next(&mut consumer, &link.tags, &mut arrived) => flow,
                () = until(again) => continue,
                () = &mut link.depth => continue,
            };
            self.inbox.deliver(&mut arrived);
            match flow {
                // Others may have to run before there is a use for more.
                Flow::More => tokio::task::yield_now().await,
                Flow::Failed(error) => return Err(error.into()),
                Flow::Cancelled => {
                    // The queue was deleted, or lives on another node now.
                    info!(queue = link.queue.as_str(), "the broker cancelled the consumer");
                    consumer = None;
                    self.inbox.end(self.index);
                    let declaring = link.line.channel().await?;
                    self.settings.topology.apply(&declaring).await?;
                    declaring.close(200, "declared".into()).await?;
                }
            }
        }
    }

    fn plan(&self, want: Want) -> Result<Plan, End> {
        let mut plan = Plan {
            prefetch: Some(0),
            give_back: false,
            again: None,
        };
        match want {
            Want::Nothing => {}
            Want::Clearance => plan.give_back = true,
            Want::Messages(number) => {
                let readers = self.settings.connections.max(1);
                let share = number / readers + usize::from(self.index < number % readers);
                plan.prefetch = Some(u16::try_from(share).unwrap_or(u16::MAX));
            }
            Want::Pause(since) => {
                let now = rt::now();
                if now < since + CANCEL {
                    plan.prefetch = None;
                    plan.again = Some(since + CANCEL);
                } else if now < since + GIVE_BACK {
                    plan.again = Some(since + GIVE_BACK);
                } else {
                    plan.give_back = true;
                }
            }
            Want::Goodbye => return Err(End::Goodbye),
        }
        Ok(plan)
    }

    async fn consume(&self, tags: &Tags, queue: &ShortString, prefetch: u16) -> Result<Consumer, End> {
        let channel = tags.channel();
        tags.set_prefetch(prefetch);
        channel
            .basic_qos(prefetch, BasicQosOptions { global: false })
            .await?;
        let tag = self.settings.consumer_tag.as_deref().unwrap_or_default();
        let consumer = channel
            .basic_consume(
                queue.clone(),
                short("consumer_tag", tag)?,
                BasicConsumeOptions::default(),
                self.settings.arguments.clone(),
            )
            .await?;
        Ok(consumer)
    }

    /// Takes what the broker still sends until it knows.
    async fn cancel(&self, tags: &Tags, consumer: Consumer) -> Result<(), End> {
        tags.channel()
            .basic_cancel(consumer.tag(), BasicCancelOptions::default())
            .await?;
        let mut consumer = Some((consumer, 0));
        let mut arrived = Vec::new();
        loop {
            let flow = next(&mut consumer, tags, &mut arrived).await;
            self.inbox.deliver(&mut arrived);
            match flow {
                Flow::More => {}
                Flow::Cancelled => return Ok(()),
                Flow::Failed(error) => return Err(error.into()),
            }
        }
    }
}

/// Waits for deliveries and takes all that are here, up to a batch; without a consumer it waits for ever.
///
/// # Cancel safety
/// Cancel safe: it does not wait with any in hand.
async fn next(
    consumer: &mut Option<(Consumer, u16)>,
    tags: &Tags,
    arrived: &mut Vec<(Ticket, Message)>,
) -> Flow {
    let Some((consumer, _)) = consumer else {
        return std::future::pending().await;
    };
    poll_fn(|cx| {
        while arrived.len() < BATCH {
            match Pin::new(&mut *consumer).poll_next(cx) {
                Poll::Ready(Some(Ok(delivery))) => {
                    let ticket = tags.ticket(delivery.delivery_tag, delivery.redelivered);
                    arrived.push((ticket, properties::read(delivery, ticket.origin)));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Flow::Failed(error)),
                Poll::Ready(None) => return Poll::Ready(Flow::Cancelled),
                Poll::Pending if arrived.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(Flow::More)
    })
    .await
}

async fn until(then: Option<Instant>) {
    match then {
        Some(then) => rt::sleep_until(then).await,
        None => std::future::pending().await,
    }
}

/// Tells the engine from time to time how many messages wait. It is not worth an error if that cannot be known.
async fn watch_depth(channel: Channel, queue: ShortString, engine: EngineHandle) {
    let options = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    loop {
        match channel
            .queue_declare(queue.clone(), options, FieldTable::default())
            .await
        {
            Ok(queue) => engine.depth(queue.message_count().into()),
            Err(error) => {
                debug!(%error, "the depth is not known");
                return std::future::pending().await;
            }
        }
        rt::sleep(DEPTH).await;
    }
}

/// How long to wait after so many failures in a row.
fn backoff(failures: u32) -> Duration {
    let (first, most) = BACKOFF;
    let doubled = first.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
    doubled.min(most).mul_f64(0.5 + rt::chance() / 2.0)
}
