//! One connection that reads: [`Reader`], a task that consumes what the source wants and reconnects for ever.
//!
//! It hears of a lost channel also while the source wants nothing, and tells the engine at once. Each channel is a
//! generation of its own.
//!
//! A stream's channel may go without the engine's notice: what it delivered stays in hand, and the next one goes on
//! behind it. There the consumer also begins anew, further back, for what was given back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use lapin::Consumer;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::ShortString;
use millstream_core::rt::{self, Instant};
use tokio::time::timeout;
use tracing::{debug, info};

use crate::arrivals::{Arrived, Flow, Heard, next};
use crate::depth::{Depth, EVERY, watch};
use crate::dial::Line;
use crate::inbox::{Attendance, Inbox, Want};
use crate::progress::Progress;
use crate::settings::{OFFSET, ReaderSettings};
use crate::stream::{is_stream, undeclared};
use crate::tags::Tags;
use crate::topology::short;
use crate::trouble::{Trouble, describe};

/// How long a pause lasts before the consumer is cancelled: most are over sooner.
const CANCEL: Duration = Duration::from_millis(50);
/// How long a pause lasts before what was prefetched goes back for others to have.
const GIVE_BACK: Duration = Duration::from_secs(30);
/// How often to look whether the channel is still there while there is no consumer to hear it from.
const LOOK: Duration = Duration::from_secs(1);
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
    /// Set when what is read as a queue is found to be a stream.
    pub(crate) found_stream: Arc<AtomicBool>,
    /// Which of the readers it is.
    pub(crate) index: usize,
}

/// A connection with its open channel.
pub(crate) struct Link {
    line: Line,
    tags: Arc<Tags>,
    queue: ShortString,
    /// It is known to be no stream.
    no_stream: bool,
    /// Tells the engine how much waits, from a channel of its own, until that cannot be known.
    depth: Depth,
}

impl Link {
    /// Has it found out where in the stream to begin.
    pub(crate) async fn recall(&mut self, progress: &Progress) -> Result<(), Trouble> {
        let channel = self.line.channel().await?;
        progress.recall(&channel).await?;
        Ok(channel.close(200, "recalled".into()).await?)
    }
}

/// Why a link is not served any more.
#[derive(Debug)]
enum End {
    /// The source and the acknowledger are gone.
    Goodbye,
    /// The channel is.
    Lost(String),
    /// What is read is a stream, and nobody said so.
    Stream,
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
    /// Reads until both sides are gone. Answers with the connection.
    pub(crate) async fn run(self, link: Option<Link>) -> Option<Line> {
        let _attendance = Attendance::new(&self.inbox, self.index);
        let mut failures = 0;
        let mut link = link;
        let mut line = None;
        loop {
            let mut current = match link.take() {
                Some(link) => link,
                None => match self.link_again(&mut line, &mut failures).await {
                    Some(link) => link,
                    None => return line,
                },
            };
            self.inbox.opened(self.index, &current.tags);
            let since = rt::now();
            match self.serve(&mut current).await {
                Ok(never) => match never {},
                Err(End::Goodbye) => return Some(current.line),
                Err(End::Lost(cause)) => {
                    debug!(reader = self.index, cause, "channel lost");
                    if self.index == 0 {
                        self.inbox.engine().depth_unknown();
                    }
                    if self.inbox.progress().is_some() {
                        self.inbox.interrupted(self.index, &current.tags, &cause).await;
                    } else {
                        self.inbox.lost(self.index, &current.tags, &cause).await;
                    }
                }
                Err(End::Stream) => {
                    self.found_stream.store(true, Ordering::Relaxed);
                    self.inbox
                        .report(self.index, Some(&undeclared(&self.settings.topology.queue)));
                    return None;
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
        if let Some(progress) = self.inbox.progress() {
            progress.place().declare(&channel).await?;
            progress.place().claim(&channel).await?;
        }
        let origin = self.inbox.engine().origin(&queue);
        let queue = short("queue", &queue)?;
        // All of a stream's messages count there, read or not.
        let depth = if self.index == 0 && self.inbox.progress().is_none() {
            let watched = open.channel().await?;
            watch(
                watched,
                queue.clone(),
                self.inbox.engine().clone(),
                Duration::ZERO,
            )
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
                no_stream: self.settings.topology.declares_queue(),
                depth,
            }),
            None => Err(Trouble::passing("the connection is closed")),
        }
    }

    /// Consumes as the source wants it until the channel is gone or nobody is left.
    async fn serve(&self, link: &mut Link) -> Result<std::convert::Infallible, End> {
        let mut wants = self.inbox.wants();
        let mut consumer: Option<(Consumer, u16)> = None;
        let mut heard = Heard::Something;
        let mut arrived = Arrived::default();
        let progress = self.inbox.progress();
        loop {
            let want = *wants.borrow_and_update();
            let plan = self.plan(want)?;
            if progress.is_some_and(Progress::has_to_go_back)
                && let Some((consumer, _)) = consumer.take()
            {
                debug!(queue = link.queue.as_str(), "going back for what was given back");
                self.cancel(link, consumer).await?;
            }
            let prefetch = consumer.as_ref().map_or(0, |(_, prefetch)| *prefetch);
            if let Some(next) = plan.prefetch.filter(|next| *next != prefetch) {
                if let Some((consumer, _)) = consumer.take() {
                    self.cancel(link, consumer).await?;
                }
                if next > 0 && self.inbox.begin(self.index) {
                    let (consuming, expected) = self.consume(&link.tags, &link.queue, next).await?;
                    consumer = Some((consuming, next));
                    heard.begin(expected);
                }
            }
            // A stream has nobody else to give it to.
            if plan.give_back && progress.is_none() {
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
            if consumer.is_none() && heard != Heard::NothingReported {
                heard = Heard::Something;
            }
            if heard.is_overdue()
                && let Some(progress) = progress
            {
                self.inbox.report(self.index, Some(&progress.is_another()));
                heard = Heard::NothingReported;
            }
            let again = [plan.again, look, heard.due()].into_iter().flatten().min();
            let flow = tokio::select! {
                biased;
                _ = wants.changed() => continue,
                () = back(progress) => continue,
                flow = next(&mut consumer, &link.tags, progress, &mut arrived) => flow,
                () = until(again) => continue,
                () = &mut link.depth => {
                    self.inbox.engine().depth_unknown();
                    let watched = link.line.channel().await?;
                    link.depth = watch(watched, link.queue.clone(), self.inbox.engine().clone(), EVERY);
                    continue;
                }
            };
            if arrived.len() > 0 && std::mem::replace(&mut heard, Heard::Something) == Heard::NothingReported
            {
                self.inbox.report(self.index, None);
            }
            self.hand_on(link, &mut arrived).await?;
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

    /// Says also whether something has to come at once.
    async fn consume(
        &self,
        tags: &Tags,
        queue: &ShortString,
        prefetch: u16,
    ) -> Result<(Consumer, bool), End> {
        let channel = tags.channel();
        tags.set_prefetch(prefetch);
        channel
            .basic_qos(prefetch, BasicQosOptions { global: false })
            .await?;
        let tag = self.settings.consumer_tag.as_deref().unwrap_or_default();
        let mut arguments = self.settings.arguments.clone();
        let mut expected = false;
        if let Some(progress) = self.inbox.progress() {
            let (offset, is_there) = progress.resume();
            arguments.insert(OFFSET.into(), offset);
            expected = is_there;
        }
        let consumer = channel
            .basic_consume(
                queue.clone(),
                short("consumer_tag", tag)?,
                BasicConsumeOptions::default(),
                arguments,
            )
            .await?;
        Ok((consumer, expected))
    }

    /// Hands on what was delivered; of a stream, nothing before it is stored where it was begun.
    async fn hand_on(&self, link: &mut Link, arrived: &mut Arrived) -> Result<(), End> {
        if std::mem::take(&mut arrived.is_odd) && !link.no_stream {
            if is_stream(&link.line, &link.queue).await? {
                return Err(End::Stream);
            }
            link.no_stream = true;
        }
        if !arrived.known.is_empty() {
            link.tags.credit(arrived.known.drain(..)).await;
        }
        if let Some(progress) = self.inbox.progress()
            && !arrived.messages.is_empty()
            && !progress.is_anchored()
        {
            let mut wants = self.inbox.wants();
            tokio::select! {
                biased;
                () = progress.anchored() => {}
                // It ends before anything was handed out.
                _ = wants.wait_for(|want| matches!(want, Want::Nothing | Want::Goodbye)) => return Err(End::Goodbye),
            }
        }
        self.inbox.deliver(&mut arrived.messages);
        Ok(())
    }

    /// Takes what the broker still sends until it knows.
    async fn cancel(&self, link: &mut Link, consumer: Consumer) -> Result<(), End> {
        link.tags
            .channel()
            .basic_cancel(consumer.tag(), BasicCancelOptions::default())
            .await?;
        let mut consumer = Some((consumer, 0));
        let mut arrived = Arrived::default();
        loop {
            let flow = next(&mut consumer, &link.tags, self.inbox.progress(), &mut arrived).await;
            self.hand_on(link, &mut arrived).await?;
            match flow {
                Flow::More => {}
                Flow::Cancelled => return Ok(()),
                Flow::Failed(error) => return Err(error.into()),
            }
        }
    }
}

async fn back(progress: Option<&Progress>) {
    match progress {
        Some(progress) => progress.back().await,
        None => std::future::pending().await,
    }
}

async fn until(then: Option<Instant>) {
    match then {
        Some(then) => rt::sleep_until(then).await,
        None => std::future::pending().await,
    }
}

/// How long to wait after so many failures in a row.
pub(crate) fn backoff(failures: u32) -> Duration {
    let (first, most) = BACKOFF;
    let doubled = first.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
    doubled.min(most).mul_f64(0.5 + rt::chance() / 2.0)
}
